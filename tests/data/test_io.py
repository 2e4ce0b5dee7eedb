"""Every format there and back with a known affine, damage of every kind, and masks that are written whole or not."""

import gzip
import os
import stat

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from tests.data.scans import OBLIQUE, SAMPLES, noise, save_nifti, volume_of, write_case
from tests.geometry import ORIENTATIONS, affine_of

from ctsam3d.data import io
from ctsam3d.data.io import read_case, read_labels, read_volume, write_mask, write_volume
from ctsam3d.volume import Volume

SINGLE_FILE = (".nii", ".nii.gz", ".nrrd", ".mha")


# ---- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SINGLE_FILE)
@pytest.mark.parametrize("rotation", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", SAMPLES, ids=str)
def test_scan_there_and_back(tmp_path, suffix, rotation, orientation):
    volume = volume_of(orientation, rotation=rotation)
    write_volume(tmp_path / f"scan{suffix}", volume)
    back = read_volume(tmp_path / f"scan{suffix}")
    np.testing.assert_array_equal(back.array_ijk, volume.array_ijk)
    assert back.array_ijk.dtype == np.int16
    np.testing.assert_allclose(back.affine_ras_mm, volume.affine_ras_mm, atol=1e-4)


@pytest.mark.parametrize("suffix", SINGLE_FILE)
def test_a_sheared_scan_there_and_back(tmp_path, suffix):
    """A tilted gantry: the slices' axis is not orthogonal to them."""
    affine = np.array([[-0.7, 0, 0, 10], [0, -0.7, 0.9, 20], [0, 0, 3.0, 30], [0, 0, 0, 1]])
    write_volume(tmp_path / f"scan{suffix}", Volume(noise(), affine))
    np.testing.assert_allclose(read_volume(tmp_path / f"scan{suffix}").affine_ras_mm, affine, atol=1e-4)


def test_nifti_by_another_hand(tmp_path):
    affine = affine_of(ORIENTATIONS[20], (0.7, 0.8, 3.0), OBLIQUE, (1, 2, 3))
    save_nifti(tmp_path / "scan.nii.gz", noise(), affine)
    volume = read_volume(str(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(volume.array_ijk, noise())
    np.testing.assert_allclose(volume.affine_ras_mm, affine, atol=1e-5)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_itk_formats_are_lps_with_i_fastest(tmp_path, name):
    """By hand: ITK's x, y, z are i, j, k, and its world is LPS, so the first two rows of the affine change sign."""
    image = sitk.GetImageFromArray(noise().transpose(2, 1, 0))  # (k, j, i)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # i along P, j along S, k along L
    sitk.WriteImage(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array_ijk, noise())
    assert volume.affine_ras_mm.tolist() == [[0, 0, -3.0, -10], [-0.5, 0, 0, -20], [0, 2.0, 0, 30], [0, 0, 0, 1]]


def test_itk_and_nibabel_agree_on_one_nifti(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, volume_of(ORIENTATIONS[33], rotation=OBLIQUE))
    image, volume = sitk.ReadImage(str(path)), read_volume(path)
    for ijk in [(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2)]:
        lps_mm = np.array(image.TransformIndexToPhysicalPoint(ijk))
        assert apply_affine(volume.affine_ras_mm, ijk) == pytest.approx(lps_mm * [-1, -1, 1], abs=1e-3)
        assert volume.array_ijk[ijk] == image[ijk]


# ---- dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (noise(), np.int16),
        (noise().astype(np.float64), np.int16),
        (noise().astype(np.int32), np.int16),
        (noise().astype(">i2"), np.int16),
        (np.abs(noise()).astype(np.uint8), np.int16),
        (noise().astype(np.int32) + 40000, np.float32),
        (noise().astype(np.float32) + 0.5, np.float32),
    ],
    ids=["int16", "whole float64", "int32", "big-endian", "uint8", "large int32", "fractions"],
)
def test_int16_where_nothing_is_lost(tmp_path, array, expected):
    save_nifti(tmp_path / "scan.nii", array)
    back = read_volume(tmp_path / "scan.nii").array_ijk
    assert back.dtype == expected
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(("slope", "expected"), [(1.0, np.int16), (0.5, np.float32)])
def test_stored_slope_is_applied(tmp_path, slope, expected):
    image = nib.Nifti1Image(np.abs(noise()), np.eye(4))
    image.header.set_slope_inter(slope, -1024)
    nib.save(image, tmp_path / "scan.nii")
    raw = read_volume(tmp_path / "scan.nii")
    stored = np.asarray(nib.load(tmp_path / "scan.nii").dataobj)
    assert raw.array_ijk.dtype == expected
    np.testing.assert_allclose(raw.array_ijk, stored)


def test_the_array_does_not_follow_the_file(tmp_path):
    """An uncompressed file is copied into memory: the scan stays what it was when the file is overwritten."""
    save_nifti(tmp_path / "scan.nii", noise())
    volume = read_volume(tmp_path / "scan.nii")
    with open(tmp_path / "scan.nii", "r+b") as file:
        file.seek(352)
        file.write(b"\0" * 60)
    np.testing.assert_array_equal(volume.array_ijk, noise())


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha", "folder"])
def test_missing_path(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"path .*{name} does not exist"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header only"])
def test_damaged_file(tmp_path, name, damage):
    path = tmp_path / name
    write_volume(path, volume_of(array=noise((20, 20, 20))))
    whole = path.read_bytes()
    cut = whole[: len(whole) * 2 // 3]
    keep = {"truncated": cut, "empty": b"", "text": b"no scan\n" * 99, "header only": whole[:100]}
    path.write_bytes(keep[damage])
    with pytest.raises(ValueError, match=f"path .*{name}"):
        read_volume(path)


def test_uncompressed_truncated_metaimage_and_nrrd(tmp_path):
    image = sitk.GetImageFromArray(noise((20, 20, 20)))
    for name in ("scan.nrrd", "scan.mha"):
        sitk.WriteImage(image, str(tmp_path / name), useCompression=False)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-5000])
        with pytest.raises(ValueError, match=f"path .*{name} cannot be read"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2), (4, 5, 3, 1, 2)], ids=str)
