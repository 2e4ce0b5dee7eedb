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
import edt
import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from ctsam3d.data.body import AIR_HU, body_region, ijk_from_zyx, turned, turned_spacing, zyx_from_ijk
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.volume import Volume

MUSCLE, VISCERAL, SUBCUTANEOUS = (VALUE_OF[n] for n in ("skeletal_muscle", "visceral_fat", "subcutaneous_fat"))
OTHER = 255  # a label that is none of the 107: kept, and no hint for the rule

FAT_HU = (-190.0, -30.0)  # the ranges of body-composition studies (Mitsiopoulos et al., J Appl Physiol 1998)
MUSCLE_HU = (-29.0, 150.0)
_USUAL_MUSCLE_HU = (0.0, 110.0)  # where the median of a scan's muscle is looked for
_ABOVE_MUSCLE_HU = 60.0  # so far above that median begins blood with contrast
_BONE_HU = 150.0
_CLIP_HU = (-300.0, 300.0)  # before smoothing, so that bone does not shine into its neighbours; air is left out

_SURFACE_HU = -250.0  # above it tissue, below it lung, gas or outside

_PLACE_MM = 3.0  # voxel size of the grid that places are found on
_SKIN_MM = 2.0
_BRIDGE_MM = 20.0  # half the widest gap in the muscular wall that the hull bridges: linea alba, lumbar triangle
_THIN_MM = 4.0  # lean tissue that is thinner is a vessel, a fascia or partial volume
_GAS_RIM_MM = 2.0  # beside gas, partial volume looks like fat
_BEYOND_ORGANS_MM, _BEYOND_IN_THICK_FAT_MM = 25.0, 80.0  # how far visceral fat reaches past the organs
_THICK_FAT_MM = 7.0  # half the thickness of fat that no gap between muscles holds
_MARROW_MM2 = 4000.0  # the largest cross-section inside one bone: a tibial plateau; the chest is larger
_DISC_MM = 6.0  # half the height of the space between two vertebrae
_LEAST_MUSCLE_ML = 2.0
_LEAST_SOLID_ML = 10.0  # smaller lean parts in fat are veins, nodes and lumps, no wall
_LEAST_GAS_ML = 3.0
_LEAST_LUNG_ML = 100.0
_THICK_MM = 28.0  # half the thickness of lean tissue in the trunk above which it is an organ
_WALL_MM = 8.0  # of which so much beside subcutaneous fat or skin is the wall
_BELOW_LUNGS_MM = 150.0
_METAL_HU, _STREAKS_MM = 2500.0, 40.0  # dark streaks so near to an implant are no gas
_GAS_DEPTH_MM = 8.0  # air that never lies deeper is a skin fold

_VERTEBRAE = [VALUE_OF[n] for n in NAMES if n.startswith("vertebrae_")] + [VALUE_OF["sacrum"]]
_BONES = [
    *_VERTEBRAE,
    *(VALUE_OF[n] for n in NAMES if n.startswith(("rib_", "humerus_", "scapula_", "clavicula_", "femur_", "hip_"))),
]
_LIMB_AND_WALL = ("gluteus", "autochthon", "iliopsoas", "iliac", "skeletal", "visceral", "subcutaneous")
_ORGANS = [
    VALUE_OF[n]
    for n in NAMES
    if VALUE_OF[n] not in _BONES and n not in ("brain", "face") and not n.startswith(_LIMB_AND_WALL)
]


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
    found = _tissues_zyx(hu, smooth, labels, body, grid, spacing_mm)
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


def _tissues_zyx(hu, smooth, labels, body, grid: Coarse, spacing_mm) -> np.ndarray:
    out = np.zeros(hu.shape, np.uint8)
    if not body.any():
        return out
    places = find_places(grid)
    free = _shifted_all(body, spacing_mm, _SKIN_MM) & (labels == 0)
    free &= ~grid.fine(places.bone)
    fat = free & (smooth >= FAT_HU[0]) & (smooth <= FAT_HU[1])
    fat &= ~_gas_rim(hu, fat, spacing_mm)
    subcutaneous = grid.fine(places.subcutaneous)
    out[fat & subcutaneous] = SUBCUTANEOUS
    out[fat & grid.fine(places.visceral) & ~subcutaneous] = VISCERAL
    out[muscle(smooth, free & ~grid.fine(places.organs), spacing_mm)] = MUSCLE
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


def smoothed(hu_zyx: np.ndarray, spacing_zyx_mm) -> np.ndarray:
    """(Z, Y, X) float32 HU, clipped to where fat and muscle are told apart, smoothed by 0.7 to 2 mm as noise asks."""
    sigma_mm = float(np.clip(noise_hu(hu_zyx) / 15.0, 0.7, 2.0))
    weight = (hu_zyx > _SURFACE_HU).astype(np.float32)
    out = np.clip(hu_zyx, *_CLIP_HU) * weight
    for axis, step in enumerate(spacing_zyx_mm):
        for array in (out, weight):
            ndimage.gaussian_filter1d(array, sigma_mm / step, axis=axis, output=array, truncate=3.0)
    out /= np.maximum(weight, 1e-6)
    out[hu_zyx <= _SURFACE_HU] = _CLIP_HU[0]
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


