"""Scans, label maps and masks on disk: NIfTI, NRRD, MetaImage, and folders of DICOM slices.

Whatever the format, an array has the axis order (i, j, k) of its file with i running fastest on disk, and its affine
takes voxel indices to RAS world millimetres. A file that cannot be used raises ValueError that names the path, the
rule and what was found, never a library's own exception.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ctsam3d.data.dicom import RAS_FROM_LPS, RuleError, check_size, read_series
from ctsam3d.data.files import atomic_path
from ctsam3d.volume import Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file each, so that replacing it is one step

_HEADER_BYTES = 2**16  # within which the text header of an NRRD or MetaImage file ends, or it is none
_GRID_TOLERANCE_VOXELS = 0.1  # two headers of one grid differ by the rounding of float32, far less than this


def read_volume(path: str | os.PathLike, max_bytes: int | None = None) -> Volume:
    """A CT from NIfTI (.nii, .nii.gz), NRRD or MetaImage (.nrrd, .nhdr, .mha, .mhd), or a folder of DICOM slices.

    A DICOM array has i along a row (columns), j down the rows, and k over slices in increasing position along the
    normal, the cross product of row and column direction. A folder with several series yields the largest one.

    Args:
        max_bytes: of the voxels as stored, which is known before any is read; None: no limit.

    Returns:
        Volume with an int16 array where every value is whole and fits, else float32; stored slopes are applied.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: unreadable, not a 3D scan of real finite values (a fourth axis of length 1 is accepted), DICOM
            slices that do not form one regular grid, more than `max_bytes`, or a .nrrd or .mha whose voxels lie in
            another file.
    """
    path = Path(path)
    array, affine = _read_grid(path, max_bytes)
    try:
        return Volume(_compact(array), affine)
    except (ValueError, TypeError) as error:
        raise ValueError(f"path {path} does not hold a usable scan: {error}") from error


def read_labels(path: str | os.PathLike, volume: Volume) -> np.ndarray:
    """A label map on the grid of `volume`.

    A file whose voxels are those of the scan in another axis order or direction is brought to the scan's by moving
    whole voxels; nothing is interpolated.

    Returns:
        (I, J, K) array of uint8, uint16 or int32, the smallest that holds the largest label.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: unreadable, values that are not whole numbers from 0 to 2**31 - 1, or another grid.
    """
    array, affine = read_label_grid(path)
    moved = onto_grid(array, affine, volume)
    if moved is None:
        raise ValueError(
            f"path {path} must lie on the scan's grid, shape {volume.shape_ijk} and affine "
            f"{volume.affine_ras_mm.round(4).tolist()}; got shape {array.shape} and affine {affine.round(4).tolist()}"
        )
    return np.ascontiguousarray(moved)


def read_label_grid(path: str | os.PathLike, max_bytes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A label map on its own grid.

    Args:
        max_bytes: as of `read_volume`.

    Returns:
        (I, J, K) array of uint8, uint16 or int32, the smallest that holds the largest label, and its (4, 4) affine to
        RAS mm.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: unreadable, values that are not whole numbers from 0 to 2**31 - 1, or as of `read_volume`.
    """
    path = Path(path)
    array, affine = _read_grid(path, max_bytes)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and np.array_equal(array, np.rint(array))):
        raise ValueError(f"path {path} must hold whole label values, got dtype {array.dtype} with fractions or NaN")
    low, high = array.min(), array.max()
    if low < 0 or high >= 2**31:
        raise ValueError(f"path {path} must hold label values from 0 to 2**31 - 1, got {low} to {high}")
    dtype = np.uint8 if high < 2**8 else np.uint16 if high < 2**16 else np.int32
    return array.astype(dtype, copy=False), affine


@dataclass(frozen=True, eq=False)
class Case:
    """A scan and its structures; a mask is read from disk when it is asked for.

    Attributes:
        name: name of the folder.
        volume: the scan.
        structures: name to a function without arguments that returns the bool mask (I, J, K).
    """

    name: str
    volume: Volume
    structures: Mapping[str, Callable[[], np.ndarray]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the structures, in the order of the labels."""
        return tuple(self.structures)

    def mask(self, name: str) -> np.ndarray:
        """The bool mask (I, J, K) of one structure.

        Raises:
            ValueError: no structure of that name, or its file cannot be used (see `read_labels`).
        """
        if name not in self.structures:
            raise ValueError(f"name must be a structure of case {self.name}, one of {list(self.names)}, got {name!r}")
        return self.structures[name]()


def read_case(folder: str | os.PathLike) -> Case:
    """A case: ``ct.nii.gz`` or DICOM slices, with ``seg.nii.gz`` and ``labels.json``, or ``segmentations/NAME.nii.gz``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a part is missing or cannot be used.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"folder must be the folder of a case, got the file {folder}")
    if (folder / "ct.nii.gz").exists():
        volume = read_volume(folder / "ct.nii.gz")
    elif any(folder.glob("*.dcm")):
        volume = read_volume(folder)
    else:
        raise ValueError(f"folder {folder} must hold ct.nii.gz or DICOM slices (*.dcm)")
    name = folder.resolve().name
    if (folder / "seg.nii.gz").exists():
        label_map = _LabelMap(folder / "seg.nii.gz", volume)
        values = read_label_values(folder / "labels.json")
        loaders = {structure: partial(label_map.mask, value) for value, structure in values.items()}
    elif any((folder / "segmentations").glob("*.nii.gz")):
        files = sorted((folder / "segmentations").glob("*.nii.gz"))
        loaders = {file.name.removesuffix(".nii.gz"): partial(_read_mask, file, volume) for file in files}
    else:
        raise ValueError(f"folder {folder} must hold seg.nii.gz with labels.json, or segmentations/<name>.nii.gz")
    return Case(name, volume, MappingProxyType(loaders))


