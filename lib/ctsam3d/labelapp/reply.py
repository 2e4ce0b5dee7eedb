"""The label map of a reply: structures merged, and written the way the viewers read it.

Only the box that holds labels is ever in memory: a file's voxels outside it are zeros that are never written out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from ctsam3d.labelapp.requests import ReplyOptions
from ctsam3d.labelapp.sparse_gzip import SparseGzip
from ctsam3d.volume import Box, Volume

_NRRD_TYPES = {"float32": "float", "float64": "double"}
_NO_BOX = Box((0, 0, 0), (0, 0, 0))


@dataclass(frozen=True, eq=False)
class Segment:
    """One structure of the label map: its value, its mask in the box that holds all of it, and its probability."""

    value: int
    mask: np.ndarray
    box_ijk: Box
    probability: Callable[[Box], np.ndarray]


@dataclass(frozen=True, eq=False)
class BoxedLabels:
    """A label map: uint8 (I, J, K) over a box of the scan, 0 outside. The box is the smallest; empty without labels."""

    array: np.ndarray
    box_ijk: Box


def merge(segments: Sequence[Segment]) -> BoxedLabels:
    """The label map; where structures overlap, the most probable one holds, and at equal probability the first."""
    box, shared = _NO_BOX, _NO_BOX  # all segments, and the smallest box outside which no two of them can meet
    for segment in segments:
        box = box.union(segment.box_ijk)
    for one, other in itertools.combinations(segments, 2):
        shared = shared.union(one.box_ijk.intersection(other.box_ijk))
    labels = np.zeros(box.shape, dtype=np.uint8)
    for segment in segments:
        if not segment.box_ijk.empty:
            labels[segment.box_ijk.slices(box)][segment.mask] = segment.value
    if not shared.empty:
        _settle(labels, box, shared, segments)
    tight = _bounds(labels, box)
    return BoxedLabels(labels[tight.slices(box)], tight)


def labels_in_box(labels_ijk: np.ndarray) -> BoxedLabels:
    """A whole label map, uint8 (I, J, K), cut to the box that holds its labels."""
    box = _bounds(labels_ijk, Box((0, 0, 0), labels_ijk.shape))
    return BoxedLabels(labels_ijk[box.slices()], box)


def _settle(labels: np.ndarray, box: Box, shared: Box, segments: Sequence[Segment]) -> None:
    """Gives each voxel of `shared` that several structures claim to the most probable of them; `labels` spans `box`."""
    claims = np.zeros(shared.shape, dtype=np.uint8)
    for segment in segments:
        part = shared.intersection(segment.box_ijk)
        if not part.empty:
            claims[part.slices(shared)] += segment.mask[part.slices(segment.box_ijk)]
    contested = _bounds(claims > 1, shared)
    best = np.full(contested.shape, -1.0, dtype=np.float32)
    for segment in segments:
        part = contested.intersection(segment.box_ijk)
        if part.empty:
            continue
        claimed = segment.mask[part.slices(segment.box_ijk)] & (claims[part.slices(shared)] > 1)
        if not claimed.any():
            continue
        probability = segment.probability(part)
        wins = claimed & (probability > best[part.slices(contested)])
        best[part.slices(contested)][wins] = probability[wins]
        labels[part.slices(box)][wins] = segment.value


def _bounds(array: np.ndarray, box: Box) -> Box:
    """The smallest part of `box` outside which `array`, over `box`, is 0; an empty box where it is 0 throughout."""
    if box.empty:
        return _NO_BOX
    over_i = array.max(axis=0) > 0  # (J, K); the whole array is read in its memory order, once
    if not over_i.any():
        return _NO_BOX
    j, k = _span(over_i.any(axis=1)), _span(over_i.any(axis=0))
    i = _span(array[:, slice(*j), slice(*k)].any(axis=(1, 2)))
    return Box(*(tuple(a + start for a, start in zip(end, box.start)) for end in zip(i, j, k)))


def _span(hits: np.ndarray) -> tuple[int, int]:
    """First index of a hit, and the one after the last."""
    found = np.flatnonzero(hits)
    return int(found[0]), int(found[-1]) + 1


# ---- the file ------------------------------------------------------------------------------------------------------


def result_box(labels: BoxedLabels) -> Box:
    """The box that a reply of the labels' box alone spans: a file must hold a voxel, also where there is no label."""
    return labels.box_ijk if not labels.box_ijk.empty else Box((0, 0, 0), (1, 1, 1))