# ---- places ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Coarse:
    """The scan in blocks of voxels, about 3 mm a side.

    Attributes:
        hu: (Z, Y, X) float32, smoothed means.
        labels: uint8, of the middle voxel of each block.
        body: bool.
        metal: bool, whether the block holds any.
        spacing_mm, factors: size of a block in mm and in voxels, zyx.
        shape: of the scan.
    """

    hu: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    metal: np.ndarray
    spacing_mm: tuple[float, float, float]
    factors: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, hu, smooth, labels, spacing_mm) -> Coarse:
        factors = tuple(min(n, max(1, round(_PLACE_MM / s))) for s, n in zip(spacing_mm, hu.shape))
        coarse_mm = tuple(f * s for f, s in zip(factors, spacing_mm))
        centre = tuple(slice(f // 2, None, f) for f in factors)
        means = _block_means(smooth, factors)
        picked = labels[centre]
        picked = np.pad(picked, [(0, n - m) for n, m in zip(means.shape, picked.shape)], mode="edge")
        body = body_region(_block_means(hu, factors), coarse_mm)
        metal = _block_means(hu > _METAL_HU, factors) > 0
        return cls(means, picked, body, metal, coarse_mm, factors, hu.shape)

    def fine(self, mask: np.ndarray) -> np.ndarray:
        """A mask on this grid as one on the scan's."""
        for axis, factor in enumerate(self.factors):
            mask = np.repeat(mask, factor, axis=axis)
        return mask[tuple(slice(n) for n in self.shape)]

    def fine_body(self, smooth: np.ndarray) -> np.ndarray:
        """The body on the scan's grid: at its surface, each voxel decides for itself."""
        inside = ndimage.binary_erosion(self.body, border_value=1)
        around = ndimage.binary_dilation(self.body)
        return self.fine(inside) | (self.fine(around) & (smooth > _SURFACE_HU))

    def among(self, values) -> np.ndarray:
        """Where a label of `values` lies."""
        return np.isin(self.labels, values)

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    def distance_mm(self, mask: np.ndarray) -> np.ndarray:
        """(Z, Y, X) mm from each voxel to the mask; where there is none, far."""
        if not mask.any():
            return np.full(mask.shape, np.inf, np.float32)
        return edt.edt(~mask, anisotropy=self.spacing_mm, black_border=False)


def _block_means(array, factors) -> np.ndarray:
    out = array
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, out.shape[axis], factor)
            counts = np.minimum(factor, out.shape[axis] - starts).reshape([-1 if a == axis else 1 for a in range(3)])
            out = np.add.reduceat(out, starts, axis=axis, dtype=np.float32) / counts
    return np.asarray(out, np.float32)


@dataclass(frozen=True, eq=False)
class Places:
    """Where each tissue may be, (Z, Y, X) bool on the coarse grid."""

    organs: np.ndarray
    bone: np.ndarray
    subcutaneous: np.ndarray
    visceral: np.ndarray


def find_places(grid: Coarse) -> Places:
    """Bone with its marrow, the space of the organs, and the two compartments of fat."""
    bone = bone_region(grid)
    air = deep_air(grid)
    organs = organ_space(grid, air)
    envelope = muscle_envelope(grid, organs | air)
    under_skin = grid.body & ~envelope
    subcutaneous = ndimage.binary_dilation(_reaching_outside(under_skin, grid.body)) & grid.body
    organs |= thick_organs(grid, bone, air, subcutaneous)
    inner = grid.body & ~subcutaneous  # more than the envelope where the scan cuts the muscular wall
    fat = (grid.hu >= FAT_HU[0]) & (grid.hu <= FAT_HU[1]) & inner
    visceral = organs | visceral_growth(grid, fat, organs)
    return Places(organs, bone, subcutaneous, ndimage.binary_dilation(visceral) & inner)


def visceral_growth(grid: Coarse, fat: np.ndarray, organs: np.ndarray) -> np.ndarray:
    """Fat that goes on from the organs: close to them all of it, farther away where it is thick, as omentum is.

    Fat between muscles is thin, so that what leaks out through a gap in the wall ends soon.
    """
    thick = grid.distance_mm(grid.distance_mm(~fat) > _THICK_FAT_MM) <= _THICK_FAT_MM
    away_mm = grid.distance_mm(organs)
    allowed = fat & ((away_mm <= _BEYOND_ORGANS_MM) | (thick & (away_mm <= _BEYOND_IN_THICK_FAT_MM)))
    return ndimage.binary_propagation(allowed & organs, mask=allowed)


def bone_region(grid: Coarse) -> np.ndarray:
    """Bones without a label, marrow and canals that bones enclose, and the discs between labelled vertebrae."""
    bright, labelled = (grid.hu > _BONE_HU) & grid.body, grid.among(_BONES)
    bone = bright | labelled
    closed = ndimage.binary_closing(np.pad(bone, 2), iterations=2)[2:-2, 2:-2, 2:-2] | bone
    most = _MARROW_MM2 / (grid.spacing_mm[1] * grid.spacing_mm[2])
    out = bright & ~ndimage.binary_dilation(labelled)  # at labelled bones each voxel of the scan decides for itself
    for k, plane in enumerate(closed):
        holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
        if count:
            voxels = np.bincount(holes.ravel())
            out[k] |= ((voxels <= most) & (np.arange(count + 1) > 0))[holes]
    spine = grid.among(_VERTEBRAE)
    if spine.any():
        around = grid.distance_mm(spine) <= _DISC_MM
        out |= around & (grid.distance_mm(~around) > _DISC_MM)
    return out


def deep_air(grid: Coarse) -> np.ndarray:
    """Lungs and gas inside the body; not the air in skin folds, nor air of the head, above the lungs."""
    air = (grid.hu < _SURFACE_HU) & grid.body & (grid.distance_mm(grid.metal) > _STREAKS_MM)
    parts, count = cc3d.connected_components(air, connectivity=6, return_N=True)
    if not count:
        return air
    depth = grid.distance_mm(~grid.body)
    labels = np.arange(1, count + 1)
    volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * grid.voxel_ml
    deepest = ndimage.maximum(depth, parts, labels)
    keep = (volumes >= _LEAST_GAS_ML) & (deepest >= _GAS_DEPTH_MM)
    return np.concatenate([[False], keep])[parts]


def organ_space(grid: Coarse, air: np.ndarray) -> np.ndarray:
    """What organs and the air in them span: the convex hull of each axial slice."""
    seeds = air | grid.among(_ORGANS)
    head = grid.among([VALUE_OF["brain"], VALUE_OF["face"]]).any(axis=(1, 2))
    if head.any():
        seeds[int(np.argmax(head)) :] = False
    out = np.zeros_like(seeds)
    for k, plane in enumerate(seeds):
        if plane.any():
            out[k] = _convex_hull(plane)
    return out & grid.body


def thick_organs(grid: Coarse, bone: np.ndarray, air: np.ndarray, subcutaneous: np.ndarray) -> np.ndarray:
    """Liver, spleen and heart where they have no label: beside and below lungs, what is too thick to be muscle."""
    lungs = cc3d.dust(air, threshold=int(_LEAST_LUNG_ML / grid.voxel_ml), connectivity=6).any(axis=(1, 2))
    none = np.zeros(grid.body.shape, bool)
    if not lungs.any():
        return none
    levels = np.flatnonzero(lungs)
    trunk = none.copy()
    trunk[max(0, levels[0] - int(_BELOW_LUNGS_MM / grid.spacing_mm[0])) : levels[-1] + 1] = True
    lean = trunk & grid.body & ~bone & (grid.labels == 0) & (grid.hu > MUSCLE_HU[0])
    core = edt.edt(lean, anisotropy=grid.spacing_mm, black_border=False) > _THICK_MM
    wall = grid.distance_mm(~grid.body | subcutaneous) <= _WALL_MM
    return lean & (grid.distance_mm(core) <= _THICK_MM) & ~wall


def _convex_hull(plane: np.ndarray) -> np.ndarray:
    """The voxels of a 2D mask's convex hull; the mask must not be empty."""
    edge = plane & ~ndimage.binary_erosion(plane)
    corners = (np.argwhere(edge)[:, None, :] + [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]).reshape(-1, 2)
    sides = ConvexHull(corners).equations  # (sides, 3): outward normal and offset
    y, x = np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])[None, :]
    out = np.ones(plane.shape, bool)
    for ny, nx, offset in sides:
        out &= ny * y + nx * x + offset <= 1e-9
    return out


