"""Geometry as frozen values: volumes, boxes, clicks, and the model grid.

Two frames, always said in the name of a variable:

* ``ijk``: voxel index in the order of the file's array; ``affine_ras_mm`` takes it to RAS world millimetres.
* ``zyx``: voxel index on the model grid, which is isotropic and patient-aligned: x grows to the Left, y to Posterior,
  z to Superior. Continuous indices are floats; the centre of voxel 3 is 3.0.

This module alone converts between them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

OUTSIDE_HU = -1024.0  # what lies outside a scan: air

# Rows take RAS to LPS and then reverse the axis order, so that world (r, a, s) becomes (z, y, x) = (s, -a, -r).
_ZYX_FROM_RAS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, ``start <= index < stop``; the frame is that of the variable's name."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extent per axis in voxels; 0 where the box is empty."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop))

    @property
    def empty(self) -> bool:
        return min(self.shape) == 0

    def contains(self, index) -> bool:
        return all(a <= v < b for a, v, b in zip(self.start, index, self.stop))

    def depth(self, index) -> int:
        """Voxels between `index` and the nearest face; 0 in the outermost layer, negative outside."""
        return min(min(v - a, b - 1 - v) for a, v, b in zip(self.start, index, self.stop))

    def intersection(self, other: Box) -> Box:
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(max(a, b) for a, b in zip(start, map(min, self.stop, other.stop))))

    def union(self, other: Box) -> Box:
        """The smallest box that holds both; an empty box adds nothing."""
        if self.empty:
            return other
        if other.empty:
            return self
        return Box(tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop)))

    def grown(self, voxels: int) -> Box:
        return Box(tuple(a - voxels for a in self.start), tuple(b + voxels for b in self.stop))

    def slices(self, inside: Box | None = None) -> tuple[slice, slice, slice]:
        """Index expression for this box in an array that spans `inside` (default: an array that starts at 0)."""
        origin = inside.start if inside else (0, 0, 0)
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan in the file's own array order.

    Args:
        array_ijk: 3D array in Hounsfield units, any real dtype.
        affine_ras_mm: (4, 4), voxel index (i, j, k, 1) to RAS world millimetres.

    Raises:
        TypeError: the array is not numeric.
        ValueError: not 3D, empty, or an affine that is not finite or not invertible.
    """

    array_ijk: np.ndarray
    affine_ras_mm: np.ndarray

    def __post_init__(self):
        array, affine = np.asarray(self.array_ijk), np.asarray(self.affine_ras_mm, dtype=np.float64)
        if array.dtype.kind not in "iufb":
            raise TypeError(f"array_ijk must hold real numbers, got dtype {array.dtype}")
        if array.ndim != 3:
            raise ValueError(f"array_ijk must be 3D, got shape {array.shape}")
        if min(array.shape) == 0:
            raise ValueError(f"array_ijk must not be empty, got shape {array.shape}")
        if affine.shape != (4, 4):
            raise ValueError(f"affine_ras_mm must have shape (4, 4), got {affine.shape}")
        if not np.isfinite(affine).all():
            raise ValueError(f"affine_ras_mm must be finite, got {affine.tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError(f"affine_ras_mm must be invertible, got {affine.tolist()}")
        object.__setattr__(self, "array_ijk", array)
        object.__setattr__(self, "affine_ras_mm", affine)

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        return self.array_ijk.shape

    @property
    def spacing_ijk_mm(self) -> tuple[float, float, float]:
        return tuple(float(s) for s in np.linalg.norm(self.affine_ras_mm[:3, :3], axis=0))

    @property
    def box_ijk(self) -> Box:
        return Box((0, 0, 0), self.shape_ijk)


@dataclass(frozen=True)
class Click:
    """One click of a user: voxel index in the file's array order, and whether that voxel belongs to the structure."""

    ijk: tuple[int, int, int]
    positive: bool = True


def check_click_ijk(ijk, shape_ijk: tuple[int, int, int], argument: str = "click") -> tuple[int, int, int]:
    """The click as three Python ints inside the volume.

    Whole-valued floats count as integers, because JSON clients send them.

    Raises:
        TypeError: not a sequence of three numbers.
        ValueError: not three, not finite, not whole, or outside the volume.
    """
    if isinstance(ijk, (str, bytes)) or not isinstance(ijk, (Sequence, np.ndarray)) or getattr(ijk, "ndim", 1) == 0:
        raise TypeError(f"{argument} must be three voxel indices (i, j, k), got {ijk!r}")
    values = list(ijk)
    if len(values) != 3:
        raise ValueError(f"{argument} must be three voxel indices (i, j, k), got {len(values)}: {values!r}")
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"{argument} must hold numbers, got {value!r} in {values!r}")
        if not isinstance(value, numbers.Integral) and not math.isfinite(value):  # an int may exceed every float
            raise ValueError(f"{argument} must be finite, got {value!r} in {values!r}")
        if value != int(value):
            raise ValueError(f"{argument} must hold whole voxel indices, got {value!r} in {values!r}")
    index = tuple(int(value) for value in values)
    if not Box((0, 0, 0), tuple(shape_ijk)).contains(index):
        raise ValueError(f"{argument} {index} is outside the volume {tuple(shape_ijk)}")
    return index


