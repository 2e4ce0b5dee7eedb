"""Where the patient is in a CT: the body without table, clothes and outside air; lungs and bowel gas belong to it.

Arrays are in the patient-aligned order ``zyx`` (z to Superior, y to Posterior, x to Left), on any spacing.
"""

from __future__ import annotations

import cc3d
import edt
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

AIR_HU = -300.0  # below: lung, gas or outside; half way between soft tissue and well aerated lung
_LUNG_HU = -950.0  # the median of outside air lies below, that of lung above
_BETWEEN_SHARE = 0.35  # of a lung lies between parts of the body, even where two sides cut it; of a mattress less
_PLATE_MM = 3.5  # what is thinner than about twice this is no body: table shells, blankets
_LEAST_DEPTH_MM = 10.0  # a part that is nowhere deeper is a plate still: a board, a cushion's cover
_LEAST_SHARE = 0.03  # of the largest part; a second leg or an arm is more
_ZYX_CODES = "SPL"


def zyx_from_ijk(affine_ras_mm: np.ndarray) -> np.ndarray:
    """The orientation (nibabel) that takes an array of the scan to ``zyx``, oblique axes to the nearest of the body."""
    return ornt_transform(io_orientation(affine_ras_mm), axcodes2ornt(_ZYX_CODES))


def ijk_from_zyx(affine_ras_mm: np.ndarray) -> np.ndarray:
    """The inverse of `zyx_from_ijk`, for the same affine."""
    return ornt_transform(axcodes2ornt(_ZYX_CODES), io_orientation(affine_ras_mm))


def turned(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """The array in another axis order and direction: whole voxels move, nothing is interpolated."""
    return np.ascontiguousarray(apply_orientation(array, orientation))


def turned_spacing(spacing_ijk_mm, orientation: np.ndarray) -> tuple[float, float, float]:
    """Voxel size (mm) along the axes that `turned` yields."""
    out = [0.0, 0.0, 0.0]
    for spacing, (axis, _) in zip(spacing_ijk_mm, orientation):
        out[int(axis)] = float(spacing)
    return tuple(out)


def body_region(hu_zyx: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> np.ndarray:
    """The body: its largest parts (trunk, each leg, each arm) with all air that they enclose.

    A part must be at least 3 % of the largest; plates thinner than about 7 mm that nothing thicker carries are
    taken for the table. Air is inside where it does not reach the sides of the scan; where it does, as lungs of a
    narrow field of view, it must look like lung and lie between parts of the body.

    Args:
        hu_zyx: (Z, Y, X) HU, best at about 3 mm, where noise has been averaged away.

    Returns:
        (Z, Y, X) bool, all False where there is nothing but air.
    """
    solid = _without_plates(hu_zyx > AIR_HU, spacing_zyx_mm)
    if not solid.any():
        return solid
    solid = _largest_parts(solid)
    air, count = cc3d.connected_components(~solid, connectivity=6, return_N=True)
    open_air = np.zeros(count + 1, bool)
    between = _between(solid, axis=1) | _between(solid, axis=2)
    for label in np.unique(np.concatenate([air[:, side].ravel() for side in (0, -1)]
                                          + [air[:, :, side].ravel() for side in (0, -1)])):  # fmt: skip
        if label:
            inside = air == label
            open_air[label] = np.median(hu_zyx[inside]) < _LUNG_HU or between[inside].mean() < _BETWEEN_SHARE
    # In a slice, lungs that open to the outside through mouth and trachea are closed.
    return solid | ~open_air[air] | _closed_lungs(solid, hu_zyx)


def _without_plates(mask_zyx: np.ndarray, spacing_zyx_mm) -> np.ndarray:
    depth_mm = edt.edt(mask_zyx, anisotropy=spacing_zyx_mm, black_border=False)
    core = depth_mm > _PLATE_MM
    if not core.any():
        return core
    parts, count = cc3d.connected_components(core, connectivity=6, return_N=True)
    deepest_mm = ndimage.maximum(depth_mm, parts, np.arange(1, count + 1))
    core = np.concatenate([[False], np.asarray(deepest_mm) > _LEAST_DEPTH_MM])[parts]
    reach = max(_PLATE_MM + 1.0, 1.01 * max(spacing_zyx_mm))
    if not core.any():
        return core
    return mask_zyx & (edt.edt(~core, anisotropy=spacing_zyx_mm, black_border=False) <= reach)


def _largest_parts(mask_zyx: np.ndarray) -> np.ndarray:
    parts = cc3d.connected_components(mask_zyx, connectivity=6)
    voxels = np.bincount(parts.ravel())
    voxels[0] = 0
    return (voxels >= _LEAST_SHARE * voxels.max())[parts] & mask_zyx


def _between(mask_zyx: np.ndarray, axis: int) -> np.ndarray:
    """Where the mask lies on both sides along one axis."""
    before = np.logical_or.accumulate(mask_zyx, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(mask_zyx, axis), axis=axis), axis)
    return before & after


def _closed_lungs(solid_zyx: np.ndarray, hu_zyx: np.ndarray) -> np.ndarray:
    """Air that the body closes within an axial slice and that is denser than air."""
    out = np.zeros_like(solid_zyx)
    for k, plane in enumerate(solid_zyx):
        holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
        if count:
            median = ndimage.median(hu_zyx[k], holes, np.arange(1, count + 1))
            out[k] = np.concatenate([[False], np.asarray(median) > _LUNG_HU])[holes]
    return out