def muscle_envelope(grid: Coarse, organs: np.ndarray) -> np.ndarray:
    """The hull of muscles, bones and organs: closed over gaps of up to 40 mm in each axial slice, and filled."""
    lean = (grid.hu > MUSCLE_HU[0]) & grid.body
    lean &= grid.distance_mm(~grid.body) > 2 * _SKIN_MM
    solid = cc3d.dust(lean, threshold=int(_LEAST_SOLID_ML / grid.voxel_ml), connectivity=6) | organs
    margin = [0, *(int(np.ceil(_BRIDGE_MM / s)) + 1 for s in grid.spacing_mm[1:])]
    padded = np.pad(solid, [(m, m) for m in margin])
    within_slice = (1e4, *grid.spacing_mm[1:])  # slices so far apart that each is alone
    bridged = edt.edt(~padded, anisotropy=within_slice, black_border=False) <= _BRIDGE_MM
    closed = edt.edt(bridged, anisotropy=within_slice, black_border=False) > _BRIDGE_MM
    closed = closed[tuple(slice(m, n - m) for m, n in zip(margin, closed.shape))] | solid
    return np.stack([ndimage.binary_fill_holes(plane) for plane in closed]) & grid.body


def _reaching_outside(region: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The parts of a region that come up to the surface of the body; the sides of the scan are no surface."""
    return ndimage.binary_propagation(region & ndimage.binary_dilation(~body), mask=region)