def write_reply(path: Path, labels: BoxedLabels, volume: Volume, options: ReplyOptions) -> None:
    """Writes the label map on the grid of `volume`, shape and affine exactly the image's, or on `result_box` alone.

    Nothing is forced to the disk or renamed: the file is sent once and deleted.
    """
    grid = result_box(labels) if options.box_only else volume.box_ijk
    affine_ras_mm = volume.affine_ras_mm.copy()
    affine_ras_mm[:3, 3] += affine_ras_mm[:3, :3] @ grid.start
    dtype = np.dtype(options.dtype).newbyteorder("<")
    with open(path, "wb") as file:
        if options.extension == ".nrrd":
            file.write(_nrrd_header(dtype, grid.shape, affine_ras_mm, options.compress))
            head, compress = b"", options.compress
        else:
            head, compress = _nifti_header(dtype, grid.shape, affine_ras_mm), options.extension.endswith(".gz")
        stream = SparseGzip(file, dtype.itemsize) if compress else _SparseFile(file)
        if head:  # of NIfTI, it is compressed with the voxels
            stream.write(head)
        _write_voxels(stream, labels, grid, dtype)
        stream.close()


class _SparseFile:
    """`SparseGzip` without compression: zeros are holes in the file."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.write = file.write

    def zeros(self, count: int) -> None:
        self._file.seek(count, 1)

    def close(self) -> None:
        self._file.truncate()


def _write_voxels(stream: SparseGzip | _SparseFile, labels: BoxedLabels, grid: Box, dtype: np.dtype) -> None:
    """The voxels of `grid`, i fastest: per slice the rows that the labels reach, whole, and zeros in between."""
    ni, nj, nk = grid.shape
    row_bytes = ni * dtype.itemsize
    if labels.box_ijk.empty:
        stream.zeros(row_bytes * nj * nk)
        return
    i, j, k = labels.box_ijk.slices(grid)
    rows = np.zeros((j.stop - j.start, ni), dtype)  # (J of the box, I of the grid)
    stream.zeros(row_bytes * (k.start * nj + j.start))
    for index in range(k.stop - k.start):
        if index:
            stream.zeros(row_bytes * (nj - len(rows)))
        rows[:, i] = labels.array[:, :, index].T
        stream.write(rows)
    stream.zeros(row_bytes * (nj - j.stop + (nk - k.stop) * nj))


def _nrrd_header(dtype: np.dtype, shape_ijk: tuple, affine_ras_mm: np.ndarray, compress: bool) -> bytes:
    affine_lps_mm = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras_mm
    vectors = ["(" + ",".join(repr(float(v)) for v in column) + ")" for column in affine_lps_mm[:3].T]
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES.get(dtype.name, dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, shape_ijk))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {vectors[3]}",
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")


def _nifti_header(dtype: np.dtype, shape_ijk: tuple, affine_ras_mm: np.ndarray) -> bytes:
    """The 352 bytes before the voxels of a single file."""
    image = nib.Nifti1Image(np.broadcast_to(np.zeros((), dtype), shape_ijk), affine_ras_mm)  # no voxel in memory
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    image.header.set_data_offset(image.header.single_vox_offset)
    image.set_qform(affine_ras_mm, code=1)
    image.set_sform(affine_ras_mm, code=1)
    image.update_header()
    return image.header.binaryblock + bytes(4)  # no extensions