def write_mask(path: str | os.PathLike, mask_ijk: np.ndarray, volume: Volume) -> None:
    """Writes a mask as uint8 with the scan's affine, as .nii, .nii.gz, .nrrd or .mha; atomically.

    Args:
        mask_ijk: (I, J, K) bool or whole numbers from 0 to 255, on the scan's grid.

    Raises:
        TypeError: not whole numbers.
        ValueError: another shape than the scan's, values beyond uint8, or another extension.
    """
    mask = np.asarray(mask_ijk)
    if mask.dtype.kind not in "biu":
        raise TypeError(f"mask_ijk must hold bool or whole numbers, got dtype {mask.dtype}")
    if mask.shape != volume.shape_ijk:
        raise ValueError(f"mask_ijk must have the scan's shape {volume.shape_ijk}, got {mask.shape}")
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"mask_ijk must hold values from 0 to 255, got {mask.min()} to {mask.max()}")
    _write_grid(Path(path), mask.astype(np.uint8), volume.affine_ras_mm)


def write_volume(path: str | os.PathLike, volume: Volume) -> None:
    """Writes a scan with its own dtype, as .nii, .nii.gz, .nrrd or .mha; atomically.

    Raises:
        ValueError: another extension.
    """
    _write_grid(Path(path), volume.array_ijk, volume.affine_ras_mm)


# ---- one file ----------------------------------------------------------------------------------------------------


def _suffix(path: Path, suffixes: tuple[str, ...]) -> str | None:
    return next((s for s in suffixes if path.name.lower().endswith(s)), None)


