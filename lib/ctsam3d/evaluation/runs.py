"""Evaluations that can be stopped and taken up again, and dealt over processes: a file for each structure of a case.

``out/parts/<run>/<case>-<files>/`` holds ``names.json`` and a file a structure, with a picture where one was drawn.
`<run>` stands for the weights and all settings, `<files>` for the files of the case as they are, so that nothing of
another run, other weights, changed data or another version of the code is ever taken for a result of this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm

from ctsam3d.data.datasets import CaseFiles
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case
from ctsam3d.evaluation.overlay import draw_overlay
from ctsam3d.evaluation.report import Skipped
from ctsam3d.evaluation.simulate import Result, Target, simulate
from ctsam3d.evaluation.timing import peak_memory_mb
from ctsam3d.segmenter import Segmenter
from ctsam3d.training import processes

# Of the package: what decides a result.
_CODE = ("*.py", "model/*.py", "data/*.py", "evaluation/simulate.py", "evaluation/region_growing.py")
_WAIT = timedelta(days=30)  # for the slowest process
_KEY_DIGITS = 16


@dataclass(frozen=True)
class Settings:
    """What decides a result beside the data; other settings are another run.

    Attributes:
        weights_sha256: of the weights' tensors.
        hu_window, spacing_mm, feedback, peak_threshold: what else the weights bring, see `Checkpoint`.
        clicks: the numbers of clicks after which to score.
        seeds: of the users who click each structure.
        tolerance_mm: of NSD.
        user: who clicks, see `user_click`.
        expand: whether a click spreads to the patches around its own.
        device: its type.
        precision: what S computes in.
        code: of the source files that decide a result, see `code_sha256`.
    """

    weights_sha256: str
    hu_window: tuple[float, float]
    spacing_mm: float
    feedback: int
    peak_threshold: float
    clicks: tuple[int, ...]
    seeds: tuple[int, ...]
    tolerance_mm: float
    user: str
    expand: bool
    device: str
    precision: str
    code: str

    @classmethod
    def of(
        cls, segmenter: Segmenter, clicks: Sequence[int], seeds: int, tolerance_mm: float, user: str, expand: bool
    ) -> Settings:
        """Those of a segmenter and this code; `seeds` is how many users click, the others are as above."""
        info = segmenter.info
        weights = (info.sha256, info.hu_window, info.spacing_mm, info.feedback, info.peak_threshold)
        protocol = (tuple(clicks), tuple(range(seeds)), float(tolerance_mm), user, expand)
        return cls(
            *weights, *protocol, segmenter.device.type, str(segmenter.dtype).removeprefix("torch."), code_sha256()
        )

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:_KEY_DIGITS]


@dataclass(frozen=True)
class Part:
    """What there is of one structure of one case.

    Attributes:
        voxels: of the model grid, rounded down; 0 where the case has none.
        results: none where it was too small to be clicked.
        memory_mb: the most that the process, or its GPU, had in use until then.
    """

    voxels: int
    results: tuple[Result, ...] = ()
    memory_mb: float = 0.0


@cache
def code_sha256() -> str:
    """Of the source files of this package that decide a result."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(package.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Parts:
    """The results on disk of one run; several processes may share the folder, as long as none shares a case.

    Args:
        folder: made where missing.
        settings: of the run; written beside its parts, for people.
    """

    def __init__(self, folder: str | os.PathLike, settings: Settings):
        self.folder, self.settings = Path(folder) / settings.key, settings
        if not (self.folder / "settings.json").is_file():
            _write(self.folder / "settings.json", dataclasses.asdict(settings))

    def of(self, case: CaseFiles) -> CaseParts:
        """Those of a case, as its files are now.

        Raises:
            OSError: a file of the case is not there.
        """
        return CaseParts(self.folder / f"{quote(case.name, safe='')}-{case.fingerprint()[:_KEY_DIGITS]}")


