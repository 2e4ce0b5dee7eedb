"""Every version of a file that was ever saved under one name: numbered from 1, each with what was said about it.

``<root>/<kind>/<id>/0003.nii.gz`` and ``0003.json``. A version is complete, on the disk and never changed before anyone
refers to it; the file that is in use is a second name of the newest one, so that it takes no space of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ctsam3d.data.files import atomic_path, clear_temporary, make_ordinary, sync_folder
from ctsam3d.labelapp.records import link_or_copy, second_name

STAGED = ".staged-"  # begins the names of copies that become versions; the id of the process follows
PUBLISHED = ".publishing-"  # begins the names of second names that are about to be in use
_NUMBERED = re.compile(r"(\d{4,})\.json")


@dataclass(frozen=True)
class SavedVersion:
    """One version.

    Attributes:
        number: from 1.
        ext: extension of the file.
        info: what was said about it when it was saved.
        path: of the file.
    """

    number: int
    ext: str
    info: dict[str, Any]
    path: Path


class History:
    """The versions below `root`; whoever adds to them holds the lock of the records.

    Args:
        root: on the same disk as the files in use.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def folder(self, kind: str, name: str) -> Path:
        """Where the versions of one file lie; `kind` and `name` have been checked to be names."""
        return self.root / kind / name

    def stage(self, source: str | os.PathLike, ext: str) -> Path:
        """A copy of `source` that is on the disk, for `add`; whoever calls removes it if that fails."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.root, prefix=f"{STAGED}{os.getpid()}-", suffix=ext)
        with open(handle, "wb") as target, open(source, "rb") as original:
            shutil.copyfileobj(original, target, 2**20)
            target.flush()
            os.fsync(target.fileno())
        make_ordinary(name)
        return Path(name)

    def newest(self, kind: str, name: str) -> int:
        """Number of the newest version, 0 where there is none."""
        return max(self._numbers(kind, name), default=0)

    def has(self, kind: str, name: str, number: int) -> bool:
        """Whether there is a version of that number."""
        return (self.folder(kind, name) / f"{number:04d}.json").exists()

    def add(self, kind: str, name: str, staged: Path, ext: str, info: Mapping[str, Any]) -> SavedVersion:
        """The staged file as the next version; its description is written last and makes it count."""
        folder = self.folder(kind, name)
        folder.mkdir(parents=True, exist_ok=True)
        number = self.newest(kind, name) + 1
        path = folder / f"{number:04d}{ext}"
        os.replace(staged, path)
        info = {**info, "version": number}
        with atomic_path(folder / f"{number:04d}.json") as temporary:  # whose end puts the folder on the disk, too
            temporary.write_text(json.dumps({"ext": ext, "info": info}, default=str) + "\n", encoding="utf-8")
        return SavedVersion(number, ext, info, path)

    def keep(self, kind: str, name: str, current: Path, ext: str, info: Mapping[str, Any]) -> None:
        """Takes the file in use as a version, before another one takes its place."""
        self.root.mkdir(parents=True, exist_ok=True)
        staged = self.root / f"{STAGED}{os.getpid()}-kept-{name}{ext}"
        staged.unlink(missing_ok=True)
        link_or_copy(current, staged)
        self.add(kind, name, staged, ext, info)

    def adopt(self, kind: str, name: str, current: Path, ext: str, info: Mapping[str, Any]) -> None:
        """Takes a file that was in use before it had versions as the first one."""
        if self.newest(kind, name) == 0 and current.is_file():
            self.keep(kind, name, current, ext, info)

    def get(self, kind: str, name: str, number: int) -> SavedVersion | None:
        """A version; None where it is not there, or not whole."""
        folder = self.folder(kind, name)
        try:
            values = json.loads((folder / f"{number:04d}.json").read_text(encoding="utf-8"))
            ext, info = values["ext"], dict(values["info"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        path = folder / f"{number:04d}{ext}"
        return SavedVersion(number, ext, info, path) if path.is_file() else None

    def all(self, kind: str, name: str) -> list[SavedVersion]:
        """Every version, the oldest first."""
        return [v for n in sorted(self._numbers(kind, name)) if (v := self.get(kind, name, n)) is not None]

    def publish(self, version: SavedVersion, target: Path) -> None:
        """The version becomes the file in use."""
        target.parent.mkdir(parents=True, exist_ok=True)
        second_name(version.path, target, PUBLISHED)
        sync_folder(target.parent)

    def forget(self, name: str) -> None:
        """Removes all versions of every kind under one name."""
        for kind in self.root.iterdir() if self.root.is_dir() else ():
            if kind.is_dir():
                shutil.rmtree(self.folder(kind.name, name), ignore_errors=True)

    def clear(self) -> None:
        """Removes what killed processes have left half done."""
        for path in self.root.glob(f"{STAGED}*"):
            process = path.name.removeprefix(STAGED).partition("-")[0]
            if not process.isdecimal() or not psutil.pid_exists(int(process)):
                path.unlink(missing_ok=True)
        clear_temporary(self.root)

    def _numbers(self, kind: str, name: str) -> list[int]:
        try:
            names = os.listdir(self.folder(kind, name))
        except OSError:
            return []
        return [int(match[1]) for entry in names if (match := _NUMBERED.fullmatch(entry))]
