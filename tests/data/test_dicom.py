"""DICOM series: geometry, order of the slices, rescaling, compression, and every series that is refused."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixel_data_handlers.rle_handler import rle_encode_frame
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid
from tests.data.scans import OBLIQUE, SAMPLES, noise
from tests.geometry import affine_of

from ctsam3d.data.io import read_case, read_volume

# ---- DICOM -------------------------------------------------------------------------------------------------------

ROW, COLUMN = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
SERIES = generate_uid(entropy_srcs=["a series"])


def slice_of(stored_ji, position, row=ROW, column=COLUMN, series=SERIES, **attributes) -> FileDataset:
    """One CT slice; `stored_ji` has a row per image row, spacing 0.8 mm between rows and 0.7 mm between columns."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.is_little_endian, header.is_implicit_VR = True, False
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.Modality = series, "CT"
    header.ImagePositionPatient = [f"{v:.6f}"[:16] for v in position]
    header.ImageOrientationPatient = [f"{v:.12f}"[:16] for v in (*row, *column)]
    header.PixelSpacing, header.SliceThickness = [0.8, 0.7], 5.0
    header.Rows, header.Columns = stored_ji.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = stored_ji.astype("<u2").tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    return header


def write_slices(folder, slices) -> None:
    """File names in an order that says nothing about positions."""
    folder.mkdir(exist_ok=True)
    names = np.random.default_rng(3).permutation(len(slices))
    for name, header in zip(names, slices):
        header.save_as(folder / f"{name:03d}.dcm", write_like_original=False)


STORED_KJI = np.abs(noise((6, 4, 5))).astype(np.uint16)  # slices, rows, columns


def stack(positions_mm=None, row=ROW, column=COLUMN, start=(-10.0, 20.0, 300.0), **attributes) -> list[FileDataset]:
    positions_mm = 3.0 * np.arange(len(STORED_KJI)) if positions_mm is None else positions_mm
    normal = np.cross(row, column)
    return [
        slice_of(STORED_KJI[k % 6], start + mm * normal, row, column, **attributes) for k, mm in enumerate(positions_mm)
    ]


def test_dicom_by_hand(tmp_path):
    """Columns are i, rows are j; world LPS to RAS changes two signs; rows are 0.8 mm apart, columns 0.7 mm."""
    write_slices(tmp_path / "series", stack())
    (tmp_path / "series" / "notes.txt").write_text("not DICOM, and not called so")
    volume = read_volume(tmp_path / "series")
    assert volume.shape_ijk == (5, 4, 6) and volume.array_ijk.dtype == np.int16
    np.testing.assert_array_equal(volume.array_ijk, STORED_KJI.transpose(2, 1, 0).astype(int) - 1024)
    expected = [[-0.7, 0, 0, 10], [0, -0.8, 0, -20], [0, 0, 3.0, 300], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine_ras_mm, expected, atol=1e-9)


@pytest.mark.parametrize("rotation", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", SAMPLES, ids=str)
def test_dicom_of_any_orientation_agrees_with_itk(tmp_path, orientation, rotation):
    axes = affine_of(orientation, (1, 1, 1), rotation)[:3, :3]
    write_slices(tmp_path / "series", stack(row=axes[:, 0], column=axes[:, 1]))
    volume = read_volume(tmp_path / "series")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    image = reader.Execute()
    for ijk in [(0, 0, 0), (4, 3, 5), (2, 1, 3)]:
        itk_ijk = image.TransformPhysicalPointToIndex((apply_affine(volume.affine_ras_mm, ijk) * [-1, -1, 1]).tolist())
        assert image[itk_ijk] == volume.array_ijk[ijk]


def test_dicom_slopes_differ_from_slice_to_slice(tmp_path):
    slices = stack()
    for k, header in enumerate(slices):
        header.RescaleSlope, header.RescaleIntercept = 0.5 + k, 10 * k
    write_slices(tmp_path / "series", slices)
    array = read_volume(tmp_path / "series").array_ijk
    for k in range(6):
        np.testing.assert_array_equal(array[:, :, k], STORED_KJI[k].T * np.float32(0.5 + k) + 10 * k)


def test_signed_dicom_without_rescale(tmp_path):
    stored = noise((4, 5))
    attributes = {"PixelRepresentation": 1, "RescaleSlope": None, "RescaleIntercept": None}
    write_slices(tmp_path / "series", [slice_of(stored, (0, 0, 3.0 * k), **attributes) for k in range(3)])
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array_ijk[:, :, 1], stored.T)