def test_other_dimensions_are_refused(tmp_path, shape):
    save_nifti(tmp_path / "scan.nii.gz", noise(shape))
    with pytest.raises(ValueError, match=r"path .*scan.nii.gz must hold a 3D image, got shape \(4, 5"):
        read_volume(tmp_path / "scan.nii.gz")


def test_2d_4d_and_colour_itk_images_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(noise((4, 5))), str(tmp_path / "flat.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(noise((2, 3, 4, 5)), isVector=False), str(tmp_path / "time.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(noise((4, 5, 6, 3)), isVector=True), str(tmp_path / "colour.nrrd"))
    for name, rule in [("flat", "must hold a 3D"), ("time", "must hold a 3D"), ("colour", "one number per voxel")]:
        with pytest.raises(ValueError, match=f"path .*{name}.nrrd must hold .*"):
            read_volume(tmp_path / f"{name}.nrrd")
        with pytest.raises(ValueError, match=rule):
            read_volume(tmp_path / f"{name}.nrrd")


def test_a_fourth_axis_of_length_one_is_accepted(tmp_path):
    save_nifti(tmp_path / "scan.nii.gz", noise((4, 5, 3, 1)))
    sitk.WriteImage(sitk.GetImageFromArray(noise((1, 3, 5, 4)), isVector=False), str(tmp_path / "scan.nrrd"))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").array_ijk, noise((4, 5, 3, 1))[..., 0])
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nrrd").array_ijk, noise((1, 3, 5, 4))[0].T)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path, bad):
    array = noise().astype(np.float32)
    array[1, 2, :2] = bad
    save_nifti(tmp_path / "scan.nii.gz", array)
    with pytest.raises(ValueError, match=r"path .*scan.nii.gz .*must be a finite number, 2 of 60 are not"):
        read_volume(tmp_path / "scan.nii.gz")


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.header["sform_code"], image.header["srow_x"], image.header["srow_y"] = 1, (1, 0, 0, 0), (1, 0, 0, 0)
    nib.save(image, tmp_path / "scan.nii")
    with pytest.raises(ValueError, match=r"path .*scan.nii .*affine_ras_mm must be invertible"):
        read_volume(tmp_path / "scan.nii")


