"""Where muscle and the two compartments of fat can be: wall, organ space and bones, on a grid of about 3 mm.

Arrays are in the order ``zyx`` of `ctsam3d.data.body`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from ctsam3d.data.body import body_region
from ctsam3d.data.labels import NAMES, VALUE_OF

FAT_HU = (-190.0, -30.0)  # the ranges of body-composition studies (Mitsiopoulos et al., J Appl Physiol 1998)
MUSCLE_HU = (-29.0, 150.0)
SURFACE_HU = -250.0  # above it tissue, below it lung, gas or outside
SKIN_MM = 2.0
_BONE_HU = 150.0
_THIN_BONE_HU, _THIN_BONE_MM = 110.0, 6.0  # partial volume of a cortex, so near to what is surely bone
_PLACE_MM = 3.0  # voxel size of the grid that places are found on
_BRIDGE_MM = 20.0  # half the widest gap in the muscular wall that the hull bridges: linea alba, lumbar triangle
_OVER_AIR_MM2, _UNDER_SKIN_MM = 50.0, 25.0  # air that a bridge spans to be none, and how deep fat under it is no wall
_BEYOND_ORGANS_MM, _BEYOND_IN_THICK_FAT_MM = 25.0, 80.0  # how far visceral fat reaches past the organs
_THICK_FAT_MM = 7.0  # half the thickness of fat that no gap between muscles holds
_MARROW_MM2 = 4000.0  # the largest cross-section inside one bone: a tibial plateau; the chest is larger
_MARROW_CLOSINGS = 2  # by a coarse voxel each, of the gaps in the bone around it
_DISC_MM = 6.0  # half the height of the space between two vertebrae
_LEAST_SOLID_ML = 10.0  # smaller lean parts in fat are veins, nodes and lumps, no wall
_LEAST_GAS_ML = 3.0
_LEAST_LUNG_ML = 400.0  # more than gas of a bowel in one piece
_WIDE_LUNGS = 0.5  # of their largest cross-section, at the levels of the heart and below
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
        return self.fine(inside) | (self.fine(around) & (smooth > SURFACE_HU))

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
    envelope = muscle_envelope(grid, organs | air, skin_air(grid, air))
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
    thin = (grid.hu > _THIN_BONE_HU) & grid.body & (grid.distance_mm(bright) <= _THIN_BONE_MM)
    out = bright & ~ndimage.binary_dilation(labelled)  # at labelled bones each voxel of the scan decides for itself
    most = _MARROW_MM2 / (grid.spacing_mm[1] * grid.spacing_mm[2])
    # The more a wall with gaps is closed, the less is left of a narrow hole, so that all ways count.
    for wall in (bright | labelled, bright | labelled | thin):
        for times in range(_MARROW_CLOSINGS + 1):
            for k, plane in enumerate(_closed(wall, times)):
                out[k] |= _small_holes(plane, most)
    spine = grid.among(_VERTEBRAE)
    if spine.any():
        around = grid.distance_mm(spine) <= _DISC_MM
        out |= around & (grid.distance_mm(~around) > _DISC_MM)
    return out


def _closed(mask: np.ndarray, times: int) -> np.ndarray:
    if not times:
        return mask
    return ndimage.binary_closing(np.pad(mask, times), iterations=times)[(slice(times, -times),) * 3] | mask


def _small_holes(plane: np.ndarray, most: float) -> np.ndarray:
    """What a 2D mask encloses in pieces of at most `most` voxels."""
    holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
    return ((np.bincount(holes.ravel()) <= most) & (np.arange(count + 1) > 0))[holes]


def deep_air(grid: Coarse) -> np.ndarray:
    """Lungs and gas inside the body; not the air in skin folds, nor dark streaks around metal."""
    air = (grid.hu < SURFACE_HU) & grid.body & (grid.distance_mm(grid.metal) > _STREAKS_MM)
    parts, count = cc3d.connected_components(air, connectivity=6, return_N=True)
    if not count:
        return air
    depth = grid.distance_mm(~grid.body)
    labels = np.arange(1, count + 1)
    volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * grid.voxel_ml
    deepest = ndimage.maximum(depth, parts, labels)
    keep = (volumes >= _LEAST_GAS_ML) & (deepest >= _GAS_DEPTH_MM)
    return np.concatenate([[False], keep])[parts]


def skin_air(grid: Coarse, air: np.ndarray) -> np.ndarray:
    """Air outside, and in gaps between limbs or folds of skin so narrow that the body closes over them.

    Such a gap may be thinner than a block, so that all that is darker than fat counts.

    Args:
        air: see `deep_air`.
    """
    narrow = (grid.hu < FAT_HU[0]) & ~air & (grid.distance_mm(grid.metal) > _STREAKS_MM)
    return ~grid.body | narrow


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
    lungs = cc3d.dust(air, threshold=int(_LEAST_LUNG_ML / grid.voxel_ml), connectivity=6).sum(axis=(1, 2))
    none = np.zeros(grid.body.shape, bool)
    if not lungs.any():
        return none
    levels = np.flatnonzero(lungs)
    heart = np.flatnonzero(lungs >= _WIDE_LUNGS * lungs.max())[-1]  # above it are shoulders, thick too
    trunk = none.copy()
    trunk[max(0, levels[0] - int(_BELOW_LUNGS_MM / grid.spacing_mm[0])) : heart + 1] = True
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


def muscle_envelope(grid: Coarse, organs: np.ndarray, skin_air: np.ndarray) -> np.ndarray:
    """The hull of muscles, bones and organs: closed over gaps of up to 40 mm in each axial slice, and filled.

    What closing lays over the air beside the skin, from leg to leg or from arm to trunk, is no wall.
    """
    lean = (grid.hu > MUSCLE_HU[0]) & grid.body
    lean &= grid.distance_mm(~grid.body) > 2 * SKIN_MM
    solid = cc3d.dust(lean, threshold=int(_LEAST_SOLID_ML / grid.voxel_ml), connectivity=6) | organs
    margin = [0, *(int(np.ceil(_BRIDGE_MM / s)) + 1 for s in grid.spacing_mm[1:])]
    padded = np.pad(solid, [(m, m) for m in margin])
    within_slice = (1e4, *grid.spacing_mm[1:])  # slices so far apart that each is alone
    bridged = edt.edt(~padded, anisotropy=within_slice, black_border=False) <= _BRIDGE_MM
    closed = edt.edt(bridged, anisotropy=within_slice, black_border=False) > _BRIDGE_MM
    closed = closed[tuple(slice(m, n - m) for m, n in zip(margin, closed.shape))] | solid
    envelope = np.stack([ndimage.binary_fill_holes(plane) for plane in closed])
    under_skin = grid.distance_mm(skin_air) <= _UNDER_SKIN_MM
    least = _OVER_AIR_MM2 / (grid.spacing_mm[1] * grid.spacing_mm[2])
    for k, plane in enumerate(closed):
        bridges, enclosed = plane & ~solid[k], envelope[k] & ~plane
        no_wall = _parts_with(bridges, skin_air[k], least) | _parts_with(enclosed, ~grid.body[k], least)
        envelope[k] &= ~(no_wall & under_skin[k])
    return envelope & grid.body


def _parts_with(plane: np.ndarray, other: np.ndarray, least: float) -> np.ndarray:
    """The parts of a 2D mask that have at least `least` voxels in another one."""
    parts, count = ndimage.label(plane)
    shared = np.bincount(parts[other], minlength=count + 1)
    return ((shared >= least) & (np.arange(count + 1) > 0))[parts]


def _reaching_outside(region: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The parts of a region that come up to the surface of the body; the sides of the scan are no surface."""
    return ndimage.binary_propagation(region & ndimage.binary_dilation(~body), mask=region)
