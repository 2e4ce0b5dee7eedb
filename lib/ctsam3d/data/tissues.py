"""Skeletal muscle, visceral and subcutaneous fat of a CT by rule: what TotalSeg++ adds to TotalSegmentator's classes.

Hounsfield units tell fat from lean tissue; where it lies tells the rest. Subcutaneous fat lies between the skin and the
hull of muscles and bones, visceral fat lies inside that hull among the organs, and fat between muscles, which no class
holds, stays without a label, as do the limbs' vessels, marrow, discs and skin. What is labelled already is never
changed; it also shows the rule where the organs are. Without labels, lungs and bowel gas show it.

Arrays are in the order ``zyx`` of `ctsam3d.data.body` unless a name says ``ijk``. HU decide on the scan's own grid,
places on a grid of about 3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from ctsam3d.data.body import AIR_HU, ijk_from_zyx, turned, turned_spacing, zyx_from_ijk
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.tissue_places import FAT_HU, MUSCLE_HU, SKIN_MM, SURFACE_HU, Coarse, find_places
from ctsam3d.volume import Volume

MUSCLE, VISCERAL, SUBCUTANEOUS = (VALUE_OF[n] for n in ("skeletal_muscle", "visceral_fat", "subcutaneous_fat"))
OTHER = 255  # a label that is none of the 107: kept, and no hint for the rule

_USUAL_MUSCLE_HU = (0.0, 110.0)  # where the median of a scan's muscle is looked for
_ABOVE_MUSCLE_HU = 60.0  # so far above that median begins blood with contrast
_CLIP_HU = (-300.0, 300.0)  # before smoothing, so that bone does not shine into its neighbours; air is left out
_THIN_MM = 4.0  # lean tissue that is thinner is a vessel, a fascia or partial volume
_GAS_RIM_MM = 2.0  # beside gas, partial volume looks like fat
_LEAST_MUSCLE_ML = 2.0


@dataclass(frozen=True, eq=False)
class Tissues:
    """What the rule found.

    Attributes:
        labels_ijk: (I, J, K) uint8: 105, 106, 107, and 0 elsewhere, also where something is labelled already.
        body_ijk: (I, J, K) bool, the body region; all that is labelled belongs to it.
    """

    labels_ijk: np.ndarray
    body_ijk: np.ndarray


def find_tissues(volume: Volume, labels_ijk: np.ndarray) -> Tissues:
    """The three tissues of a scan in any orientation and spacing, where nothing is labelled yet.

    Args:
        labels_ijk: (I, J, K) uint8 on the scan's grid: values of `labels.NAMES`, `OTHER` for other names, 0 elsewhere.

    Raises:
        ValueError: another shape or values.
    """
    hu, labels, spacing_mm = _patient_aligned(volume, labels_ijk)
    smooth = smoothed(hu, spacing_mm)
    grid = Coarse.of(hu, smooth, labels, spacing_mm)
    body = grid.fine_body(smooth) | (labels > 0)
    del smooth  # as much memory as the scan itself, twice
    found = _tissues_zyx(hu, labels, body, grid, spacing_mm)
    back = ijk_from_zyx(volume.affine_ras_mm)
    return Tissues(turned(found, back), turned(body, back))


def find_body(volume: Volume, labels_ijk: np.ndarray) -> np.ndarray:
    """(I, J, K) bool, the body region alone; arguments and errors as of `find_tissues`."""
    hu, labels, spacing_mm = _patient_aligned(volume, labels_ijk)
    smooth = smoothed(hu, spacing_mm)
    body = Coarse.of(hu, smooth, labels, spacing_mm).fine_body(smooth) | (labels > 0)
    return turned(body, ijk_from_zyx(volume.affine_ras_mm))


def labelled_share(labels_ijk: np.ndarray, body_ijk: np.ndarray) -> float:
    """Share of the body's voxels that carry a label, 0 to 1; 0 where there is no body."""
    voxels = int(np.count_nonzero(body_ijk))
    return int(np.count_nonzero(labels_ijk[body_ijk])) / voxels if voxels else 0.0


def _patient_aligned(volume: Volume, labels_ijk) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """HU, labels and spacing (mm) in the order zyx; checked."""
    labels_ijk = np.asarray(labels_ijk)
    if labels_ijk.shape != volume.shape_ijk:
        raise ValueError(f"labels_ijk must have the scan's shape {volume.shape_ijk}, got {labels_ijk.shape}")
    if labels_ijk.dtype != np.uint8:
        raise ValueError(f"labels_ijk must be uint8, got {labels_ijk.dtype}")
    turn = zyx_from_ijk(volume.affine_ras_mm)
    spacing_mm = turned_spacing(volume.spacing_ijk_mm, turn)
    return turned(volume.array_ijk, turn), turned(labels_ijk, turn), spacing_mm


def _tissues_zyx(hu, labels, body, grid: Coarse, spacing_mm) -> np.ndarray:
    out = np.zeros(hu.shape, np.uint8)
    if not body.any():
        return out
    places = find_places(grid)
    free = _shifted_all(body, spacing_mm, SKIN_MM) & (labels == 0)
    free &= ~grid.fine(places.bone)
    smooth = smoothed(hu, spacing_mm, labels == 0)  # what is labelled does not shine into its neighbours
    fat = free & (smooth >= FAT_HU[0]) & (smooth <= FAT_HU[1])
    fat &= ~_gas_rim(hu, fat, spacing_mm)
    subcutaneous = grid.fine(places.subcutaneous)
    out[fat & subcutaneous] = SUBCUTANEOUS
    out[fat & grid.fine(places.visceral) & ~subcutaneous] = VISCERAL
    inner = ndimage.binary_erosion(places.organs, border_value=1)  # at its border each voxel decides for itself
    out[muscle(smooth, free & ~grid.fine(inner), spacing_mm)] = MUSCLE
    return out


