"""Trilinear resampling between a scan and the model grid, one box at a time.

Every output voxel is a function of its own index alone, so that a box computed in parts is bit for bit the box
computed whole; undo relies on it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ctsam3d.volume import OUTSIDE_HU, Box, ModelGrid, Volume, one_axis_per_row


def crop_hu(volume: Volume, grid: ModelGrid, box_zyx: Box) -> np.ndarray:
    """The scan on a box of the model grid.

    Only the voxels of the scan under the box are read.

    Returns:
        float32 (Z, Y, X) in HU. The edge value holds to half a voxel, of the scan or of the model, beyond the outermost
        centres, so that the model voxel of a click shows what was clicked; `OUTSIDE_HU` farther out.
    """
    array = volume.array_ijk
    return _sample(array, Box((0, 0, 0), array.shape), grid.ijk_from_zyx, box_zyx, outside=OUTSIDE_HU)


def crop_labels(labels_ijk: np.ndarray, grid: ModelGrid, box_zyx: Box) -> np.ndarray:
    """Nearest-neighbour labels on a box of the model grid, 0 where `crop_hu` is outside; same dtype, (Z, Y, X)."""
    index = _indices(grid.ijk_from_zyx, box_zyx)
    rounded = [np.floor(axis + 0.5).astype(np.int64) for axis in index]
    clipped = [np.clip(axis, 0, extent - 1) for axis, extent in zip(rounded, labels_ijk.shape)]
    beyond = _beyond(index, labels_ijk.shape, grid.ijk_from_zyx)
    return np.where(beyond, 0, labels_ijk[tuple(clipped)]).astype(labels_ijk.dtype)


def probability_on_scan(probability_zyx: np.ndarray, box_zyx: Box, grid: ModelGrid, box_ijk: Box) -> np.ndarray:
    """A probability that is known on `box_zyx` of the model grid, on a box of the scan's own grid.

    Beyond the outermost centres of the grid the outermost value holds; inside the grid, `box_zyx` must reach one
    model voxel past every voxel that counts.

    Returns:
        float32 with the shape of `box_ijk`.
    """
    return _sample(probability_zyx, box_zyx, grid.zyx_from_ijk, box_ijk, outside=None)


def _indices(matrix: np.ndarray, box: Box) -> list[np.ndarray]:
    """Source index (float64) of every voxel of `box`, an array per source axis, broadcastable to the box's shape.

    Where an axis of the source depends on one axis of the output only, its array varies along that axis alone.
    """
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(box.start, box.stop))]
    out = []
    for row in matrix[:3]:
        index = np.float64(row[3])
        for coefficient, axis in zip(row[:3], axes):
            if coefficient != 0.0:
                index = index + coefficient * axis
        out.append(index)
    return out


def _sample(array: np.ndarray, array_box: Box, matrix: np.ndarray, box: Box, outside: float | None) -> np.ndarray:
    """`array`, which spans `array_box`, at ``matrix @ index`` for each index of `box`.

    `outside` fills what lies `_beyond`; with None the edge value holds everywhere.
    """
    if box.empty:
        return np.empty(box.shape, np.float32)
    index = [np.asarray(i) - start for i, start in zip(_indices(matrix, box), array_box.start)]
    clipped = [np.clip(i, 0.0, n - 1.0) for i, n in zip(index, array.shape)]
    if one_axis_per_row(matrix):
        out = _separable(array, clipped, matrix, box.shape)
    else:
        low = [int(np.floor(c.min())) for c in clipped]
        high = [int(np.floor(c.max())) + 2 for c in clipped]
        part = array[tuple(slice(a, b) for a, b in zip(low, high))].astype(np.float32)
        coordinates = np.stack([np.broadcast_to(c - a, box.shape) for c, a in zip(clipped, low)])
        out = ndimage.map_coordinates(part, coordinates, order=1, mode="nearest", prefilter=False)
    if outside is not None:
        out = np.where(_beyond(index, array.shape, matrix), np.float32(outside), out)
    return np.require(out, np.float32, ["C", "W"])


def _beyond(index: list[np.ndarray], shape: tuple[int, ...], matrix: np.ndarray) -> np.ndarray:
    """Where `index` lies more than half a voxel, the source's or the output's, past the outermost centres."""
    beyond = np.False_
    for i, extent, row in zip(index, shape, matrix):
        reach = max(0.5, 0.5 * float(np.abs(row[:3]).sum())) + 1e-6
        beyond = beyond | (i < -reach) | (i > extent - 1 + reach)
    return beyond


def _separable(array: np.ndarray, index: list[np.ndarray], matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation axis by axis, for scans whose axes are parallel to the grid's."""
    lows = [np.floor(i).astype(np.int64).ravel() for i in index]
    fractions = [(i.ravel() - low).astype(np.float32) for i, low in zip(index, lows)]
    first = [int(low.min()) for low in lows]
    last = [min(int(low.max()) + 2, n) for low, n in zip(lows, array.shape)]
    out = array[tuple(slice(a, b) for a, b in zip(first, last))].astype(np.float32)
    for axis, (low, fraction, a) in enumerate(zip(lows, fractions, first)):
        below = low - a
        above = np.minimum(below + 1, out.shape[axis] - 1)
        weight = fraction.reshape([-1 if n == axis else 1 for n in range(3)])
        base = out.take(below, axis=axis)
        out = base + weight * (out.take(above, axis=axis) - base)
    # Source axis a follows output axis argmax |row a|: put the axes into the output's order.
    order = [int(np.argmax(np.abs(matrix[:3, column]))) for column in range(3)]
    return np.broadcast_to(out.transpose(order), shape)


def scale_hu(hu: np.ndarray, hu_window: tuple[float, float]) -> np.ndarray:
    """Intensities as the network sees them: `hu_window` clipped and scaled to [0, 1]; float32."""
    low, high = hu_window
    return ((np.clip(hu, low, high) - low) / (high - low)).astype(np.float32)
