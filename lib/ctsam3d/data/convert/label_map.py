"""One label map of the 107 values from masks of single structures, or from a map with values of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ctsam3d.data.labels import NAMES, TISSUES, VALUE_OF, our_name

_FIRST_TISSUE = VALUE_OF[TISSUES[0]]


def painting_order(names: Iterable[str]) -> list[str]:
    """The names that have a counterpart, in the order in which their masks are painted over each other.

    As in TotalSegmentator's own conversion the later class of its list wins (its issues 8 and 350); the three tissues
    come first, as they only fill what nothing else takes.
    """
    known = [name for name in names if our_name(name)]
    return sorted(known, key=lambda name: (our_name(name) not in TISSUES, VALUE_OF[our_name(name)], name))


def paint(labels_ijk: np.ndarray, mask_ijk: np.ndarray, value: int) -> int:
    """Writes `value` where the mask is not zero; plane by plane, to spare memory.

    Returns:
        How many voxels another structure lost by it; the tissues, which are painted under all others, lose none.
    """
    lost = 0
    for k in range(mask_ijk.shape[2]):
        plane = mask_ijk[:, :, k] != 0
        if plane.any():
            below = labels_ijk[:, :, k][plane]
            lost += int(np.count_nonzero((below != 0) & (below != value) & (below < _FIRST_TISSUE)))
            labels_ijk[:, :, k][plane] = value
    return lost


def rename(labels_ijk: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """A map with values of its own as one with the 107 values; what has no name or no counterpart becomes 0.

    Args:
        labels_ijk: (I, J, K), whole numbers from 0.
        names: of its values.

    Returns:
        (I, J, K) uint8, in Fortran order.
    """
    table = np.zeros(max(int(labels_ijk.max()), *names, 0) + 1, np.uint8)
    for value, name in names.items():
        table[value] = VALUE_OF.get(our_name(name), 0)
    out = np.empty(labels_ijk.shape, np.uint8, order="F")
    for k in range(labels_ijk.shape[2]):
        out[:, :, k] = table[labels_ijk[:, :, k]]
    return out


def voxels_of(labels_ijk: np.ndarray) -> dict[str, int]:
    """Number of voxels of each of the 107 that the map holds, in their order."""
    counts = value_counts(labels_ijk)
    return {name: counts[value] for name, value in VALUE_OF.items() if value in counts}


def value_counts(labels_ijk: np.ndarray) -> dict[int, int]:
    """Number of voxels of each value from 1 up that occurs; plane by plane, to spare memory."""
    counts = np.zeros(len(NAMES) + 1, np.int64)
    for k in range(labels_ijk.shape[2]):
        plane = np.bincount(labels_ijk[:, :, k].ravel(order="K"), minlength=len(counts))
        counts = np.pad(counts, (0, max(0, len(plane) - len(counts))))
        counts[: len(plane)] += plane
    return {value: int(count) for value, count in enumerate(counts) if value and count}