def test_complex_voxels_are_refused(tmp_path):
    save_nifti(tmp_path / "scan.nii", noise().astype(np.complex64))
    with pytest.raises(ValueError, match="must hold real numbers, got dtype complex64"):
        read_volume(tmp_path / "scan.nii")


def test_other_extensions_are_refused(tmp_path):
    for name, rule in [("scan.png", "path must end with one of .nii.gz"), ("001.dcm", "must be the folder of a DICOM")]:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=rule):
            read_volume(tmp_path / name)


# ---- labels and cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_labels_in_another_axis_order_are_moved_exactly(tmp_path, orientation):
    """The same voxels stored in each of the 48 ways: the label of every voxel follows its place in the world."""
    volume = volume_of(ORIENTATIONS[11], rotation=OBLIQUE)
    labels = np.random.default_rng(1).integers(0, 300, volume.shape_ijk).astype(np.uint16)
    there = nib.Nifti1Image(labels, volume.affine_ras_mm)
    axes = nib.io_orientation(affine_of(orientation, (1, 1, 1)))
    save_nifti(tmp_path / "seg.nii.gz", *oriented(there, axes))
    moved = read_labels(tmp_path / "seg.nii.gz", volume)
    np.testing.assert_array_equal(moved, labels)
    assert moved.dtype == np.uint16 and moved.flags.c_contiguous


def oriented(image, axes):
    out = image.as_reoriented(axes)
    return np.asarray(out.dataobj), out.affine


@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.int32)])
def test_labels_have_the_smallest_dtype(tmp_path, top, dtype):
    volume = volume_of()
    labels = np.zeros(volume.shape_ijk, np.float32)
    labels[1, 2, 1] = top
    save_nifti(tmp_path / "seg.nii", labels, volume.affine_ras_mm)
    read = read_labels(tmp_path / "seg.nii", volume)
    assert read.dtype == dtype and read.max() == top and np.count_nonzero(read) == 1


@pytest.mark.parametrize("change", ["shape", "origin", "spacing", "rotation", "flip about the origin"])
def test_labels_on_another_grid_are_refused(tmp_path, change):
    volume = volume_of()
    affine = volume.affine_ras_mm.copy()
    array = np.zeros((5, 4, 4) if change == "shape" else volume.shape_ijk, np.uint8)
    if change == "origin":
        affine[0, 3] += 0.3
    elif change == "spacing":
        affine[:3, 2] *= 1.1
    elif change == "rotation":
        affine = affine_of(ORIENTATIONS[0], (0.7, 0.8, 3.0), (0, 0, 0.2), affine[:3, 3])
    elif change == "flip about the origin":
        affine[:3, 0] *= -1
    save_nifti(tmp_path / "seg.nii.gz", array, affine)
    with pytest.raises(ValueError, match=r"path .*seg.nii.gz must lie on the scan's grid, shape \(5, 4, 3\)"):
        read_labels(tmp_path / "seg.nii.gz", volume)


@pytest.mark.parametrize(
    ("value", "rule"), [(0.5, "whole label values"), (np.nan, "whole label values"), (-1, "label values from 0 to")]
)
def test_values_that_are_no_labels(tmp_path, value, rule):
    volume = volume_of()
    save_nifti(tmp_path / "seg.nii", np.full(volume.shape_ijk, value, np.float32), volume.affine_ras_mm)
    with pytest.raises(ValueError, match=f"path .*seg.nii must hold {rule}"):
        read_labels(tmp_path / "seg.nii", volume)


