"""DICOM SEG: label maps of a CT series as segments with names, SNOMED CT codes and colours, and back.

A segment without voxels is written too: it says that the structure was looked for and is not there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from ctsam3d.data.dicom import RuleError, read_headers
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import onto_grid
from ctsam3d.data.label_codes import CODES, TISSUE, Code, SegmentCodes
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.volume import Volume

MAKER = "CT-SAM3D"
SERIES_NUMBER = 300
_UNKNOWN = SegmentCodes(TISSUE, TISSUE)  # of a structure that is none of the 107: all that is known of it
_OTHER_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))
_MAX_LABEL = 64  # characters of DICOM's LO
_POSITION_TOLERANCE = 0.1  # of a voxel, between the planes of a segmentation and the slices of its series


def write_dicom_seg(
    path: str | os.PathLike,
    series: str | os.PathLike,
    labels_ijk: np.ndarray,
    affine_ras_mm: np.ndarray,
    names: Mapping[int, str],
    *,
    version: str = "",
    description: str = MAKER,
) -> str:
    """Writes a label map of a CT series as a binary DICOM SEG; atomically.

    Args:
        series: folder of the slices.
        labels_ijk: (I, J, K) whole numbers, the voxels of the series in any axis order and direction.
        affine_ras_mm: (4, 4), indices of `labels_ijk` to RAS mm.
        names: value to name of every segment, also of those without voxels; names of the 107 get their codes.
        version: of the weights that made it.
        description: of the new series.

    Returns:
        The SeriesInstanceUID of what was written.

    Raises:
        ValueError: no name at all, a value without a name, another grid than that of the series, or a series that
            cannot be read.
    """
    headers, volume = _series(Path(series))
    labels = onto_grid(np.asarray(labels_ijk), np.asarray(affine_ras_mm), volume)
    if labels is None:
        raise ValueError(f"labels_ijk must lie on the grid of the series, {volume.shape_ijk}, got {labels_ijk.shape}")
    values = sorted(names)
    if not values or values[0] < 1:
        raise ValueError(f"names must name at least one value, all from 1 up, got {dict(names)}")
    unnamed = sorted(set(np.unique(labels).tolist()) - {0, *values})
    if unnamed:
        raise ValueError(f"names must name every value of labels_ijk, {unnamed} have no name")
    numbers = np.zeros(int(max(labels.max(), values[-1])) + 1, dtype=np.uint16)
    numbers[values] = np.arange(1, len(values) + 1)  # segments count from 1 without a gap
    dataset = _segmentation(headers, numbers[labels], [names[v] for v in values], version, description)
    # Readers find the places of frames by it, as those without voxels are left out; highdicom has it from few scanners.
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = round(float(np.linalg.norm(volume.affine_ras_mm[:3, 2])), 6)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, write_like_original=False)
    return str(dataset.SeriesInstanceUID)


def read_dicom_seg(path: str | os.PathLike, series: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """A DICOM SEG, of whatever maker, as a label map of the series that it belongs to.

    Where segments overlap, the one with the highest number holds.

    Args:
        series: folder of the slices.

    Returns:
        (I, J, K) uint8 or uint16, the axes as `read_volume` gives them for the series; its (4, 4) affine to RAS mm;
        and segment number to name, also of segments without voxels.

    Raises:
        ValueError: no binary or fractional DICOM SEG, or planes that are not slices of the series.
    """
    _, volume = _series(Path(series))
    try:
        dataset = pydicom.dcmread(path)
        names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.SegmentSequence}
        frames = _frames(dataset)
        places = _places(dataset, volume)
        shared = dataset.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
        segments = [_segment_number(item, shared) for item in dataset.PerFrameFunctionalGroupsSequence]
    except (AttributeError, IndexError, KeyError, pydicom.errors.InvalidDicomError) as error:
        raise ValueError(f"path {path} must hold a DICOM SEG: {error}") from error
    labels = np.zeros(volume.shape_ijk, np.uint8 if max(names, default=0) < 256 else np.uint16)
    for number in sorted(names):
        for index in np.flatnonzero(np.equal(segments, number)):
            labels[:, :, places[index]][frames[index].T] = number
    return labels, volume.affine_ras_mm, names


# ---- writing -------------------------------------------------------------------------------------------------------


def _series(folder: Path) -> tuple[list[Dataset], Volume]:
    """The slices, and their grid as a volume without voxels."""
    try:
        headers, affine_ras_mm = read_headers(folder)
    except RuleError as error:
        raise ValueError(f"series {folder} {error}") from error
    shape_ijk = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
    return headers, Volume(np.broadcast_to(np.int16(0), shape_ijk), affine_ras_mm)


def _segmentation(
    headers: list[Dataset],
    labels_ijk: np.ndarray,
    names: Sequence[str],
    version: str,
    description: str,
) -> Dataset:
    """The data set of a label map whose value n is the n-th name."""
    release = version or "unknown"
    segments = [_segment(number, name, release) for number, name in enumerate(names, start=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no segment has a voxel is no mistake here
        dataset = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=np.ascontiguousarray(labels_ijk.transpose(2, 1, 0)),  # (K slices, J rows, I columns)
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name="CT-SAM3D for MONAI Label",
            software_versions=release[:_MAX_LABEL],
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=description[:_MAX_LABEL],
            series_description=description[:_MAX_LABEL],
        )
    return dataset


def _segment(number: int, name: str, version: str) -> Dataset:
    known = CODES.get(name, _UNKNOWN)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MAKER, family=codes.DCM.ArtificialIntelligence, version=version[:_MAX_LABEL]
    )
    item = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_MAX_LABEL],
        segmented_property_category=_code(known.category),
        segmented_property_type=_code(known.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=generate_uid(),
        tracking_id=name[:_MAX_LABEL],
        anatomic_regions=[_code(known.region)] if known.region else None,
    )
    if known.modifier:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_code(known.modifier)]
    rgb = COLOURS.get(name, _OTHER_COLOURS[(number - 1) % len(_OTHER_COLOURS)])
    item.RecommendedDisplayCIELabValue = lab_of(rgb)
    return item


def _code(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def lab_of(rgb: tuple[int, int, int]) -> list[int]:
    """sRGB, 0 to 255, as DICOM's CIELab: three numbers of 16 bits (PS3.3 C.10.7.1.1), white as of D65."""
    parts = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ_FROM_RGB @ linear / _XYZ_FROM_RGB.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    scaled = [lab[0] / 100, (lab[1] + 128) / 255, (lab[2] + 128) / 255]
    return [round(65535 * float(v)) for v in np.clip(scaled, 0, 1)]


