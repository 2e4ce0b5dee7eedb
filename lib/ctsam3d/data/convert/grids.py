"""Grids that are damaged or differ: a direction that is not orthonormal, a mask that is not on the image's voxels."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

from ctsam3d.data.io import onto_grid
from ctsam3d.volume import Volume

DIRECTION_TOLERANCE = 2e-5  # ITK takes 5e-5 and refuses 1e-4; what float32 rounds away is 100 times less
MAX_SHIFT_VOXELS = 0.5  # that a voxel may move when a header is mended; more is another image

SAME, REORIENTED, HEADER, RESAMPLED = "same", "reoriented", "header", "resampled"


def grid_of(volume: Volume) -> Volume:
    """Shape and affine of a scan without its voxels, which take memory."""
    return Volume(np.broadcast_to(np.int16(0), volume.shape_ijk), volume.affine_ras_mm)


def orthonormal(affine_ras_mm: np.ndarray, shape_ijk: tuple[int, int, int]) -> np.ndarray | None:
    """The affine with the nearest orthonormal direction, its spacing and its centre kept.

    Returns:
        (4, 4), or None where the direction is orthonormal already.

    Raises:
        ValueError: sheared so much that a voxel would move by more than `MAX_SHIFT_VOXELS`, as with a tilted gantry.
    """
    spacing_mm = np.linalg.norm(affine_ras_mm[:3, :3], axis=0)
    direction = affine_ras_mm[:3, :3] / spacing_mm
    if np.abs(direction.T @ direction - np.eye(3)).max() <= DIRECTION_TOLERANCE:
        return None
    left, _, right = np.linalg.svd(direction)  # the orthonormal matrix nearest in the Frobenius norm (Schönemann 1966)
    mended = np.eye(4)
    mended[:3, :3] = left @ right * spacing_mm
    centre_ijk = (np.array(shape_ijk) - 1) / 2
    mended[:3, 3] = affine_ras_mm[:3, 3] + (affine_ras_mm[:3, :3] - mended[:3, :3]) @ centre_ijk
    shift = _shift_voxels(affine_ras_mm, mended, shape_ijk)
    if shift > MAX_SHIFT_VOXELS:
        raise ValueError(
            f"direction must be orthonormal, to make it so would move voxels by {shift:.1f} of their size "
            f"(at most {MAX_SHIFT_VOXELS}); resample the scan first"
        )
    return mended


def on_image_grid(labels: np.ndarray, affine: np.ndarray, image: Volume) -> tuple[np.ndarray, str]:
    """A label map or mask on the voxels of the image, and what that took.

    `SAME`: nothing. `REORIENTED`: the same voxels in another axis order or direction. `HEADER`: as many voxels, in
    places that differ by less than `MAX_SHIFT_VOXELS`: taken one for one. `RESAMPLED`: another grid, on which all that
    is labelled lies inside the image: nearest neighbours.

    Args:
        labels: whole numbers, on a grid of its own.
        affine: (4, 4), its indices to RAS mm.

    Raises:
        ValueError: as many voxels as the image, but elsewhere, so that its header is wrong; or labels outside it.
    """
    if not labels.any():  # an empty one is empty on every grid
        return np.zeros(image.shape_ijk, labels.dtype), SAME
    moved = onto_grid(labels, affine, image)
    if moved is not None:
        same = labels.shape == image.shape_ijk and np.allclose(affine[:3, :3], image.affine_ras_mm[:3, :3], atol=0.01)
        return moved, SAME if same else REORIENTED
    if labels.shape == image.shape_ijk:
        shift = _shift_voxels(image.affine_ras_mm, affine, image.shape_ijk)
        if shift > MAX_SHIFT_VOXELS:
            raise ValueError(f"has the image's shape, but its affine is {shift:.1f} voxels away from the image's")
        return labels, HEADER
    _check_inside(labels, affine, image)
    from_image = np.linalg.inv(affine) @ image.affine_ras_mm
    sampled = ndimage.affine_transform(
        labels, from_image[:3, :3], from_image[:3, 3], image.shape_ijk, order=0, mode="grid-constant", prefilter=False
    )
    return sampled, RESAMPLED


def _check_inside(labels: np.ndarray, affine: np.ndarray, image: Volume) -> None:
    """Raises ValueError where labelled voxels lie more than one voxel outside the image."""
    used = [np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    to_image = np.linalg.inv(image.affine_ras_mm) @ affine
    corners_ijk = _corners([(part[0], part[-1]) for part in used])
    places = to_image[:3, :3] @ corners_ijk + to_image[:3, 3:]
    outside = np.maximum(-places, places - np.array(image.shape_ijk)[:, None] + 1).max()
    if outside > 1:
        raise ValueError(f"has shape {labels.shape} on a grid of its own, and labels {outside:.1f} voxels outside")


def _shift_voxels(affine: np.ndarray, other: np.ndarray, shape_ijk: tuple[int, int, int]) -> float:
    """How far a corner of the scan moves from one affine to the other, in the smallest edge of a voxel."""
    change = other - affine
    moved_mm = change[:3, :3] @ _corners([(0, n - 1) for n in shape_ijk]) + change[:3, 3:]
    return float(np.linalg.norm(moved_mm, axis=0).max() / np.linalg.norm(affine[:3, :3], axis=0).min())


def _corners(spans: list[tuple[int, int]]) -> np.ndarray:
    """(3, 8), the corners of a box from its first and last index along each axis."""
    return np.array(list(itertools.product(*spans)), dtype=np.float64).T
