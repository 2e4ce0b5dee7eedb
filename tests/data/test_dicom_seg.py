"""DICOM SEG of label maps: what is written, what other readers find in it, and the way back."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pydicom_seg
import pytest
from pydicom.uid import generate_uid
from tests.data.test_dicom import noise, slice_of, write_slices

from ctsam3d.data.dicom_seg import lab_of, read_dicom_seg, write_dicom_seg
from ctsam3d.data.io import read_volume
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.data.labels import NAMES, VALUE_OF

SHAPE = (5, 4, 6)  # columns, rows, slices
TURN = np.deg2rad(20)
NAMED = {VALUE_OF["liver"]: "liver", VALUE_OF["kidney_left"]: "kidney_left", 200: "my lesion", 1: "spleen"}


def write_series(folder, row=(1.0, 0, 0), column=(0, 1.0, 0), step_mm=2.5, **attributes):
    """A series with everything that a SEG takes over from it; slices thicker than their distance."""
    stored = np.abs(noise(SHAPE[::-1])).astype(np.uint16)
    study, frame, normal = generate_uid(), generate_uid(), np.cross(row, column)
    common = {"StudyInstanceUID": study, "FrameOfReferenceUID": frame, "PatientID": "7", "PatientName": "A^B"}
    common |= {"StudyDate": "20200102", "StudyTime": "101112", "StudyID": "1", "AccessionNumber": "", **attributes}
    common |= {"PatientBirthDate": "", "PatientSex": "", "ReferringPhysicianName": "", "PositionReferenceIndicator": ""}
    slices = [
        slice_of(pixels, np.array([-10.0, 20, 30]) + k * step_mm * normal, row, column, InstanceNumber=k + 1, **common)
        for k, pixels in enumerate(stored)
    ]
    write_slices(folder, slices)
    return folder, read_volume(folder)


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "series")


@pytest.fixture
def labels():
    out = np.zeros(SHAPE, np.uint8)
    out[1:3, 0:2, 2:4] = VALUE_OF["liver"]
    out[4, 3, 0] = VALUE_OF["kidney_left"]
    out[0, 3, 5] = 200
    return out


def written(tmp_path, series, labels, names=NAMED, **more):
    path = tmp_path / "seg.dcm"
    uid = write_dicom_seg(path, series[0], labels, series[1].affine_ras_mm, names, **more)
    dataset = pydicom.dcmread(path)
    assert dataset.SeriesInstanceUID == uid
    return path, dataset


def test_segments_have_names_codes_and_colours(tmp_path, series, labels):
    _, dataset = written(tmp_path, series, labels, version="tiny-1", description="Organs")
    spleen, kidney, liver, lesion = dataset.SegmentSequence
    assert [s.SegmentNumber for s in dataset.SegmentSequence] == [1, 2, 3, 4]
    assert [s.SegmentLabel for s in (spleen, kidney, liver, lesion)] == ["spleen", "kidney_left", "liver", "my lesion"]
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    assert list(liver.RecommendedDisplayCIELabValue) == lab_of(COLOURS["liver"])
    assert liver.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert (dataset.SeriesDescription, dataset.SoftwareVersions) == ("Organs", "tiny-1")


def test_colours_in_dicoms_numbers():
    """White and black by hand; green from its published L*a*b*, (87.74, -86.18, 83.18)."""
    assert lab_of((255, 255, 255)) == pytest.approx([65535, 32896, 32896], abs=3)
    assert lab_of((0, 0, 0)) == [0, 32896, 32896]
    published = [87.74 / 100, (-86.18 + 128) / 255, (83.18 + 128) / 255]
    assert lab_of((0, 255, 0)) == pytest.approx([65535 * v for v in published], abs=20)


def test_it_belongs_to_the_series_and_its_patient(tmp_path, series, labels):
    _, dataset = written(tmp_path, series, labels)
    source = pydicom.dcmread(next(series[0].iterdir()))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert dataset[keyword] == source[keyword]
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID


def test_it_comes_back(tmp_path, series, labels):
    path, _ = written(tmp_path, series, labels)
    found, affine, names = read_dicom_seg(path, series[0])
    assert names == {1: "spleen", 2: "kidney_left", 3: "liver", 4: "my lesion"}
    expected = np.select([labels == v for v in sorted(NAMED)], [1, 2, 3, 4])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(affine, series[1].affine_ras_mm)


def test_other_readers_find_the_same(tmp_path, series, labels):
    path, dataset = written(tmp_path, series, labels)
    own = hd.seg.segread(path)
    sources = [pydicom.dcmread(file) for file in series[0].iterdir()]
    sources.sort(key=lambda source: float(source.ImagePositionPatient[2]))
    pixels = own.get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources], assert_missing_frames_are_empty=True
    )
    for segment, value in enumerate(sorted(NAMED)):
        np.testing.assert_array_equal(pixels[..., segment].transpose(2, 1, 0), labels == value)
    found = pydicom_seg.SegmentReader().read(dataset)
    for segment, value in enumerate(sorted(NAMED), start=1):
        np.testing.assert_array_equal(found.segment_data(segment).transpose(2, 1, 0), labels == value)


@pytest.mark.parametrize("turned", [False, True])
def test_axis_order_direction_and_oblique_series_do_not_matter(tmp_path, labels, turned):
    row = (np.cos(TURN), np.sin(TURN), 0) if turned else (1.0, 0, 0)
    folder, volume = write_series(tmp_path / "series", row, (0, 0, -1.0))
    moved, affine = labels.transpose(2, 0, 1)[::-1], volume.affine_ras_mm @ np.eye(4)[:, [2, 0, 1, 3]]
    affine[:3, 3] += affine[:3, 0] * (len(moved) - 1)
    affine[:3, 0] *= -1
    write_dicom_seg(tmp_path / "seg.dcm", folder, moved, affine, NAMED)
    found, _, _ = read_dicom_seg(tmp_path / "seg.dcm", folder)
    np.testing.assert_array_equal(found == 3, labels == VALUE_OF["liver"])


def test_nothing_there_is_written_and_read_too(tmp_path, series, labels):
    path, dataset = written(tmp_path, series, np.zeros_like(labels), {5: "liver", 200: "my lesion"})
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == ["liver", "my lesion"]
    found, _, names = read_dicom_seg(path, series[0])
    assert names == {1: "liver", 2: "my lesion"} and not found.any()


def test_all_of_the_107(tmp_path, series):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 108
    path, dataset = written(tmp_path, series, labels, dict(enumerate(NAMES, start=1)))
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == list(NAMES)
    found, _, names = read_dicom_seg(path, series[0])
    np.testing.assert_array_equal(found, labels)
    assert names == dict(enumerate(NAMES, start=1))


@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_has_no_errors(tmp_path, series, labels, empty):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not there; on Debian it comes with dicom3tools")
    names = {**NAMED, VALUE_OF["visceral_fat"]: "visceral_fat"}
    path, _ = written(tmp_path, series, labels * (not empty), names)
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    lines = (said.stdout + said.stderr).splitlines()
    assert "Segmentation" in lines
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.parametrize(
    ("names", "shape", "words"),
    [
        ({}, SHAPE, "at least one value"),
        ({0: "liver"}, SHAPE, "from 1 up"),
        ({5: "liver"}, SHAPE, r"\[3, 200\] have no name"),
        (NAMED, (5, 4, 5), "grid of the series"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, series, labels, names, shape, words):
    part = labels[: shape[0], : shape[1], : shape[2]]
    with pytest.raises(ValueError, match=words):
        write_dicom_seg(tmp_path / "seg.dcm", series[0], part, series[1].affine_ras_mm, names)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_segmentation_of_another_series_is_refused(tmp_path, series, labels):
    path, _ = written(tmp_path, series, labels)
    other, _ = write_series(tmp_path / "other", step_mm=2.0)
    with pytest.raises(ValueError, match="slice of the series"):
        read_dicom_seg(path, other)
    with pytest.raises(ValueError, match="must hold a DICOM SEG"):
        read_dicom_seg(next(series[0].iterdir()), series[0])
