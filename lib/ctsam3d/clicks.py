"""The simulated user: where the next click goes, from a prediction and the truth (paper, Algorithm 1 and section 4.1).

Works in any frame and on any array; an index comes back in the order of the array's axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import edt
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Index = tuple[int, ...]

IMPRECISE_DEPTH = 0.5  # an imprecise user clicks at least this share of the greatest depth


def first_click(target: np.ndarray, rng: np.random.Generator) -> Index:
    """A voxel of the structure, all equally likely.

    Raises:
        ValueError: `target` is empty.
    """
    inside = np.flatnonzero(target)
    if inside.size == 0:
        raise ValueError(f"target must hold the structure, got an empty mask of shape {target.shape}")
    return _index(inside[rng.integers(inside.size)], target.shape)


def next_click(
    prediction: np.ndarray,
    target: np.ndarray,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    imprecise: float | None = None,
) -> tuple[Index, bool] | None:
    """The click that mends the worst error: the point of missed or wrong foreground farthest from its border.

    Args:
        prediction, target: bool masks of one shape.
        spacing: size of a voxel per axis, in any unit.
        imprecise: where given, a random number in [0, 1) that chooses among the voxels at least half as deep as the
            deepest, as an imprecise user would.

    Returns:
        The voxel and whether the click is positive (missed foreground); None where the masks agree.
    """
    error = prediction != target
    if not error.any():
        return None
    # Missed (1) and wrong (2) foreground are regions of their own; the array's border is a border of theirs.
    regions = error.astype(np.uint8) + (error & prediction)
    low = [int(i.min()) for i in np.nonzero(error)]
    around = tuple(slice(a, int(i.max()) + 1) for a, i in zip(low, np.nonzero(error)))
    depth = edt.edt(np.ascontiguousarray(regions[around]), anisotropy=spacing, black_border=True)
    if imprecise is None:
        place = int(np.argmax(depth))
    else:
        deep = np.flatnonzero(depth >= IMPRECISE_DEPTH * depth.max())
        place = int(deep[int(imprecise * deep.size)])
    index = tuple(a + b for a, b in zip(low, _index(place, depth.shape)))
    return index, bool(target[index])


def next_clicks(
    predictions: Tensor, targets: Tensor, imprecise: Sequence[float | None]
) -> list[tuple[Index, bool] | None]:
    """`next_click` of every patch of a batch, with voxels of size 1, computed where the tensors are.

    Args:
        predictions, targets: bool (B, D, H, W) on one device.
        imprecise: B numbers, see `next_click`.
    """
    if predictions.device.type == "cpu":
        masks = zip(predictions.numpy(), targets.numpy(), imprecise)
        return [next_click(prediction, target, imprecise=draw) for prediction, target, draw in masks]
    return [_next_click_on_device(p, t, draw) for p, t, draw in zip(predictions, targets, imprecise)]


def _next_click_on_device(prediction: Tensor, target: Tensor, imprecise: float | None) -> tuple[Index, bool] | None:
    regions = torch.stack([target & ~prediction, prediction & ~target])  # missed, wrong
    depth = squared_depth(regions).amax(0).flatten()
    if imprecise is None:
        place = depth.argmax()
    else:
        deep = torch.nonzero(depth >= IMPRECISE_DEPTH**2 * depth.max())[:, 0]
        place = deep[int(imprecise * len(deep))]
    found = depth[place], place, target.flatten()[place]
    deepest, place, positive = torch.stack([value.double() for value in found]).tolist()  # one transfer
    return (_index(int(place), target.shape), bool(positive)) if deepest else None


def squared_depth(regions: Tensor) -> Tensor:
    """Squared distance, in voxels, of each voxel of a region to the nearest one outside; 0 outside.

    Exact, one axis after the other: over one more axis it is the lower envelope of parabolas (Meijster et al. 2000),
    here by brute force, which a GPU does faster than anything clever.

    Args:
        regions: bool (B, D, H, W); what lies beyond the array is outside.

    Returns:
        (B, D, H, W), float32.
    """
    squares = torch.where(F.pad(regions, (1,) * 6), float(sum((n + 2) ** 2 for n in regions.shape[1:])), 0.0)
    for axis in (1, 2, 3):
        places = torch.arange(squares.shape[axis], device=regions.device, dtype=squares.dtype)
        apart = (places[:, None] - places[None, :]) ** 2  # (n, n)
        lines = squares.movedim(axis, -1)  # (..., n)
        squares = (lines[..., None, :] + apart).amin(-1).movedim(-1, axis)
    return squares[:, 1:-1, 1:-1, 1:-1]


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