@dataclass(frozen=True)
class CaseParts:
    """The results on disk of one case in one run."""

    folder: Path

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the structures of the case, where it was read before."""
        names = _read(self.folder / "names.json")
        return None if names is None else tuple(names)

    def set_names(self, names: Sequence[str]) -> None:
        _write(self.folder / "names.json", list(names))

    def get(self, structure: str) -> Part | None:
        """What there is of a structure; None where there is nothing, or nothing that can be read."""
        values = _read(self._file(structure))
        if values is None:
            return None
        try:
            results = tuple(Result(**result) for result in values["results"])
            return Part(int(values["voxels"]), results, float(values["memory_mb"]))
        except (KeyError, TypeError, ValueError):
            return None

    def set(self, structure: str, part: Part) -> None:
        _write(self._file(structure), dataclasses.asdict(part))

    def picture(self, structure: str) -> Path:
        """Where the picture of a structure lies, if one was drawn."""
        return self._file(structure).with_suffix(".png")

    def _file(self, structure: str) -> Path:
        return self.folder / f"structure-{quote(structure, safe='')}.json"


@dataclass(frozen=True)
class Gathered:
    """What there is of a run.

    Attributes:
        results: in the order of cases, structures, seeds and clicks.
        skipped: what was left out as too small.
        memory_mb: see `Part`, the most of all; 0 where nothing was clicked.
    """

    results: list[Result]
    skipped: list[Skipped]
    memory_mb: float = 0.0


@dataclass(frozen=True)
class Run:
    """Users who click through cases, and what comes of it.

    Attributes:
        parts: where the results go.
        structures: names; None for all of a case.
        min_voxels: structures with fewer voxels of the model grid are not clicked.
        pictures: whether to draw an overlay of each structure after the clicks of the first seed.
    """

    parts: Parts
    structures: Sequence[str] | None = None
    min_voxels: int = 1
    pictures: bool = False

    def do(self, segmenter: Segmenter, cases: Sequence[CaseFiles]) -> dict[str, str]:
        """Do what is not done yet of some cases; a progress bar goes along.

        Returns:
            Case to reason, of those that cannot be used.
        """
        failed: dict[str, str] = {}
        title = f"process {processes.rank()}" if processes.count() > 1 else "cases"
        with tqdm(cases, desc=title, unit="case") as bar:
            for files in bar:
                bar.set_postfix_str(files.name)
                try:
                    self._do(segmenter, files)
                except (ValueError, OSError) as error:
                    failed[files.name] = str(error)
        return failed

    def gather(self, cases: Sequence[CaseFiles]) -> Gathered:
        """What there is of some cases.

        A structure that a case does not have is left out silently, unless it was asked for by name.

        Raises:
            ValueError: something is not done.
        """
        results: list[Result] = []
        skipped: list[Skipped] = []
        memory_mb = 0.0
        for files in cases:
            own = self.parts.of(files)
            if (names := own.names) is None:
                raise ValueError(f"parts {own.folder} must hold the results of case {files.name}, they do not")
            for structure in self._wanted(names):
                part = own.get(structure) if structure in names else Part(0)
                if part is None:
                    raise ValueError(f"parts {own.folder} must hold the results of {structure}, they do not")
                if part.voxels and part.voxels >= self.min_voxels:
                    results += part.results
                    memory_mb = max(memory_mb, part.memory_mb)
                elif part.voxels or self.structures:
                    skipped.append(Skipped(files.name, structure, part.voxels))
        return Gathered(results, skipped, memory_mb)

    def picture(self, segmenter: Segmenter, files: CaseFiles, structure: str) -> Path:
        """The overlay of a structure after the clicks of the first seed, drawn now where it is not there yet.

        Raises:
            as `CaseFiles.read`.
        """
        path = self.parts.of(files).picture(structure)
        if not path.is_file():
            case = files.read()
            target = Target.of(case.mask(structure), case.volume.spacing_ijk_mm)
            self._clicked(segmenter, case, structure, target, self.parts.settings.seeds[0], path)
        return path

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self.structures or names))

    def _do(self, segmenter: Segmenter, files: CaseFiles) -> None:
        """What is not done yet of a case, which is read only where something is left to do."""
        own = self.parts.of(files)
        if own.names is not None and not self._left(own):
            return
        case = files.read()
        own.set_names(case.names)
        with tqdm(self._left(own), desc=case.name, unit="structure", leave=False) as bar:
            for structure in bar:
                bar.set_postfix_str(structure)
                picture = own.picture(structure) if self.pictures else None
                own.set(structure, self._part(segmenter, case, structure, picture))

    def _left(self, own: CaseParts) -> list[str]:
        """The structures of a case that are still to be done."""
        names = own.names or ()
        return [name for name in self._wanted(names) if name in names and not self._done(own, name)]

    def _done(self, own: CaseParts, structure: str) -> bool:
        part = own.get(structure)
        if part is None or part.voxels < self.min_voxels:
            return part is not None
        return bool(part.results) and (not self.pictures or own.picture(structure).is_file())

    def _part(self, segmenter: Segmenter, case: Case, structure: str, picture: Path | None) -> Part:
        settings, volume = self.parts.settings, case.volume
        target = Target.of(case.mask(structure), volume.spacing_ijk_mm)
        voxel_mm3 = abs(float(np.linalg.det(volume.affine_ras_mm[:3, :3])))
        voxels = int(target.voxels * voxel_mm3 / segmenter.info.spacing_mm**3)
        if voxels < max(1, self.min_voxels):
            return Part(voxels)
        results: list[Result] = []
        for seed in settings.seeds:
            own_picture = picture if seed == settings.seeds[0] else None
            results += self._clicked(segmenter, case, structure, target, seed, own_picture)
        return Part(voxels, tuple(results), peak_memory_mb(segmenter.device))

    def _clicked(
        self, segmenter: Segmenter, case: Case, structure: str, target: Target, seed: int, picture: Path | None
    ) -> list[Result]:
        """What one user's clicks bring; `picture` is where to draw the last mask, None for nowhere."""
        settings, volume = self.parts.settings, case.volume
        session = segmenter.session(volume, settings.expand)
        about = (case.name, structure, seed, settings.clicks, settings.tolerance_mm, settings.user)
        results = simulate(session, target, *about)
        if picture is not None:
            title = f"{case.name} · {structure} · {len(session.clicks)} clicks · DSC {results[-1].dsc:.3f}"
            clicks = session.clicks
            draw_overlay(picture, volume, session.mask(), clicks, clicks[0].ijk, title, target.on(volume.box_ijk))
        return results


@contextlib.contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; yields the device of this one ("cuda" gets its number).

    Each works alone until all wait for the slowest at the end, which may be days later; one that dies ends the others.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device == "cuda" and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    distributed.init_process_group("gloo", timeout=_WAIT)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def dealt(cases: Sequence[CaseFiles]) -> Sequence[CaseFiles]:
    """The cases of this process."""
    return cases[processes.rank() :: processes.count()]


def together(failed: dict[str, str]) -> dict[str, str]:
    """The failures of all processes; waits until each has got here."""
    if not distributed.is_initialized():
        return failed
    found: list = [None] * processes.count()
    distributed.all_gather_object(found, failed)
    return {case: reason for own in found for case, reason in own.items()}


def _read(path: Path):
    """The values in a JSON file; None where it is not there or holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write(path: Path, values) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")
