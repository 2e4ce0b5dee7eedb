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

USERS = ("deepest", "jittered", "wrong-sign", "random")
JITTER_MM = 5.0  # a jittered user's farthest miss
WRONG_SIGN_SHARE = 0.1  # of a wrong-sign user's clicks after the first


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
    around = _around(error)
    if around is None:
        return None
    # Missed (1) and wrong (2) foreground are regions of their own; the array's border is a border of theirs.
    regions = error[around].astype(np.uint8) + (error & prediction)[around]
    depth = edt.edt(np.ascontiguousarray(regions), anisotropy=spacing, black_border=True)
    if imprecise is None:
        place = int(np.argmax(depth))
    else:
        deep = np.flatnonzero(depth >= IMPRECISE_DEPTH * depth.max())
        place = int(deep[int(imprecise * deep.size)])
    index = tuple(a.start + b for a, b in zip(around, _index(place, depth.shape)))
    return index, bool(target[index])


def check_user(user: str) -> str:
    """`user`, one of `USERS`.

    Raises:
        ValueError: another.
    """
    if user not in USERS:
        raise ValueError(f"user must be one of {', '.join(USERS)}, got {user!r}")
    return user


def user_click(
    user: str, prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, ...], rng: np.random.Generator
) -> tuple[Index, bool] | None:
    """The next click of a user who may be less perfect than the paper's.

    * ``deepest``: `next_click`, the paper's user, who always finds the deepest point of the error.
    * ``jittered``: another voxel of the same error, at most `JITTER_MM` from the deepest one; all equally likely. The
      deepest one where there is no other.
    * ``wrong-sign``: the deepest voxel, but a share of `WRONG_SIGN_SHARE` of the clicks has the other sign.
    * ``random``: any voxel of the error, all equally likely.

    Args:
        user: one of `USERS`.
        prediction, target: bool masks of one shape.
        spacing_mm: size of a voxel per axis.

    Returns:
        As `next_click`.

    Raises:
        ValueError: no such user.
    """
    if check_user(user) == "random":
        wrong = np.flatnonzero(prediction != target)
        index = _index(wrong[rng.integers(wrong.size)], target.shape) if wrong.size else None
        return index and (index, bool(target[index]))
    found = next_click(prediction, target, spacing_mm)
    if found is None or user == "deepest":
        return found
    index, positive = found
    if user == "jittered":
        return _beside(index, (prediction != target) & (target == positive), spacing_mm, rng), positive
    return index, positive != (rng.random() < WRONG_SIGN_SHARE)


def _beside(index: Index, region: np.ndarray, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Index:
    """Another voxel of a region within `JITTER_MM` of one of its voxels; that one where there is no other."""
    reach = [int(JITTER_MM / size) for size in spacing_mm]
    window = tuple(slice(max(0, v - r), v + r + 1) for v, r in zip(index, reach))
    places = np.argwhere(region[window]) + [a.start for a in window]
    apart_mm = np.linalg.norm((places - index) * np.asarray(spacing_mm), axis=1)
    near = places[(apart_mm > 0) & (apart_mm <= JITTER_MM)]
    return tuple(int(v) for v in near[rng.integers(len(near))]) if len(near) else index


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


def _around(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds every voxel of a mask; None where there is none."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not inside.size:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
