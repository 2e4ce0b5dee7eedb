"""Versions of the weights: side by side in the app's model folder, one of them named by the small file `current`.

``<app>/model/ctsam3d/<version>.safetensors`` are the versions, which never change; ``current`` holds the name of the
one to serve, or ``base`` for the weights that the app was started with. Both are replaced whole, so that whoever reads
sees the old or the new. Where a version comes from travels in its notes: ``parent``, ``lineage`` (SHA-256 of every
ancestor, nearest first), ``trained`` (content hashes of the volumes), ``scores`` and ``gate``. The last version that
the gate refused is kept too, to be looked at.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.files import atomic_path, clear_temporary

logger = logging.getLogger(__name__)

CURRENT = "current"
BASE = "base"
PREVIOUS = "previous"
SUFFIX = ".safetensors"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBERED = re.compile(r"v(\d+)-[0-9a-f]{8}")
_SWITCH_SECONDS = 60.0  # another switch takes as long as writing one file of weights


class SwitchedError(RuntimeError):
    """Another version is served than the one that a publication started from."""


@dataclass(frozen=True)
class Version:
    """What the metadata of a file of weights say.

    Attributes:
        name: of the file, without its extension.
        sha256: of the tensors.
        problem: why the file cannot be read; empty where it can.
    """

    name: str
    sha256: str
    notes: dict
    problem: str = ""

    @property
    def lineage(self) -> tuple[str, ...]:
        """SHA-256 of the ancestors, nearest first."""
        return tuple(map(str, self.notes.get("lineage", ())))


class Versions:
    """The versions in a folder, and which one is to be served.

    Args:
        folder: made at the first publication.
        weights: ``--conf weights``: "default", another packaged name, or a .safetensors file. With anything but
            "default", only its descendants are served in its place.
    """

    def __init__(self, folder: str | os.PathLike, weights: str = "default"):
        self.folder, self.weights = Path(folder), weights

    # ---- reading --------------------------------------------------------------------------------------------------

    @property
    def base_path(self) -> Path:
        """The weights that the app was started with.

        Raises:
            FileNotFoundError: no packaged weights of that name.
        """
        return Path(self.weights) if self.weights.endswith(SUFFIX) else checkpoint.packaged_path(self.weights)

    def path(self, name: str) -> Path:
        """The file of a version, whether it is there or not.

        Raises:
            ValueError: not a name that a version can have.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"version must be letters, digits and '._-', got {name[:80]!r}")
        return self.folder / f"{name}{SUFFIX}"

    def current(self) -> str:
        """What the file `current` names; `BASE` where there is no such file.

        Raises:
            ValueError: it does not hold the name of a version.
        """
        text = self._current_text()
        return text if text == BASE else self.path(text).name.removesuffix(SUFFIX)

    def served_path(self) -> Path:
        """The weights to serve: those of `current`, or the base where there is no such file.

        Where the app was started with weights of its own, `current` counts only if it descends from them.

        Raises:
            FileNotFoundError, ValueError: what `current` names is missing or cannot be read.
        """
        name = self.current()
        if name == BASE:
            return self.base_path
        path = self.path(name)
        if not path.is_file():
            raise FileNotFoundError(f"version {name} must be a file of {self.folder}, it is missing")
        if self.weights != "default":
            base, version = read_version(self.base_path), read_version(path)
            if base.sha256 not in (version.sha256, *version.lineage):
                logger.warning("version %s does not descend from %s, which is served instead", name, self.weights)
                return self.base_path
        return path

    def signature(self) -> tuple:
        """A value that changes whenever other weights may have to be served; costs one small read and two stats."""
        try:
            text = self._current_text()
            path = self.path(text) if text != BASE and _NAME.fullmatch(text) else None
            return text, _stamp(path), _stamp(self.base_path)
        except OSError as error:  # `served_path` will say it
            return (str(error),)

    def list(self) -> list[Version]:
        """All versions in the folder, the oldest first; files that cannot be read with their `problem`."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            if _NAME.fullmatch(path.name):
                try:
                    found.append(read_version(path))
                except ValueError as error:
                    found.append(Version(path.name.removesuffix(SUFFIX), "", {}, str(error)))
        return sorted(found, key=lambda version: (_number(version.name), version.name))

    def _current_text(self) -> str:
        try:
            return (self.folder / CURRENT).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return BASE

    # ---- switching ------------------------------------------------------------------------------------------------

    def add(self, trained: Checkpoint, parent: Checkpoint, notes: dict) -> str:
        """Stores `trained` as a version, which is not served yet; clears away earlier ones that never were.

        Args:
            trained: its version is replaced, its notes are kept and added to.
            parent: what it was trained from.
            notes: to add: `trained`, `scores`, `gate`, and `accepted`, whether the gate let it pass.

        Returns:
            The name of the version: a running number and the beginning of the SHA-256.
        """
        with self._switching():
            names = [version.name for version in self.list()]
            same = [name for name in names if _NUMBERED.fullmatch(name) and name.endswith(f"-{trained.sha256[:8]}")]
            number = 1 + max((_number(name) for name in names), default=0)
            name = same[-1] if same else f"v{number}-{trained.sha256[:8]}"
            lineage = [parent.sha256, *parent.notes.get("lineage", ())]
            self._clear_refused(keep=lineage)
            notes = {**trained.notes, "parent": parent.version, "lineage": lineage, **notes}
            checkpoint.save(self.path(name), replace(trained, version=name, notes=notes))
        return name

    def publish(self, name: str, expected: str) -> None:
        """Makes a version the current one, at the end of the training that made it.

        Args:
            expected: what `current` said when the training began.

        Raises:
            SwitchedError: it says something else by now.
        """
        with self._switching():
            if self._current_text() != expected:
                raise SwitchedError(
                    f"the served version was switched from {expected} to {self._current_text()} during the training"
                )
            self._switch(name)

    def roll_back(self, to: str = PREVIOUS) -> str:
        """Makes an older version the current one.

        Args:
            to: `PREVIOUS` (the parent of the current version), `BASE`, or the name of a version.

        Returns:
            What `current` says afterwards.

        Raises:
            FileNotFoundError, ValueError: there is no such version, or it cannot be used; nothing is changed then.
        """
        with self._switching():
            name = self._parent() if to == PREVIOUS else to
            checkpoint.load(self.base_path if name == BASE else self._existing(name))
            self._switch(name)
        return name

    def clear_temporary(self) -> None:
        """Removes what killed processes left half-written, anywhere under the folder; for the holder of the run."""
        with self._switching():
            clear_temporary(self.folder)

    def _clear_refused(self, keep: Sequence[str]) -> None:
        """Removes versions that the gate refused, unless somebody chose one all the same: the last one is enough."""
        versions = self.list()
        ancestors = {sha256 for version in versions for sha256 in version.lineage}.union(keep)
        for version in versions:
            refused = version.notes.get("accepted") is False
            if refused and version.name != self._current_text() and version.sha256 not in ancestors:
                self.path(version.name).unlink(missing_ok=True)

    def _parent(self) -> str:
        name = self.current()
        if name == BASE:
            raise ValueError(f"{CURRENT} of {self.folder} must name a version to go back from, it is the base already")
        version = read_version(self._existing(name))
        parent = str(version.notes.get("parent", ""))
        if _NAME.fullmatch(parent) and self.path(parent).is_file():
            return parent
        if version.lineage and version.lineage[0] == read_version(self.base_path).sha256:
            return BASE
        raise ValueError(f"parent {parent!r} of {name} must be in {self.folder} or be {self.weights!r}, it is neither")

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            known = ", ".join([BASE, *(version.name for version in self.list())])
            raise FileNotFoundError(f"version must be one of {known}, got {name!r}")
        return path

    def _switch(self, name: str) -> None:
        with atomic_path(self.folder / CURRENT) as temporary:
            temporary.write_text(f"{name}\n", encoding="utf-8")

    @contextlib.contextmanager
    def _switching(self) -> Iterator[None]:
        """Only one process at a time switches; what it did while it was killed is whole or not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".switch.lock", timeout=_SWITCH_SECONDS):
                yield
        except Timeout as error:
            raise RuntimeError(f"another process has been switching versions in {self.folder} for too long") from error


def read_version(path: Path) -> Version:
    """What the metadata of a file say; no tensor is read.

    Raises:
        ValueError: not one of our files, or not whole.
    """
    about = checkpoint.read_about(path)
    return Version(path.name.removesuffix(SUFFIX), about.sha256, about.notes)


def _number(name: str) -> int:
    numbered = _NUMBERED.fullmatch(name)
    return int(numbered[1]) if numbered else 0


def _stamp(path: Path | None) -> tuple | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        stat = os.stat(path) if path else None
    except OSError:
        stat = None
    if stat is None:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def describe(versions: Versions) -> str:
    """All versions as text, a line or two each, the one that `current` names marked with a star."""
    current = versions._current_text()
    lines = [f"{'*' if current == BASE else ' '} {BASE}: {versions.weights}"]
    for version in versions.list():
        lines.append(f"{'*' if version.name == current else ' '} {version.name}: {_origin(version)}")
        lines += [f"    {version.notes['gate']}"] if version.notes.get("gate") else []
    return "\n".join(lines)


def _origin(version: Version) -> str:
    if version.problem:
        return version.problem
    studies = len(version.notes.get("trained", ()))
    return f"from {version.notes.get('parent', '?')}, {version.notes.get('made', '?')}, {studies} studies in all"
