"""The simulated user: where the next click goes, from a prediction and the truth (paper, Algorithm 1 and section 4.1).

Works in any frame and on any array; an index comes back in the order of the array's axes.
"""

from __future__ import annotations

import edt
import numpy as np

Index = tuple[int, ...]


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
    rng: np.random.Generator | None = None,
) -> tuple[Index, bool] | None:
    """The click that mends the worst error: the point of missed or wrong foreground farthest from its border.

    Args:
        prediction, target: bool masks of one shape.
        spacing: size of a voxel per axis, in any unit.
        rng: where given, any voxel at least half as deep as the deepest is taken, as an imprecise user would.

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
    if rng is None:
        place = int(np.argmax(depth))
    else:
        deep = np.flatnonzero(depth >= 0.5 * depth.max())
        place = int(deep[rng.integers(deep.size)])
    index = tuple(a + b for a, b in zip(low, _index(place, depth.shape)))
    return index, bool(target[index])


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
