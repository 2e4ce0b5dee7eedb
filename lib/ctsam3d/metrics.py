"""Scores of a mask against the truth, with the conventions of empty masks said."""

from __future__ import annotations

import numpy as np
import surface_distance


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """DSC, the Dice similarity coefficient of two masks of one shape; 1 where both are empty.

    Raises:
        ValueError: the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    total = int(prediction.sum()) + int(target.sum())
    return 1.0 if total == 0 else 2.0 * int((prediction & target).sum()) / total


def normalised_surface_dice(prediction, target, spacing_mm: tuple[float, float, float], tolerance_mm: float) -> float:
    """NSD: the share of both surfaces that lies within `tolerance_mm` of the other (Nikolov et al.).

    1 where both masks are empty, 0 where one is.

    Raises:
        ValueError: the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    if not prediction.any() or not target.any():
        return float(prediction.any() == target.any())
    either = np.nonzero(prediction | target)
    around = tuple(slice(max(0, int(i.min()) - 1), int(i.max()) + 2) for i in either)
    distances = surface_distance.compute_surface_distances(target[around], prediction[around], spacing_mm)
    return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))


def _checked(prediction, target) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, got {prediction.shape} and {target.shape}")
    return prediction, target
