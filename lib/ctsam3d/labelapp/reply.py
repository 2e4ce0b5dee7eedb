"""The label map of a reply: structures merged, and written the way the viewers read it."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ctsam3d.labelapp.requests import ReplyOptions
from ctsam3d.volume import Box, Volume

_NRRD_TYPES = {"float32": "float", "float64": "double"}
_GZIP_LEVEL = 1  # a label map shrinks to a hundredth at any level; this one is the fastest


@dataclass(frozen=True, eq=False)
class Segment:
    """One structure of the label map: its value, its mask in the box that holds all of it, and its probability."""

    value: int
    mask: np.ndarray
    box_ijk: Box
    probability: Callable[[Box], np.ndarray]


def merge(segments: Sequence[Segment], shape_ijk: tuple[int, int, int]) -> np.ndarray:
    """The label map, uint8 (I, J, K), i fastest in memory; where structures overlap, the most probable one holds.

    At equal probability the first in `segments` holds.
    """
    labels = np.zeros(shape_ijk, dtype=np.uint8, order="F")
    for segment in segments:
        labels[segment.box_ijk.slices()][segment.mask] = segment.value
    shared = Box((0, 0, 0), (0, 0, 0))  # the smallest box outside which no two structures can meet
    for one, other in itertools.combinations(segments, 2):
        shared = shared.union(one.box_ijk.intersection(other.box_ijk))
    if not shared.empty:
        _settle(labels, shared, segments)
    return labels


def _settle(labels: np.ndarray, shared: Box, segments: Sequence[Segment]) -> None:
    """Gives each voxel of `shared` that several structures claim to the most probable of them."""
    claims = np.zeros(shared.shape, dtype=np.uint8, order="F")
    for segment in segments:
        part = shared.intersection(segment.box_ijk)
        claims[part.slices(shared)] += segment.mask[part.slices(segment.box_ijk)]
    if claims.max() < 2:
        return
    box = _bounds(claims > 1, shared)
    best = np.full(box.shape, -1.0, dtype=np.float32)
    for segment in segments:
        part = box.intersection(segment.box_ijk)
        claimed = segment.mask[part.slices(segment.box_ijk)] & (claims[part.slices(shared)] > 1)
        if not claimed.any():
            continue
        probability = segment.probability(part)
        wins = claimed & (probability > best[part.slices(box)])
        best[part.slices(box)][wins] = probability[wins]
        labels[part.slices()][wins] = segment.value


def _bounds(mask: np.ndarray, box: Box) -> Box:
    """The smallest part of `box` that holds all of `mask`, an array over `box` that is not empty."""
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) + box.start[axis]
        spans.append((int(hit[0]), int(hit[-1]) + 1))
    return Box(*zip(*spans))


def write_reply(path: Path, labels: np.ndarray, volume: Volume, options: ReplyOptions) -> None:
    """Writes the label map on the grid of `volume`: shape and affine are exactly the image's.

    Nothing is forced to the disk or renamed: the file is sent once and deleted.
    """
    array = labels.astype(options.dtype, order="K", copy=False)
    if options.extension == ".nrrd":
        _write_nrrd(path, array, volume.affine_ras_mm, options.compress)
    else:
        _write_nifti(path, array, volume.affine_ras_mm)


def _write_nrrd(path: Path, array: np.ndarray, affine_ras_mm: np.ndarray, compress: bool) -> None:
    affine_lps_mm = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras_mm
    vectors = ["(" + ",".join(repr(float(v)) for v in column) + ")" for column in affine_lps_mm[:3].T]
    header = [
        "NRRD0004",
        f"type: {_NRRD_TYPES.get(array.dtype.name, array.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {vectors[3]}",
    ]
    voxels = np.ascontiguousarray(array.T, dtype=array.dtype.newbyteorder("<"))  # (K, J, I) in C order: i fastest
    with open(path, "wb") as file:
        file.write(("\n".join(header) + "\n\n").encode("ascii"))
        if compress:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as packed:
                packed.write(voxels.data)
        else:
            voxels.tofile(file)


def _write_nifti(path: Path, array: np.ndarray, affine_ras_mm: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine_ras_mm)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine_ras_mm, code=1)
    image.set_sform(affine_ras_mm, code=1)
    nib.save(image, path)  # gzip at nibabel's level, 1
