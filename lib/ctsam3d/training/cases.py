"""Cases as training volumes: resampled to the model grid once, kept on disk, mapped into memory when drawn from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, read_case
from ctsam3d.model.build import SPACING_MM
from ctsam3d.resample import crop_hu, crop_labels
from ctsam3d.training.pairs import TrainingVolume
from ctsam3d.volume import ModelGrid, Volume

log = logging.getLogger(__name__)

ANCHORS = 4096  # voxels kept per structure as places to draw a pair at
MIN_VOXELS = 50  # of the model grid; smaller structures are left out


class _OnDisk:
    """A .npy file that is opened for every look into it, so that a run over thousands holds no thousands of files."""

    def __init__(self, path: Path):
        self.path = path
        self.shape = np.load(path, mmap_mode="r").shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(np.load(self.path, mmap_mode="r"), dtype)


class VolumeCache:
    """Training volumes in a folder, one sub-folder each, named by content. Two processes may share a folder.

    Args:
        folder: made where missing.
        min_voxels: a structure with fewer voxels of the model grid is left out.
    """

    def __init__(self, folder: str | os.PathLike, spacing_mm: float = SPACING_MM, min_voxels: int = MIN_VOXELS):
        self.folder, self.spacing_mm, self.min_voxels = Path(folder), spacing_mm, min_voxels

    def get(self, case: Case) -> TrainingVolume:
        """`case` on the model grid; where structures overlap the later one wins.

        Raises:
            ValueError: no structure of `min_voxels` is left, or the case cannot be read.
        """
        labels_ijk = _label_map(case)
        content = self._content(case, labels_ijk)
        folder = self.folder / content
        if not (folder / "about.json").is_file():  # written last
            self._write(case, labels_ijk, folder)
        return self._read(folder, case.name)

    def _content(self, case: Case, labels_ijk: np.ndarray) -> str:
        digest = hashlib.sha256(json.dumps([list(case.names), self.spacing_mm, self.min_voxels]).encode())
        for array in (case.volume.array_ijk, case.volume.affine_ras_mm, labels_ijk):
            digest.update(str((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def _write(self, case: Case, labels_ijk: np.ndarray, folder: Path) -> None:
        grid = ModelGrid.of(case.volume, self.spacing_mm)
        labels = crop_labels(labels_ijk, grid, grid.box_zyx)
        anchors = _anchors(labels, self.min_voxels)
        if not anchors:
            raise ValueError(
                f"case {case.name} must hold a structure of at least {self.min_voxels} model voxels, it has none"
            )
        hu = np.rint(crop_hu(case.volume, grid, grid.box_zyx)).clip(-32768, 32767).astype(np.int16)
        names = [case.names[value - 1] for value in anchors]
        about = {"values": list(anchors), "names": names, "sizes": [int(count) for count, _ in anchors.values()]}
        arrays = {"hu_zyx": hu, "labels_zyx": labels, **{f"anchors_{v}": places for v, (_, places) in anchors.items()}}
        for name, array in arrays.items():
            with atomic_path(folder / f"{name}.npy") as path:
                np.save(path, array)
        with atomic_path(folder / "about.json") as path:
            path.write_text(json.dumps(about))

    def _read(self, folder: Path, name: str) -> TrainingVolume:
        about = json.loads((folder / "about.json").read_text())
        hu, labels = (_OnDisk(folder / f"{array}.npy") for array in ("hu_zyx", "labels_zyx"))
        anchors = {value: _OnDisk(folder / f"anchors_{value}.npy") for value in about["values"]}
        sizes = dict(zip(about["values"], about["sizes"]))
        return TrainingVolume(name, folder.name, hu, labels, anchors, sizes, tuple(about["names"]))


def as_case(volume: TrainingVolume, spacing_mm: float = SPACING_MM) -> Case:
    """A training volume as a scan on the model grid, whatever has become of the files that it was made from."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])  # i, j, k to Left, Posterior, Superior
    labels_ijk = np.asarray(volume.labels_zyx).transpose(2, 1, 0)
    masks = {name: partial(np.equal, labels_ijk, value) for name, value in zip(volume.structures, volume.sizes)}
    return Case(volume.name, Volume(np.asarray(volume.hu_zyx).transpose(2, 1, 0), affine), masks)


def load_group(folder: str | os.PathLike, cache: VolumeCache) -> list[TrainingVolume]:
    """The volumes of a folder, which is a case itself or holds cases.

    Raises:
        ValueError: no case there, or one that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"data must be folders, got {folder}")
    cases = [folder] if _is_case(folder) else sorted(f for f in folder.iterdir() if f.is_dir() and _is_case(f))
    if not cases:
        raise ValueError(f"data {folder} must be a case or hold cases (ct.nii.gz with its labels), it holds none")
    volumes = [cache.get(read_case(case)) for case in cases]
    log.info("%s: %d volumes", folder, len(volumes))
    return volumes


def load_groups(folders: Sequence[str | os.PathLike], cache: VolumeCache) -> list[list[TrainingVolume]]:
    """`load_group` of each folder."""
    return [load_group(folder, cache) for folder in folders]


def _is_case(folder: Path) -> bool:
    return (folder / "seg.nii.gz").is_file() or (folder / "segmentations").is_dir()


def _label_map(case: Case) -> np.ndarray:
    """Uint8, or uint16 with more than 255 structures; (I, J, K), value v is the structure names[v - 1]."""
    labels_ijk = np.zeros(case.volume.shape_ijk, np.uint8 if len(case.names) < 256 else np.uint16)
    for value, name in enumerate(case.names, start=1):
        labels_ijk[case.mask(name)] = value
    return labels_ijk


def _anchors(labels_zyx: np.ndarray, min_voxels: int) -> dict[int, tuple[int, np.ndarray]]:
    """Of each label value with enough voxels: their number, and at most `ANCHORS` of them (N, 3), in random order."""
    found, rng = {}, np.random.default_rng(0)
    order = np.argsort(labels_zyx, axis=None, kind="stable")
    values, first, counts = np.unique(labels_zyx.ravel()[order], return_index=True, return_counts=True)
    for value, start, count in zip(values, first, counts):
        if value and count >= min_voxels:
            flat = order[start : start + count]
            chosen = flat if count <= ANCHORS else rng.choice(flat, ANCHORS, replace=False)
            places = np.stack(np.unravel_index(chosen, labels_zyx.shape), axis=1)
            found[int(value)] = (int(count), places.astype(np.int32))
    return found
