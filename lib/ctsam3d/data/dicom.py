"""One CT series from a folder of DICOM slices, as a regular grid."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_GAP_TOLERANCE = 0.05  # of the usual distance between slices: positions are decimal strings, rounded by the scanner


class RuleError(Exception):
    """A rule that a readable file breaks; the text follows the path. `data.io` makes it a ValueError."""


def check_size(shape: tuple[int, ...], itemsize: int, max_bytes: float) -> None:
    """Before any voxel is read, whether they are too many: a small file can claim, and unpack to, any number.

    Raises:
        RuleError: more than `max_bytes`.
    """
    size = math.prod(map(int, shape)) * itemsize
    if size > max_bytes:
        raise RuleError(f"must hold at most {max_bytes / 1e6:.0f} MB of voxels, got {size / 1e6:.0f} MB {tuple(shape)}")


def read_series(folder: Path, max_bytes: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """The largest series among the DICOM images in `folder`, its slices in increasing position along the normal.

    Args:
        max_bytes: of the voxels, of two bytes each.

    Returns:
        float32 array (columns, rows, slices) in HU, and its (4, 4) affine to RAS mm.

    Raises:
        RuleError: no image, two largest series, damaged slices, slices that do not form a regular grid, or more than
            `max_bytes`.
    """
    headers, affine_ras_mm = read_headers(folder)
    check_size((headers[0].Columns, headers[0].Rows, len(headers)), 2, max_bytes)
    array = np.empty((headers[0].Columns, headers[0].Rows, len(headers)), np.float32, order="F")
    for k, header in enumerate(headers):
        array[:, :, k] = _slice_hu_ji(header).T
    return array, affine_ras_mm


def read_headers(folder: Path) -> tuple[list[pydicom.Dataset], np.ndarray]:
    """The slices of `read_series` in its order, without their pixels, and the (4, 4) affine to RAS mm.

    Raises:
        RuleError: as of `read_series`.
    """
    headers = _largest_series(folder)
    axes = _slice_axes(headers)
    positions = np.array([_numbers(header, "ImagePositionPatient", 3) for header in headers])
    along_mm = positions @ np.cross(axes[0], axes[1])
    order = np.argsort(along_mm, kind="stable")
    headers, positions, along_mm = [headers[n] for n in order], positions[order], along_mm[order]
    row_step_mm, column_step_mm = _numbers(headers[0], "PixelSpacing", 2)
    affine_lps_mm = np.eye(4)
    affine_lps_mm[:3, 0] = axes[0] * column_step_mm  # i walks along a row, from column to column
    affine_lps_mm[:3, 1] = axes[1] * row_step_mm
    affine_lps_mm[:3, 2] = _slice_step_mm(headers[0], positions, along_mm, axes, min(row_step_mm, column_step_mm))
    affine_lps_mm[:3, 3] = positions[0]
    return headers, RAS_FROM_LPS @ affine_lps_mm


def _largest_series(folder: Path) -> list[pydicom.Dataset]:
    """Headers of the images of the series with most slices; other files and other kinds of object are passed over."""
    series = defaultdict(list)
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except InvalidDicomError as error:
            if file.suffix.lower() == ".dcm":
                raise RuleError(f"holds {file.name}, which is not a DICOM file") from error
            continue
        except Exception as error:
            raise RuleError(f"holds {file.name}, which is damaged: {error}") from error
        kind = UID(header.file_meta.get("MediaStorageSOPClassUID", "")).name
        if "Image Storage" not in kind and "Rows" not in header:
            continue  # a DICOMDIR, a report, contours
        if not header.get("SeriesInstanceUID"):
            raise RuleError(f"holds {file.name}, which names no SeriesInstanceUID")
        if "Segmentation" not in kind:
            series[str(header.SeriesInstanceUID)].append(header)
    if not series:
        raise RuleError("must hold DICOM images, none is there")
    most = max(map(len, series.values()))
    largest = [uid for uid, headers in series.items() if len(headers) == most]
    if len(largest) > 1:
        raise RuleError(f"must hold one series with most slices, got {len(largest)} with {most} each: {largest}")
    return series[largest[0]]


def _file_name(header: pydicom.Dataset) -> str:
    return Path(header.filename).name


def _numbers(header: pydicom.Dataset, keyword: str, count: int) -> np.ndarray:
    """`count` finite numbers of one attribute."""
    value = header.get(keyword)
    if isinstance(value, str) or value is None:
        raise RuleError(f"holds {_file_name(header)}, in which {keyword} is missing")
    numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise RuleError(f"holds {_file_name(header)}, whose {keyword} must be {count} numbers, got {value}")
    return numbers


def _slice_axes(headers: list[pydicom.Dataset]) -> np.ndarray:
    """(2, 3), unit directions in LPS of increasing column and of increasing row, the same in all slices."""
    first = headers[0]
    axes = _numbers(first, "ImageOrientationPatient", 6).reshape(2, 3)
    gram = axes @ axes.T
    if np.abs(gram - np.eye(2)).max() > 1e-3:
        raise RuleError(f"must hold slices with orthogonal unit axes, got {axes.tolist()} in {_file_name(first)}")
    for header in headers:
        if header.get("NumberOfFrames", 1) not in (1, None) or header.get("SamplesPerPixel", 1) != 1:
            raise RuleError(f"must hold single-frame grey-scale slices, {_file_name(header)} is not one")
        for keyword, count in (("ImageOrientationPatient", 6), ("PixelSpacing", 2), ("Rows", 1), ("Columns", 1)):
            here, there = _numbers(header, keyword, count), _numbers(first, keyword, count)
            if np.abs(here - there).max() > 1e-4:
                raise RuleError(
                    f"must hold slices with one {keyword}, got {there.tolist()} in {_file_name(first)} "
                    f"and {here.tolist()} in {_file_name(header)}"
                )
    if min(_numbers(first, "PixelSpacing", 2)) <= 0:
        raise RuleError(f"must have a positive PixelSpacing, got {first.PixelSpacing} in {_file_name(first)}")
    return axes


def _slice_step_mm(header, positions, along_mm, axes, pixel_mm: float) -> np.ndarray:
    """(3,), the step in LPS from each slice to the next; a tilted gantry shears it.

    Args:
        header: the first slice, for the thickness of a scan of one slice.
        positions: (K, 3), ImagePositionPatient of the ordered slices.
        along_mm: (K,), the same along the normal.
        axes: (2, 3), row and column direction.
        pixel_mm: edge of a pixel, against which sideways jumps are measured.
    """
    if len(positions) == 1:
        thickness = header.get("SpacingBetweenSlices") or header.get("SliceThickness")
        if not thickness or float(thickness) <= 0:
            raise RuleError("holds one slice without a SliceThickness, its extent is unknown")
        return np.cross(axes[0], axes[1]) * float(thickness)
    gaps = np.diff(along_mm)
    usual = float(np.median(gaps))
    for gap, (before, after) in zip(gaps, itertools.pairwise(along_mm), strict=True):
        if gap < 1e-3:
            raise RuleError(f"must hold one slice per position, two lie at {before:.3f} mm along the normal")
        if abs(gap - usual) > _GAP_TOLERANCE * usual:
            missing = round(gap / usual) - 1
            count = f", as if {missing} were missing" if missing > 0 else ""
            raise RuleError(
                f"must hold equally spaced slices, got a gap of {gap:.3f} mm between the positions {before:.3f} and "
                f"{after:.3f} mm where {usual:.3f} mm is usual{count}"
            )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    astray = np.abs(positions - positions[0] - np.arange(len(positions))[:, None] * step).max()
    if astray > max(0.5 * pixel_mm, 2 * _GAP_TOLERANCE * usual):
        raise RuleError(f"must hold slices stacked along one line, one lies {astray:.3f} mm beside it")
    return step


def _slice_hu_ji(header: pydicom.Dataset) -> np.ndarray:
    """(rows, columns) in HU: the stored values times slope plus intercept.

    ITK decodes the compressed transfer syntaxes, which pydicom leaves to optional packages.
    """
    try:
        if header.file_meta.TransferSyntaxUID.is_compressed:
            return sitk.GetArrayFromImage(sitk.ReadImage(header.filename))[0]
        stored = pydicom.dcmread(header.filename).pixel_array.astype(np.float64)
    except Exception as error:
        raise RuleError(f"holds {_file_name(header)}, whose pixels are damaged: {error}") from error
    return stored * float(header.get("RescaleSlope", 1.0)) + float(header.get("RescaleIntercept", 0.0))