def _read_grid(path: Path, max_bytes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) array as stored, slopes applied, and its (4, 4) affine to RAS mm."""
    if not path.exists():
        raise FileNotFoundError(f"path {path} does not exist")
    if path.is_dir():
        read = read_series
    elif _suffix(path, NIFTI_SUFFIXES):
        read = _read_nifti
    elif _suffix(path, ITK_SUFFIXES):
        read = _read_itk
    elif _suffix(path, (".dcm",)):
        raise ValueError(f"path must be the folder of a DICOM series, not one of its files: {path}")
    else:
        known = ", ".join(NIFTI_SUFFIXES + ITK_SUFFIXES)
        raise ValueError(f"path must end with one of {known}, or be a folder of DICOM slices, got {path}")
    try:
        return read(path, math.inf if max_bytes is None else max_bytes)
    except RuleError as error:
        raise ValueError(f"path {path} {error}") from error
    except Exception as error:  # the libraries raise dozens of kinds for damaged files
        reason = str(error).strip()
        if "itk::ERROR" in reason:  # a trace through the library, whose last line says what is wrong
            reason = reason.splitlines()[-1]
        raise ValueError(f"path {path} cannot be read, it is damaged or not what its name says: {reason}") from error


def _checked_3d(shape: tuple[int, ...]) -> None:
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise RuleError(f"must hold a 3D image, got shape {tuple(shape)}")
    if min(shape) < 1:
        raise RuleError(f"must hold at least one voxel along each axis, got shape {tuple(shape)}")


def _checked_alone(path: Path) -> None:
    """A .nrrd or .mha, unlike .nhdr and .mhd, holds its voxels itself: one that names another file could name any."""
    with open(path, "rb") as file:
        lines = [line.strip().lower() for line in file.read(_HEADER_BYTES).splitlines()]
    if path.name.lower().endswith(".mha"):
        values = [line.partition(b"=")[2].strip() for line in lines if line.startswith(b"elementdatafile")]
        alone = values[:1] == [b"local"]
    elif path.name.lower().endswith(".nrrd"):
        header = list(itertools.takewhile(bool, lines))
        named = any(line.replace(b" ", b"").startswith(b"datafile:") for line in header)
        alone = len(header) < len(lines) and not named
    else:
        return
    if not alone:
        raise RuleError("must hold its voxels itself, after a header that names no other file")


def _read_nifti(path: Path, max_bytes: float) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path, mmap=False)
    _checked_3d(image.shape)
    check_size(image.shape, image.get_data_dtype().itemsize, max_bytes)
    if image.get_data_dtype().kind not in "iuf":
        raise RuleError(f"must hold real numbers, got dtype {image.get_data_dtype()}")
    if (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0):
        array = image.dataobj.get_unscaled()
    else:
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    return array.reshape(array.shape[:3], order="A"), image.affine


def _read_itk(path: Path, max_bytes: float) -> tuple[np.ndarray, np.ndarray]:
    _checked_alone(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise RuleError(f"must hold one number per voxel, got {reader.GetNumberOfComponents()}")
    _checked_3d(reader.GetSize())
    check_size(reader.GetSize(), sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent(), max_bytes)
    image = reader.Execute()
    dimension = image.GetDimension()
    affine_lps_mm = np.eye(4)
    affine_lps_mm[:3, :3] = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3] * image.GetSpacing()[:3]
    affine_lps_mm[:3, 3] = image.GetOrigin()[:3]
    array_kji = sitk.GetArrayFromImage(image)
    return array_kji.reshape(array_kji.shape[-3:]).T, RAS_FROM_LPS @ affine_lps_mm


def _compact(array: np.ndarray) -> np.ndarray:
    """int16 where every value is whole and fits, else float32; plane by plane, to spare memory."""
    planes = np.moveaxis(array, int(np.argmax(array.strides)), 0)
    limits = np.iinfo(np.int16)
    if array.dtype.kind == "f":
        bad = sum(int(np.count_nonzero(~np.isfinite(plane.astype(np.float32)))) for plane in planes)
        if bad:
            raise ValueError(f"every voxel must be a finite number, {bad} of {array.size} are not")
    whole = array.dtype.kind != "f" or all(np.array_equal(plane, np.rint(plane)) for plane in planes)
    fits = whole and array.min() >= limits.min and array.max() <= limits.max
    return array.astype(np.int16 if fits else np.float32, copy=False)


def _write_grid(path: Path, array: np.ndarray, affine_ras_mm: np.ndarray) -> None:
    suffix = _suffix(path, WRITABLE_SUFFIXES)
    if suffix is None:
        raise ValueError(f"path must end with one of {', '.join(WRITABLE_SUFFIXES)}, got {path}")
    if suffix in NIFTI_SUFFIXES:
        image = nib.Nifti1Image(array, affine_ras_mm)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine_ras_mm, code=1)
        image.set_sform(affine_ras_mm, code=1)
        write = partial(nib.save, image)
    else:
        affine_lps_mm = RAS_FROM_LPS @ affine_ras_mm
        spacing_mm = np.linalg.norm(affine_lps_mm[:3, :3], axis=0)
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(spacing_mm.tolist())
        image.SetOrigin(affine_lps_mm[:3, 3].tolist())
        image.SetDirection((affine_lps_mm[:3, :3] / spacing_mm).ravel().tolist())
        write = partial(sitk.WriteImage, image, useCompression=True)
    with atomic_path(path) as temporary:
        write(str(temporary))


# ---- label maps --------------------------------------------------------------------------------------------------


def onto_grid(array: np.ndarray, affine: np.ndarray, volume: Volume) -> np.ndarray | None:
    """`array` in the axis order and directions of `volume`, or None where the two grids do not coincide.

    Args:
        array: (I, J, K) on a grid of its own.
        affine: (4, 4), its indices to RAS mm.
    """
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return None
    from_volume = np.linalg.inv(affine) @ volume.affine_ras_mm  # index in the volume to index in the array
    steps = np.rint(from_volume[:3, :3])
    if not ((np.abs(steps).sum(axis=0) == 1).all() and (np.abs(steps).sum(axis=1) == 1).all()):
        return None
    order = [int(np.argmax(np.abs(steps[:, axis]))) for axis in range(3)]  # axis of the array, per axis of the volume
    reverse = [axis for axis in range(3) if steps[order[axis], axis] < 0]
    moved = np.flip(array.transpose(order), reverse)
    if moved.shape != volume.shape_ijk:
        return None
    first = np.where(steps.sum(axis=1) < 0, np.array(array.shape) - 1, 0)
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in volume.shape_ijk])), dtype=np.float64).T
    expected = steps @ corners + first[:, None]
    found = from_volume[:3, :3] @ corners + from_volume[:3, 3:]
    return moved if np.abs(found - expected).max() <= _GRID_TOLERANCE_VOXELS else None


def _read_mask(path: Path, volume: Volume) -> np.ndarray:
    return read_labels(path, volume) > 0


@dataclass(frozen=True, eq=False)
class _LabelMap:
    """One label map, read at the first mask and kept."""

    path: Path
    volume: Volume = field(repr=False)

    @cached_property
    def labels_ijk(self) -> np.ndarray:
        return read_labels(self.path, self.volume)

    def mask(self, value: int) -> np.ndarray:
        return self.labels_ijk == value


def read_label_values(path: Path) -> dict[int, str]:
    """The object ``{"value": "name"}`` of labels.json, checked, in increasing value."""
    if not path.exists():
        raise ValueError(f"path {path} must name the labels of seg.nii.gz, it does not exist")
    try:
        values = {int(value): name for value, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"path {path} must be a JSON object from label value to name: {error}") from error
    if not all(isinstance(name, str) and name for name in values.values()) or min(values, default=1) < 1:
        raise ValueError(f"path {path} must map values from 1 up to names, got {values}")
    if len(set(values.values())) != len(values):
        raise ValueError(f"path {path} must give each value a name of its own, got {values}")
    return dict(sorted(values.items()))
