"""Random masses and tubes that are pasted into training patches: what is clicked need not have a name.

A mass looks like a tumour: lumpy, a little brighter or darker than what it lies in, sometimes with a core of its own. A
tube winds through the whole patch, as vessels and ducts do. All lengths are voxels of the model grid, axis order zyx.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

TUBE_SHARE = 0.3
RADII = (3.0, 24.0)  # of a mass, drawn evenly in their logarithm
TUBE_RADII = (1.2, 6.0)
TUBE_REACH = 72  # from the anchor, along each axis
CONTRAST_HU = (15.0, 140.0)
_STEP = 1.0  # between the points of a tube


@dataclass(frozen=True, eq=False)
class Lesion:
    """A random structure around an anchor.

    Attributes:
        start: int (3,), its first voxel, from the anchor.
        voxels: bool (D, H, W); holds the anchor.
        share: float32 (D, H, W), how much of each voxel it fills, 1 inside and soft at the border.
        change_hu: float32 (D, H, W), what it adds to the HU where it fills a voxel.
        cover: how much of the texture below is gone in it, 0 to 1.
    """

    start: np.ndarray
    voxels: np.ndarray
    share: np.ndarray
    change_hu: np.ndarray
    cover: float


def draw_lesion(rng: np.random.Generator) -> Lesion:
    """A mass or a tube."""
    voxels = _tube(rng) if rng.random() < TUBE_SHARE else _mass(rng)
    share = ndimage.gaussian_filter(voxels.astype(np.float32), rng.uniform(0.4, 0.9))
    contrast = rng.choice((-1, 1)) * rng.uniform(*CONTRAST_HU)
    texture = ndimage.gaussian_filter(rng.standard_normal(voxels.shape, dtype=np.float32), rng.uniform(0.7, 2.0))
    texture *= rng.uniform(0, 15) / texture.std()
    change = np.float32(contrast) + texture
    if rng.random() < 0.3:  # a core that has died off, or took up no contrast
        core = ndimage.binary_erosion(voxels, iterations=3)
        change -= np.float32(contrast * rng.uniform(0.4, 1.2)) * ndimage.gaussian_filter(core.astype(np.float32), 1.0)
    return Lesion(-(np.array(voxels.shape) // 2), voxels, share, change, rng.uniform(0.3, 1.0))


def paste(lesion: Lesion, hu: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A patch with the lesion in it, and the lesion's mask there.

    Args:
        hu: (D, H, W), a patch.
        start: its first voxel, from the anchor.
    """
    hu, mask = np.array(hu, np.float32), np.zeros(hu.shape, bool)
    low, high = np.maximum(start, lesion.start), np.minimum(start + hu.shape, lesion.start + lesion.voxels.shape)
    if (low >= high).any():
        return hu, mask
    here = tuple(slice(*ends) for ends in zip(low - start, high - start))
    there = tuple(slice(*ends) for ends in zip(low - lesion.start, high - lesion.start))
    share = lesion.share[there]
    inside = hu[here]
    around = np.float32(np.median(inside[share > 0.5])) if (share > 0.5).any() else np.float32(0)
    smooth = inside + np.float32(lesion.cover) * (around - inside)
    hu[here] = inside + share * (smooth + lesion.change_hu[there] - inside)
    mask[here] = lesion.voxels[there]
    return hu, mask


def _mass(rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid with a lumpy surface around the middle of its array, bool."""
    radius = np.exp(rng.uniform(*np.log(RADII)))
    radii = radius * np.exp(rng.normal(0, 0.25, 3))
    half = int(np.ceil(1.6 * radii.max())) + 3
    axis = np.arange(-half, half + 1, dtype=np.float32)
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    distance = sum(((row[0] * z + row[1] * y + row[2] * x) / np.float32(r)) ** 2 for row, r in zip(turned, radii))
    lumps = ndimage.zoom(rng.standard_normal((7, 7, 7), dtype=np.float32), len(axis) / 7, order=1, grid_mode=True,
                         mode="nearest")  # fmt: skip
    voxels = np.sqrt(distance) + np.float32(rng.uniform(0, 0.35)) * lumps < 1
    voxels[half, half, half] = True
    return _part_at_the_middle(voxels)


def _tube(rng: np.random.Generator) -> np.ndarray:
    """A winding tube through the middle of its array, which reaches to its sides; bool."""
    radius = np.exp(rng.uniform(*np.log(TUBE_RADII)))
    stiffness, half = rng.uniform(8, 30), TUBE_REACH
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    apart = np.ones((2 * half + 1,) * 3, bool)
    for sign in (1, -1):
        place, heading = np.zeros(3), sign * direction
        while (np.abs(place) < half).all():
            apart[tuple(np.rint(place).astype(int) + half)] = False
            heading = heading + rng.normal(0, 1, 3) / stiffness
            heading /= np.linalg.norm(heading)
            place = place + _STEP * heading
    return ndimage.distance_transform_edt(apart) <= radius


def _part_at_the_middle(voxels: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(voxels)
    return parts == parts[tuple(n // 2 for n in voxels.shape)]