def test_case_with_a_label_map(tmp_path):
    labels = np.random.default_rng(1).integers(0, 3, (5, 4, 3)).astype(np.uint8)
    volume = write_case(tmp_path / "one", labels, {"10": "colon", "2": "liver", "1": "spleen"})
    case = read_case(tmp_path / "one")
    assert case.name == "one" and case.names == ("spleen", "liver", "colon")
    np.testing.assert_array_equal(case.volume.array_ijk, volume.array_ijk)
    np.testing.assert_array_equal(case.mask("liver"), labels == 2)
    assert case.mask("liver").dtype == bool and not case.mask("colon").any()
    with pytest.raises(ValueError, match=r"name must be a structure of case one, one of .*, got 'heart'"):
        case.mask("heart")


def test_case_with_a_mask_per_structure_reads_lazily(tmp_path):
    masks = {name: (noise() > threshold).astype(np.uint8) for name, threshold in [("aorta", 0), ("heart", 500)]}
    write_case(tmp_path / "two", masks=masks)
    (tmp_path / "two" / "segmentations" / "broken.nii.gz").write_bytes(b"x")
    case = read_case(tmp_path / "two")
    assert case.names == ("aorta", "broken", "heart")
    np.testing.assert_array_equal(case.mask("heart"), masks["heart"] == 1)
    with pytest.raises(ValueError, match=r"path .*broken.nii.gz cannot be read"):
        case.mask("broken")


@pytest.mark.parametrize(
    "names",
    ["{", "[1]", '{"liver": 5}', {"1": 5}, {"0": "background"}, {"1": "a", "2": "a"}, {"1": ""}, None],
    ids=str,
)
def test_bad_labels_json(tmp_path, names):
    write_case(tmp_path / "three", np.zeros((5, 4, 3), np.uint8), names)
    with pytest.raises(ValueError, match=r"path .*labels.json must"):
        read_case(tmp_path / "three")


def test_incomplete_cases(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist"):
        read_case(tmp_path / "none")
    with pytest.raises(ValueError, match=r"must hold ct.nii.gz or DICOM slices"):
        read_case(tmp_path)
    write_case(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"must hold seg.nii.gz with labels.json, or segmentations/"):
        read_case(tmp_path / "bare")
    with pytest.raises(ValueError, match="folder must be the folder of a case"):
        read_case(tmp_path / "bare" / "ct.nii.gz")


# ---- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SINGLE_FILE)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_mask_there_and_back(tmp_path, suffix, dtype):
    volume = volume_of(ORIENTATIONS[40], rotation=OBLIQUE)
    mask = (noise() > 300).astype(dtype)
    write_mask(tmp_path / f"mask{suffix}", mask, volume)
    back = read_labels(tmp_path / f"mask{suffix}", volume)
    np.testing.assert_array_equal(back, mask)
    assert sitk.ReadImage(str(tmp_path / f"mask{suffix}")).GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((5, 4, 2), bool), ValueError, r"mask_ijk must have the scan's shape \(5, 4, 3\), got \(5, 4, 2\)"),
        (np.zeros((5, 4, 3)), TypeError, "mask_ijk must hold bool or whole numbers, got dtype float64"),
        (np.full((5, 4, 3), 300), ValueError, "mask_ijk must hold values from 0 to 255, got 300 to 300"),
        (np.full((5, 4, 3), -1), ValueError, "mask_ijk must hold values from 0 to 255, got -1 to -1"),
    ],
    ids=["shape", "float", "large", "negative"],
)
def test_masks_that_are_refused(tmp_path, mask, error, message):
    with pytest.raises(error, match=message):
        write_mask(tmp_path / "mask.nii.gz", mask, volume_of())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mask.png", "mask.nhdr", "mask"])