@pytest.mark.parametrize("codec", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_dicom(tmp_path, codec):
    stored = np.abs(noise((32, 40))).astype(np.uint16)
    slices = [slice_of(stored, (0, 0, 3.0 * k)) for k in range(2)]
    for header in slices:
        if codec == "RLE":
            header.PixelData, header.file_meta.TransferSyntaxUID = encapsulate([rle_encode_frame(stored)]), RLELossless
        else:
            encoded = encoded_by_itk(tmp_path / "encoded.dcm", stored, codec)
            header.PixelData = encoded.PixelData
            header.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    write_slices(tmp_path / "series", slices)
    np.testing.assert_array_equal(read_volume(tmp_path / "series").array_ijk[:, :, 1], stored.T.astype(int) - 1024)


def encoded_by_itk(path, stored, codec) -> FileDataset:
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    writer.Execute(sitk.GetImageFromArray(stored[None]))
    return pydicom.dcmread(path)


def test_dicom_of_a_tilted_gantry_is_sheared(tmp_path):
    slices = [slice_of(STORED_KJI[k], (0, 1.0 * k, 3.0 * k)) for k in range(6)]
    write_slices(tmp_path / "series", slices)
    assert read_volume(tmp_path / "series").affine_ras_mm[:3, 2] == pytest.approx([0, -1.0, 3.0])


def test_dicom_of_one_slice_takes_its_thickness(tmp_path):
    write_slices(tmp_path / "series", stack([0.0]))
    volume = read_volume(tmp_path / "series")
    assert volume.shape_ijk == (5, 4, 1) and volume.affine_ras_mm[:3, 2] == pytest.approx([0, 0, 5.0])
    write_slices(tmp_path / "bare", stack([0.0], SliceThickness=None))
    with pytest.raises(ValueError, match="one slice without a SliceThickness"):
        read_volume(tmp_path / "bare")


def test_the_larger_of_two_series_is_read(tmp_path):
    other = generate_uid()
    write_slices(tmp_path / "series", stack() + stack([0.0, 3.0], series=other))
    assert read_volume(tmp_path / "series").shape_ijk == (5, 4, 6)
    write_slices(tmp_path / "tie", stack([0.0, 3.0]) + stack([0.0, 3.0], series=other))
    with pytest.raises(ValueError) as error:
        read_volume(tmp_path / "tie")
    assert str(SERIES) in str(error.value) and str(other) in str(error.value)


@pytest.mark.parametrize(
    ("positions_mm", "message"),
    [
        ([0, 3, 6, 12, 15, 18], "a gap of 6.000 mm between the positions 306.000 and 312.000 mm .* if 1 were missing"),
        ([0, 3, 6, 6, 9, 12], "one slice per position, two lie at 306.000 mm"),
        ([0, 3, 6, 9.5, 12, 15], "equally spaced slices, got a gap of 3.500 mm"),
        ([0, 3, 6, 9, 12, 13], "equally spaced slices, got a gap of 1.000 mm"),
    ],
    ids=["missing", "duplicate", "uneven", "short end"],
)
def test_dicom_positions(tmp_path, positions_mm, message):
    write_slices(tmp_path / "series", stack(positions_mm))
    with pytest.raises(ValueError, match=f"path .*series must hold .*{message}"):
        read_volume(tmp_path / "series")


def test_positions_rounded_by_the_scanner_are_equal(tmp_path):
    write_slices(tmp_path / "series", stack(np.round(np.arange(6) * 0.625, 2)))
    assert read_volume(tmp_path / "series").spacing_ijk_mm[2] == pytest.approx(0.625, abs=0.002)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": [0.8, 0.9]}, "must hold slices with one PixelSpacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "must hold slices with one ImageOrientationPatient"),
        ({"ImagePositionPatient": [5, 20, 309]}, "stacked along one line"),
        ({"SeriesInstanceUID": None}, "names no SeriesInstanceUID"),
        ({"NumberOfFrames": 2}, "single-frame"),
        ({"PixelData": b"\0" * 7}, "whose pixels are damaged"),
        ({"RescaleSlope": float("nan")}, "must be a finite number, 20 of 120 are not"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_unusable_dicom_slice(tmp_path, attributes, message):
    slices = stack()
    slices[3] = slice_of(STORED_KJI[3], (-10, 20, 309), **attributes)
    write_slices(tmp_path / "series", slices)
    with pytest.raises(ValueError, match=f"path .*series .*{message}"):
        read_volume(tmp_path / "series")


@pytest.mark.parametrize("keep", [0, 60, 300, 600, -30], ids=lambda n: f"{n} bytes")
def test_a_cut_dicom_file(tmp_path, keep):
    write_slices(tmp_path / "series", stack())
    path = tmp_path / "series" / "002.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"path .*series .*002.dcm"):
        read_volume(tmp_path / "series")


def test_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"path .* must hold DICOM images, none is there"):
        read_volume(tmp_path)


# ---- real scans --------------------------------------------------------------------------------------------------


def test_real_dicom_and_its_ras_labels_align(shared_data):
    """The slab is LPS, its label map RAS: where axes are mixed up, the means are those of anything."""
    case = read_case(shared_data / "dicom_ct_slab")
    assert case.volume.shape_ijk == (512, 512, 20) and case.volume.array_ijk.dtype == np.int16
    assert nib.aff2axcodes(case.volume.affine_ras_mm) == ("L", "P", "S")
    mean_hu = {name: case.volume.array_ijk[case.mask(name)].mean() for name in ("liver", "spleen", "aorta")}
    assert 50 < mean_hu["liver"] < 150 and 50 < mean_hu["spleen"] < 180 and 80 < mean_hu["aorta"] < 300
    liver, spleen = (np.argwhere(case.mask(name)).mean(axis=0) for name in ("liver", "spleen"))
    right_mm = [apply_affine(case.volume.affine_ras_mm, place)[0] for place in (liver, spleen)]
    assert right_mm[0] > right_mm[1]  # the liver lies to the right of the spleen


def test_real_dicom_agrees_with_itk(shared_data):
    folder = shared_data / "dicom_ct_slab"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, volume = reader.Execute(), read_volume(folder)
    np.testing.assert_array_equal(volume.array_ijk, sitk.GetArrayFromImage(image).T)
    for ijk in [(0, 0, 0), (511, 511, 19)]:
        lps_mm = np.array(image.TransformIndexToPhysicalPoint(ijk))
        assert apply_affine(volume.affine_ras_mm, ijk) == pytest.approx(lps_mm * [-1, -1, 1], abs=1e-6)