@dataclass(frozen=True, eq=False)
class ModelGrid:
    """The isotropic zyx grid over one scan, on which patches are cut and probabilities are blended.

    Voxel (0, 0, 0) lies half a model voxel inside the scan's corner of least z, y and x, so that a scan that already
    has the model's spacing and axes coincides with its grid.

    Attributes:
        spacing_mm: edge of a model voxel.
        shape_zyx: the smallest grid that covers every voxel of the scan whole.
        zyx_from_ijk: (4, 4), continuous voxel index of the scan to continuous index on this grid.
    """

    spacing_mm: float
    shape_zyx: tuple[int, int, int]
    zyx_from_ijk: np.ndarray

    @classmethod
    def of(cls, volume: Volume, spacing_mm: float) -> ModelGrid:
        """The grid of `volume` at `spacing_mm` millimetres."""
        linear = _ZYX_FROM_RAS @ volume.affine_ras_mm[:3, :3] / spacing_mm
        shape = np.array(volume.shape_ijk, dtype=np.float64)
        # The rounding of a header is not an oblique scan: what moves no voxel by 0.001 model voxel counts as zero.
        linear[np.abs(linear) * shape < 0.001 * (np.abs(linear) < np.abs(linear).max(axis=0))] = 0.0
        corners_ijk = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij")).reshape(3, -1)
        corners_zyx = linear @ corners_ijk
        low, high = corners_zyx.min(axis=1), corners_zyx.max(axis=1)
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = -low - 0.5
        extent = tuple(int(n) for n in np.maximum(1, np.ceil(high - low - 1e-6)))
        return cls(float(spacing_mm), extent, matrix)

    @cached_property
    def ijk_from_zyx(self) -> np.ndarray:
        """(4, 4), the inverse of `zyx_from_ijk`."""
        inverse = np.linalg.inv(self.zyx_from_ijk)
        if one_axis_per_row(self.zyx_from_ijk):
            inverse[:3, :3] *= self.zyx_from_ijk[:3, :3].T != 0  # exact zeros keep the resampling separable
        return inverse

    @property
    def box_zyx(self) -> Box:
        return Box((0, 0, 0), self.shape_zyx)

    def to_zyx(self, ijk) -> tuple[float, float, float]:
        """Continuous index on this grid of a (continuous) voxel index of the scan."""
        return tuple(float(v) for v in self.zyx_from_ijk[:3, :3] @ np.asarray(ijk, float) + self.zyx_from_ijk[:3, 3])

    def voxel_zyx(self, ijk) -> tuple[int, int, int]:
        """The model voxel nearest to a voxel of the scan: at most half a model voxel away per axis."""
        nearest = (math.floor(v + 0.5) for v in self.to_zyx(ijk))
        return tuple(min(max(v, 0), n - 1) for v, n in zip(nearest, self.shape_zyx))

    def patch_zyx(self, centre_zyx: tuple[int, int, int], size: int) -> Box:
        """The patch of `size` voxels a side around `centre_zyx`, moved inside the grid where the grid is large enough.

        An axis of the grid that is shorter than the patch is centred in it.
        """
        start = []
        for centre, extent in zip(centre_zyx, self.shape_zyx):
            if extent <= size:
                start.append((extent - size) // 2)
            else:
                start.append(min(max(centre - size // 2, 0), extent - size))
        return Box(tuple(start), tuple(s + size for s in start))

    def box_ijk_around(self, box_zyx: Box, shape_ijk: tuple[int, int, int]) -> Box:
        """The scan's voxels that lie within one model voxel of `box_zyx`: all that a change inside it can touch."""
        faces = [(a - 1.0, b + 0.0) for a, b in zip(box_zyx.start, box_zyx.stop)]
        corners = np.array(np.meshgrid(*faces, indexing="ij")).reshape(3, -1)
        ijk = self.ijk_from_zyx[:3, :3] @ corners + self.ijk_from_zyx[:3, 3:]
        start = tuple(int(v) for v in np.floor(ijk.min(axis=1)))
        stop = tuple(int(v) + 1 for v in np.ceil(ijk.max(axis=1)))
        return Box(start, stop).intersection(Box((0, 0, 0), tuple(shape_ijk)))


def one_axis_per_row(matrix: np.ndarray) -> bool:
    """Whether each axis that comes out depends on one axis that goes in: the frames are parallel."""
    return bool((np.count_nonzero(matrix[:3, :3], axis=1) == 1).all())