_XYZ_FROM_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of sRGB


# ---- reading -------------------------------------------------------------------------------------------------------


def _frames(dataset: Dataset) -> np.ndarray:
    """(frames, rows, columns) bool; a fractional segment counts from half its largest value."""
    pixels = dataset.pixel_array
    if dataset.get("SegmentationType") == "FRACTIONAL":
        pixels = pixels * 2 >= int(dataset.MaximumFractionalValue)
    return np.asarray(pixels, dtype=bool).reshape(-1, int(dataset.Rows), int(dataset.Columns))


def _segment_number(item: Dataset, shared: Dataset) -> int:
    group = item.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
    return int(group[0].ReferencedSegmentNumber)


def _places(dataset: Dataset, volume: Volume) -> list[int]:
    """The slice of the series that each frame lies on."""
    shared = dataset.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
    ras_from_lps = np.array([-1.0, -1.0, 1.0])
    axes = np.stack([volume.affine_ras_mm[:3, axis] * ras_from_lps for axis in range(3)], axis=1)
    directions = axes / np.linalg.norm(axes, axis=0)
    from_ras = np.linalg.inv(volume.affine_ras_mm)
    places = []
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        plane = item.get("PlanePositionSequence") or shared.PlanePositionSequence
        turn = item.get("PlaneOrientationSequence") or shared.PlaneOrientationSequence
        origin_lps_mm = np.array(plane[0].ImagePositionPatient, dtype=np.float64)
        i, j, k = (from_ras @ np.append(origin_lps_mm * ras_from_lps, 1))[:3]
        cosines = np.array(turn[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3).T
        aligned = np.abs(cosines - directions[:, :2]).max() < 1e-3
        off = max(abs(i), abs(j), abs(k - round(k)))
        same = (int(dataset.Columns), int(dataset.Rows)) == volume.shape_ijk[:2]
        if not (same and aligned and off <= _POSITION_TOLERANCE and 0 <= round(k) < volume.shape_ijk[2]):
            found = f"origin {origin_lps_mm.tolist()} mm"
            raise ValueError(f"frame {number} must lie on a slice of the series, got {found}")
        places.append(round(k))
    return places
