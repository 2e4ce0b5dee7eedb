"""One case: image and labels read, mended or refused, and put into the datastore as whole files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from ctsam3d.data.convert.cases import IMAGE, SourceCase, fingerprint, label_map_of, masks_of
from ctsam3d.data.convert.grids import HEADER, REORIENTED, RESAMPLED, grid_of, on_image_grid, orthonormal
from ctsam3d.data.convert.label_map import paint, painting_order, rename, value_counts, voxels_of
from ctsam3d.data.convert.store import Record, Store
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import read_label_grid, read_label_values, read_volume, write_mask, write_volume
from ctsam3d.data.labels import VALUE_OF, our_name
from ctsam3d.volume import Volume

MAX_VALUE = 2**16 - 1  # of a label map; more are no labels


@dataclass(frozen=True, eq=False)
class Image:
    """The scan of a case.

    Attributes:
        source: its grid as downloaded, on which its labels should lie.
        grid: the grid that it has in the datastore; another one where its direction was mended.
        volume: the scan where its file is written anew; None where the file is copied, so that no memory is held.
    """

    source: Volume
    grid: Volume
    volume: Volume | None


@dataclass(frozen=True, eq=False)
class Labels:
    """The label map of a case, and what was found on the way to it.

    Attributes:
        labels_ijk: (I, J, K) uint8 with the 107 values, on the image's grid.
        empty: names, as downloaded, of masks or values without a voxel.
        dropped: names, as downloaded, without counterpart; ``value 7`` for a value without a name. Their masks are not
            read, of a label map they are those that occur.
        overlap_voxels: claimed by two structures; the later label has them.
        covered: structures that had voxels and have none left.
        repairs: number of files by what it took to bring them to the grid.
    """

    labels_ijk: np.ndarray
    empty: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    overlap_voxels: int = 0
    covered: tuple[str, ...] = ()
    repairs: Mapping[str, int] | None = None


def convert_case(case: SourceCase, store: Store) -> Record:
    """Converts one case; what is in the datastore under its name before or after is whole, whenever this is killed.

    Returns:
        The record, which is on disk; for a case that is refused, one that says why, and nothing is on disk.

    Raises:
        OSError: the datastore cannot be written to.
    """
    start = time.monotonic()
    record = Record(case.name, case.part, case.source_part, case.patient, fingerprint(case.folder))
    try:
        image = _read_image(case.folder)
        labels = _read_labels(case.folder, image.source)
    except (OSError, ValueError) as error:
        return replace(record, refused=_reason(error, case.folder), seconds=time.monotonic() - start)
    with store.work(case.name) as work:
        image_file, label_file = work / "image.nii.gz", work / "label.nii.gz"
        if image.volume is not None:
            write_volume(image_file, image.volume)
        else:
            with atomic_path(image_file) as temporary:
                shutil.copyfile(case.folder / IMAGE, temporary)
        voxels = voxels_of(labels.labels_ijk) if labels else {}
        if voxels:
            write_mask(label_file, labels.labels_ijk, image.grid)
        record = replace(record, **_found(image, labels), voxels=voxels, seconds=time.monotonic() - start)
        return store.put(record, image_file, label_file if voxels else None)


def _read_image(folder: Path) -> Image:
    """The scan, its direction made orthonormal.

    Raises:
        OSError, ValueError: it cannot be used.
    """
    path = folder / IMAGE
    volume = read_volume(path if path.is_file() else folder)
    source, affine = grid_of(volume), orthonormal(volume.affine_ras_mm, volume.shape_ijk)
    if affine is not None:
        volume = Volume(volume.array_ijk, affine)
    return Image(source, grid_of(volume), volume if affine is not None or not path.is_file() else None)


def _read_labels(folder: Path, image: Volume) -> Labels | None:
    """None where the case has no labels at all.

    Raises:
        OSError, ValueError: a file cannot be used, so that what it holds would be missing from the map.
    """
    if (path := label_map_of(folder)) is not None:
        return _from_map(path, image)
    if masks := masks_of(folder):
        return _from_masks(masks, image)
    return None


def _from_map(path: Path, image: Volume) -> Labels:
    names = _names_in(path)
    labels, repair = _read_on_grid(path, image)
    counts = value_counts(labels)
    unnamed = tuple(f"value {value}" for value in counts if value not in names)
    dropped = tuple(name for value, name in names.items() if value in counts and not our_name(name))
    empty = tuple(name for value, name in names.items() if value not in counts)
    return Labels(rename(labels, names), empty, dropped + unnamed, repairs=Counter([repair]))


def _from_masks(masks: Mapping[str, Path], image: Volume) -> Labels:
    labels_ijk = np.zeros(image.shape_ijk, np.uint8, order="F")
    repairs, painted, empty, overlap = Counter(), [], [], 0
    for name in painting_order(masks):
        mask_ijk, repair = _read_on_grid(masks[name], image)
        repairs[repair] += 1
        if mask_ijk.any():
            painted.append(our_name(name))
            overlap += paint(labels_ijk, mask_ijk, VALUE_OF[our_name(name)])
        else:
            empty.append(name)
    left = voxels_of(labels_ijk)
    covered = tuple(name for name in dict.fromkeys(painted) if name not in left)
    dropped = tuple(name for name in masks if not our_name(name))
    return Labels(labels_ijk, tuple(empty), dropped, overlap, covered, repairs)


def _read_on_grid(path: Path, image: Volume) -> tuple[np.ndarray, str]:
    labels, affine = read_label_grid(path)
    if labels.max() > MAX_VALUE:
        raise ValueError(f"path {path} must hold label values up to {MAX_VALUE}, got {labels.max()}")
    try:
        return on_image_grid(labels, affine, image)
    except ValueError as error:
        raise ValueError(f"path {path} {error}") from error


def _names_in(path: Path) -> dict[int, str]:
    """The names of a label map's values: from ``labels.json`` beside it, or as TotalSegmentator writes them into it.

    Its ``--ml`` output carries a table of labels in XML, an extension of the NIfTI header.
    """
    beside = path.parent / "labels.json"
    if beside.is_file():
        return read_label_values(beside)
    try:
        extensions = nib.load(path).header.extensions
        tables = [ElementTree.fromstring(bytes(e.get_content()).strip(b"\0 \n")) for e in extensions]
        names = {int(label.get("Key")): (label.text or "").strip() for t in tables for label in t.iter("Label")}
    except Exception as error:  # a broken file, header or table, each with an exception of its own
        raise ValueError(f"path {path} has a header that cannot be read: {error}") from error
    names = {value: name for value, name in sorted(names.items()) if name and value > 0}
    if not names:
        raise ValueError(f"path {path} must come with labels.json, or with the names of its labels in its header")
    return names


def _found(image: Image, labels: Labels | None) -> dict:
    """What the record says of image and labels."""
    found = {
        "shape_ijk": image.grid.shape_ijk,
        "spacing_ijk_mm": image.grid.spacing_ijk_mm,
        "direction_mended": not np.array_equal(image.source.affine_ras_mm, image.grid.affine_ras_mm),
    }
    if labels is None:
        return found
    repairs = labels.repairs or {}
    return found | {
        "empty": labels.empty,
        "dropped": labels.dropped,
        "covered": labels.covered,
        "overlap_voxels": labels.overlap_voxels,
        "reoriented": repairs.get(REORIENTED, 0),
        "header_mended": repairs.get(HEADER, 0),
        "resampled": repairs.get(RESAMPLED, 0),
    }


def _reason(error: Exception, folder: Path) -> str:
    """In one line, with paths as they stand in the case's folder."""
    return " ".join(str(error).replace(f"{folder}/", "").split())