def test_mask_extensions_that_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path must end with one of .nii.gz, .nii, .nrrd, .mha, got"):
        write_mask(tmp_path / name, np.zeros((5, 4, 3), bool), volume_of())


@pytest.mark.parametrize("suffix", SINGLE_FILE)
@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix, moment):
    path, volume = tmp_path / f"mask{suffix}", volume_of()
    write_mask(path, np.ones((5, 4, 3), bool), volume)
    before = path.read_bytes()

    def fail_midway(first, second, *_, **__):
        target = first if isinstance(first, str) else second
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    if moment == "write":
        monkeypatch.setattr(io.nib, "save", fail_midway)
        monkeypatch.setattr(io.sitk, "WriteImage", fail_midway)
    else:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        write_mask(path, np.zeros((5, 4, 3), bool), volume)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_mask_is_an_ordinary_file(tmp_path):
    write_mask(tmp_path / "mask.nii.gz", np.ones((5, 4, 3), bool), volume_of())
    (tmp_path / "other").write_text("")
    mode = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("mask.nii.gz", "other")]
    assert mode[0] == mode[1]
    with gzip.open(tmp_path / "mask.nii.gz") as file:
        assert len(file.read()) == 352 + 60  # one byte a voxel


# ---- real scans --------------------------------------------------------------------------------------------------


def test_every_real_case_is_read(shared_data):
    folders = [folder for folder in sorted(shared_data.iterdir()) if folder.is_dir()]
    assert folders
    for folder in folders:
        case = read_case(folder)
        assert case.names and case.volume.array_ijk.dtype == np.int16
        assert case.mask(case.names[-1]).shape == case.volume.shape_ijk
        if (folder / "ct.nii.gz").exists():
            image = sitk.ReadImage(str(folder / "ct.nii.gz"))
            np.testing.assert_array_equal(case.volume.array_ijk, sitk.GetArrayFromImage(image).T)
        else:
            assert len(pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID) > 0


# ---- files that claim, or name, what they should not --------------------------------------------------------------


@pytest.mark.parametrize("suffix", SINGLE_FILE)
def test_more_voxels_than_allowed_are_not_read(tmp_path, suffix):
    volume = Volume(np.zeros((10, 10, 10), np.int16), np.eye(4))
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume)
    assert read_volume(path, max_bytes=2000).shape_ijk == (10, 10, 10)
    with pytest.raises(ValueError, match=r"must hold at most 0 MB of voxels, got 0 MB \(10, 10, 10\)"):
        read_volume(path, max_bytes=1999)
    with pytest.raises(ValueError, match="must hold at most"):
        io.read_label_grid(path, max_bytes=1999)


def test_a_header_that_claims_terabytes_is_refused_unread(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    with gzip.open(tmp_path / "scan.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(100))
    with pytest.raises(ValueError, match="must hold at most 1000 MB of voxels, got "):
        read_volume(tmp_path / "scan.nii.gz", max_bytes=10**9)


NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
MHA = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("scan.nrrd", NRRD + "data file: other.raw\n\n"),
        ("scan.nrrd", NRRD.replace("\n", "\r\n") + "Data File: /etc/hostname\r\n\r\n"),
        ("scan.nrrd", NRRD + "# " + "x" * 70_000 + "\ndatafile: other.raw\n\n"),
        ("scan.mha", MHA + "ElementDataFile = other.raw\n"),
        ("scan.mha", MHA + " ElementDataFile = other.raw\nElementDataFile = LOCAL\n"),
    ],
)
def test_a_single_file_never_reads_another(tmp_path, name, header):
    (tmp_path / "other.raw").write_bytes(bytes(16))
    (tmp_path / name).write_bytes(header.encode() + bytes(16))
    with pytest.raises(ValueError, match="must hold its voxels itself"):
        read_volume(tmp_path / name)
