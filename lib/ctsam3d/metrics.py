"""Scores of a mask against the truth, with the conventions of empty masks said.

Where both masks are empty they agree: DSC and NSD are 1. Where one of them is, nothing of it is right: both are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import surface_distance
from scipy.spatial import cKDTree
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

_KEY_BITS = 21  # of a corner's index along one axis, three of which make one int64


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """DSC, the Dice similarity coefficient of two masks of one shape; 1 where both are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 1.0 if total == 0 else 2.0 * np.count_nonzero(prediction & target) / total


def normalised_surface_dice(prediction, target, spacing_mm: tuple[float, float, float], tolerance_mm: float) -> float:
    """NSD: the share of both surfaces that lies within `tolerance_mm` of the other (Nikolov et al.).

    1 where both masks are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    return surface_dice(surface(prediction, spacing_mm), surface(target, spacing_mm), (tolerance_mm,))[0]


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of a mask, as the elements at the corners between its voxels.

    Attributes:
        corners: (N, 3) int64 in lexicographic order; corner p is the one between the voxels p - 1 and p.
        areas_mm2: (N,), of the elements.
        spacing_mm: voxel size per axis.
    """

    corners: np.ndarray
    areas_mm2: np.ndarray
    spacing_mm: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.corners)

    @cached_property
    def points_mm(self) -> np.ndarray:
        """(N, 3) places of the elements, from the corner (0, 0, 0)."""
        return self.corners * np.asarray(self.spacing_mm, dtype=np.float64)

    @cached_property
    def keys(self) -> np.ndarray:
        """(N,) one increasing int64 a corner."""
        i, j, k = self.corners.T
        return (i << 2 * _KEY_BITS) | (j << _KEY_BITS) | k

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.points_mm, balanced_tree=False, compact_nodes=False)


def surface(mask: np.ndarray, spacing_mm: Sequence[float], origin: Sequence[int] = (0, 0, 0)) -> Surface:
    """The surface of a bool mask (I, J, K); what lies beyond the array is outside the mask.

    Elements and areas are those of `surface_distance` (its marching-cubes table over 2 x 2 x 2 voxels).

    Args:
        origin: non-negative index of the array's first voxel where it is a box of a larger one.
    """
    codes = np.pad(mask, 1).astype(np.uint8)
    # Each corner's eight voxels as bits, the library's kernel taken axis by axis.
    codes = 2 * codes[:, :, :-1] + codes[:, :, 1:]
    codes = 4 * codes[:, :-1] + codes[:, 1:]
    codes = 16 * codes[:-1] + codes[1:]
    flat = np.flatnonzero((codes != 0) & (codes != 255))
    table = create_table_neighbour_code_to_surface_area(tuple(spacing_mm))
    corners = np.stack(np.unravel_index(flat, codes.shape), axis=1) + np.asarray(origin, dtype=np.int64)
    return Surface(corners, table[codes.ravel()[flat]], tuple(float(s) for s in spacing_mm))


def surface_dice(prediction: Surface, target: Surface, tolerances_mm: Sequence[float]) -> tuple[float, ...]:
    """NSD at several tolerances from one search for nearest elements (Nikolov et al.).

    What `surface_distance.compute_surface_distances` finds by two distance transforms of the whole box is searched
    for from those elements alone that the other surface does not have, and no farther than the largest tolerance.

    Args:
        prediction, target: on one grid.

    Returns:
        One score a tolerance; all 1 where both surfaces are empty, all 0 where one is.
    """
    if not len(prediction) or not len(target):
        return (float(len(prediction) == len(target)),) * len(tolerances_mm)
    farthest_mm = max(tolerances_mm)
    distances = {
        "distances_gt_to_pred": _distances_mm(target, prediction, farthest_mm),
        "distances_pred_to_gt": _distances_mm(prediction, target, farthest_mm),
        "surfel_areas_gt": target.areas_mm2,
        "surfel_areas_pred": prediction.areas_mm2,
    }
    score = surface_distance.compute_surface_dice_at_tolerance
    return tuple(float(score(distances, tolerance_mm)) for tolerance_mm in tolerances_mm)


def _distances_mm(own: Surface, other: Surface, farthest_mm: float) -> np.ndarray:
    """(N,) distance of each element to the nearest of `other`; infinite beyond `farthest_mm`."""
    places = np.minimum(np.searchsorted(other.keys, own.keys), len(other) - 1)
    apart = other.keys[places] != own.keys
    distances_mm = np.zeros(len(own))
    bound = farthest_mm * (1 + 1e-9) + 1e-9  # the tree leaves out what lies just at its bound
    near_mm, nearest = other.tree.query(own.points_mm[apart], distance_upper_bound=bound)
    found = np.isfinite(near_mm)
    # Once more from whole voxels: at a tolerance that is a distance on the grid, the last digit decides.
    steps = own.corners[apart][found] - other.corners[nearest[found]]
    near_mm[found] = np.sqrt(((steps * np.asarray(own.spacing_mm)) ** 2).sum(axis=1))
    distances_mm[apart] = near_mm
    return distances_mm


def _checked(prediction, target) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, got {prediction.shape} and {target.shape}")
    return prediction, target
