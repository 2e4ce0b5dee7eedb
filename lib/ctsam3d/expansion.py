"""From one patch to the next: which patches lie beside it, and where P says that the structure goes on."""

from __future__ import annotations

import itertools

import numpy as np

from ctsam3d.volume import Box

STRIDE = 32  # voxels between the centres of a patch and its neighbours


def neighbours(box_zyx: Box, grid_box_zyx: Box, stride: int = STRIDE) -> list[Box]:
    """The patches beside one, up to 26, each `stride` voxels away along one, two or three axes.

    Patches that would leave the grid are moved inside it, as clicked ones are; what that brings back to a patch that
    is there already is left out.
    """
    found = {}
    for step in itertools.product((-1, 0, 1), repeat=3):
        start = []
        for a, n, low, high, s in zip(box_zyx.start, box_zyx.shape, grid_box_zyx.start, grid_box_zyx.stop, step):
            start.append(a if high - low <= n else min(max(a + s * stride, low), high - n))
        moved = Box(tuple(start), tuple(a + n for a, n in zip(start, box_zyx.shape)))
        found[moved] = None
    return [box for box in found if box != box_zyx]


def peak(heatmap: np.ndarray) -> tuple[tuple[int, int, int], float]:
    """Where P's heatmap (D, H, W) is highest, as a voxel of its patch, and how high."""
    place = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    return tuple(int(v) for v in place), float(heatmap[place])
