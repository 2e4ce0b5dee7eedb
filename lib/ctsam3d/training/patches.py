"""Training volumes on the model grid, and the patches drawn from them. All arrays are zyx at the model's spacing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ctsam3d.data.io import Case
from ctsam3d.resample import crop_hu, crop_labels
from ctsam3d.training.config import Augmentation
from ctsam3d.volume import OUTSIDE_HU, ModelGrid

ANCHORS = 4096  # voxels kept per structure as places to draw a patch at


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """A scan and its label map, resampled to the model grid.

    Attributes:
        hu_zyx: int16.
        labels_zyx: uint8 or uint16, 0 where nothing is labelled.
        anchors: label value to (N, 3) voxels of it, at most `ANCHORS`, drawn at random.
        sizes: label value to its number of voxels.
        structures: names of what is in `sizes`.
    """

    name: str
    hu_zyx: np.ndarray
    labels_zyx: np.ndarray
    anchors: dict[int, np.ndarray]
    sizes: dict[int, int]
    structures: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """One patch: HU as float32 and the bool mask of the structure that was drawn, both (D, H, W)."""

    hu: np.ndarray
    target: np.ndarray


def training_volume(case: Case, spacing_mm: float, min_voxels: int = 50) -> TrainingVolume:
    """`case` on the model grid; of structures that overlap the later one wins, those under `min_voxels` are left out.

    Raises:
        ValueError: no structure is left.
    """
    grid = ModelGrid.of(case.volume, spacing_mm)
    labels_ijk = np.zeros(case.volume.shape_ijk, np.uint16)
    for value, name in enumerate(case.names, start=1):
        labels_ijk[case.mask(name)] = value
    labels = crop_labels(labels_ijk, grid, grid.box_zyx)
    hu = np.rint(crop_hu(case.volume, grid, grid.box_zyx)).astype(np.int16)
    anchors, sizes, rng = {}, {}, np.random.default_rng(0)
    order = np.argsort(labels, axis=None, kind="stable")
    values, first, counts = np.unique(labels.ravel()[order], return_index=True, return_counts=True)
    for value, start, count in zip(values, first, counts):
        if value and count >= min_voxels:
            flat = order[start : start + count]
            chosen = flat if count <= ANCHORS else rng.choice(flat, ANCHORS, replace=False)
            anchors[int(value)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
            sizes[int(value)] = int(count)
    if not anchors:
        raise ValueError(f"case {case.name} must hold a structure of at least {min_voxels} model voxels, it has none")
    structures = tuple(case.names[value - 1] for value in sizes)
    return TrainingVolume(case.name, hu, labels, anchors, sizes, structures)


def draw_sample(volume: TrainingVolume, size: int, power: float, augmentation: Augmentation, rng) -> Sample:
    """A patch around a structure: an anchor among its voxels, a centre at most half a patch per axis from it."""
    values = sorted(volume.sizes)
    weights = np.array([volume.sizes[v] for v in values], float) ** power
    value = values[rng.choice(len(values), p=weights / weights.sum())]
    anchors = volume.anchors[value]
    anchor = anchors[rng.integers(len(anchors))]
    centre = anchor + rng.integers(-(size // 2) + 1, size // 2, 3)
    hu, target = _cut(volume, value, centre, size, augmentation, rng)
    if not target.any():  # a rotation can turn the anchor out of the patch
        hu, target = _cut(volume, value, anchor, size, replace(augmentation, spatial=0.0), rng)
    return Sample(_change_intensity(hu, augmentation, rng), target)


def _cut(volume, value: int, centre, size: int, augmentation: Augmentation, rng) -> tuple[np.ndarray, np.ndarray]:
    """The patch around `centre`, turned, scaled and flipped; voxels beyond the scan are air without structure."""
    if rng.random() < augmentation.spatial:
        axis = rng.normal(size=3)
        angle = np.radians(rng.uniform(-augmentation.rotation_degrees, augmentation.rotation_degrees))
        matrix = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
        matrix = matrix * rng.uniform(1 - augmentation.scale, 1 + augmentation.scale)
        reach = int(np.ceil(np.abs(matrix).sum(axis=1).max() * size / 2)) + 2
        hu, target = _crop(volume, value, centre, 2 * reach)
        offset = reach - matrix @ np.full(3, size / 2)
        hu = ndimage.affine_transform(hu, matrix, offset, (size,) * 3, order=1, mode="nearest")
        target = ndimage.affine_transform(target, matrix, offset, (size,) * 3, order=1, mode="constant") > 0.5
    else:
        hu, target = _crop(volume, value, centre, size)
        target = target > 0.5
    flips = tuple(axis for axis in range(3) if rng.random() < augmentation.flip)
    return np.flip(hu, flips), np.flip(target, flips)


def _crop(volume: TrainingVolume, value: int, centre, size: int) -> tuple[np.ndarray, np.ndarray]:
    start = np.asarray(centre) - size // 2
    shape = np.array(volume.hu_zyx.shape)
    inside = tuple(slice(max(0, a), min(n, a + size)) for a, n in zip(start, shape))
    padding = [(s.start - a, a + size - s.stop) for s, a in zip(inside, start)]
    hu = np.pad(volume.hu_zyx[inside].astype(np.float32), padding, constant_values=OUTSIDE_HU)
    return hu, np.pad((volume.labels_zyx[inside] == value).astype(np.float32), padding)


def _change_intensity(hu: np.ndarray, augmentation: Augmentation, rng) -> np.ndarray:
    hu = np.array(hu, dtype=np.float32)
    if rng.random() < augmentation.blur:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0, augmentation.blur_voxels))
    if rng.random() < augmentation.intensity:
        hu *= 1 + rng.uniform(-augmentation.factor, augmentation.factor)
        hu += rng.uniform(-augmentation.shift_hu, augmentation.shift_hu)
    if rng.random() < augmentation.noise:
        hu += rng.uniform(0, augmentation.noise_hu) * rng.standard_normal(hu.shape, dtype=np.float32)
    return hu