# ---- Hounsfield units --------------------------------------------------------------------------------------------


def noise_hu(hu_zyx: np.ndarray) -> float:
    """Standard deviation of the noise: from neighbours within a slice in soft tissue, robust against edges.

    Streaks differ little along and much across them, so the axis that differs more counts.
    """
    worst = 0.0
    for first, second in ((hu_zyx[:, :, :-1], hu_zyx[:, :, 1:]), (hu_zyx[:, :-1], hu_zyx[:, 1:])):
        soft = (np.abs(first) < 200) & (np.abs(second) < 200)
        if soft.any():
            steps = np.abs(second[soft].astype(np.float32) - first[soft])
            worst = max(worst, float(1.4826 / np.sqrt(2) * np.median(steps)))
    return worst


def smoothed(hu_zyx: np.ndarray, spacing_zyx_mm, among: np.ndarray | None = None) -> np.ndarray:
    """(Z, Y, X) float32 HU, clipped to where fat and muscle are told apart, smoothed by 0.7 to 2 mm as noise asks.

    Args:
        among: (Z, Y, X) bool, the voxels that count, but for those of air, which never do; default all.
    """
    sigma_mm = float(np.clip(noise_hu(hu_zyx) / 15.0, 0.7, 2.0))
    weight = (hu_zyx > SURFACE_HU).astype(np.float32)
    if among is not None:
        weight *= among
    out = np.clip(hu_zyx, *_CLIP_HU) * weight
    for axis, step in enumerate(spacing_zyx_mm):
        for array in (out, weight):
            ndimage.gaussian_filter1d(array, sigma_mm / step, axis=axis, output=array, truncate=3.0)
    out /= np.maximum(weight, 1e-6)
    out[hu_zyx <= SURFACE_HU] = _CLIP_HU[0]
    return out


def muscle(smooth_zyx: np.ndarray, lean_zyx: np.ndarray, spacing_zyx_mm) -> np.ndarray:
    """Muscle among the voxels that may be muscle: by HU, thicker than a vessel, in parts of more than 2 ml.

    Blood with contrast is brighter than the muscle of the same scan, whose HU is taken from the scan itself.
    """
    low, high = MUSCLE_HU
    candidate = lean_zyx & (smooth_zyx > low) & (smooth_zyx < high)
    usual = smooth_zyx[candidate & (smooth_zyx > _USUAL_MUSCLE_HU[0]) & (smooth_zyx < _USUAL_MUSCLE_HU[1])]
    if usual.size:
        candidate &= smooth_zyx < np.median(usual) + _ABOVE_MUSCLE_HU
    candidate &= _shifted_any(_without_thin(candidate, spacing_zyx_mm), (1.0, 1.0, 1.0), 1.0)
    voxels = int(_LEAST_MUSCLE_ML * 1000 / np.prod(spacing_zyx_mm))
    return cc3d.dust(candidate, threshold=voxels, connectivity=6)


def _gas_rim(hu, fat, spacing_mm) -> np.ndarray:
    """Fat within 2 mm of gas that no fat farther from gas carries."""
    near = _shifted_any(hu < AIR_HU, spacing_mm, _GAS_RIM_MM)
    carried = _shifted_any(fat & ~near, spacing_mm, _GAS_RIM_MM)
    return near & ~carried


def _steps(spacing_mm, radius_mm: float) -> list[int]:
    return [round(radius_mm / step) for step in spacing_mm]


def _shifted_any(mask, spacing_mm, radius_mm: float) -> np.ndarray:
    """Dilation by a box of `radius_mm`; separable, so that it is cheap on the scan's own grid."""
    out = mask.view(np.uint8)
    for axis, n in enumerate(_steps(spacing_mm, radius_mm)):
        out = ndimage.maximum_filter1d(out, 2 * n + 1, axis=axis, mode="nearest") if n else out
    return out.view(bool)


def _shifted_all(mask, spacing_mm, radius_mm: float) -> np.ndarray:
    """Erosion by a box of `radius_mm`; the border of the scan erodes nothing."""
    return ~_shifted_any(~mask, spacing_mm, radius_mm)


def _without_thin(mask, spacing_mm) -> np.ndarray:
    """Opening by a box of 4 mm, in whole voxels; slices thicker than that need only be one thick."""
    out = mask.view(np.uint8)
    sizes = [max(1, int(np.ceil(_THIN_MM / step - 0.25))) for step in spacing_mm]
    for axis, size in enumerate(sizes):
        out = ndimage.minimum_filter1d(out, size, axis=axis, mode="nearest") if size > 1 else out
    for axis, size in enumerate(sizes):  # an even box is not symmetric: the way back goes the other way
        origin = size % 2 - 1
        out = ndimage.maximum_filter1d(out, size, axis=axis, mode="nearest", origin=origin) if size > 1 else out
    return out.view(bool)
