"""A DICOMweb archive for the tests: Orthanc, and a CT series to put into it."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
import requests
from nibabel.affines import apply_affine
from pydicom.uid import generate_uid
from scipy import ndimage
from tests.app.conftest import free_port, stop
from tests.app.labelling import patients
from tests.data.test_dicom import slice_of, write_slices

from ctsam3d.data.io import read_case
from ctsam3d.data.phantoms import make_phantom

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_LPS_FROM_RAS = np.array([-1.0, -1.0, 1.0])


class Slab(NamedTuple):
    """A series as files, and two places in its liver, in its middle slice: LPS in mm."""

    files: list[Path]
    inside_lps: list[float]
    beside_lps: list[float]


class Study(NamedTuple):
    """What the archive holds of a patient: a study of one series, and copies of its files."""

    uid: str
    series: str
    slices: Path


@dataclass(frozen=True)
class Archive:
    """A running archive with studies of two patients; the first one is of `slab`.

    Attributes:
        url: of its REST interface; DICOMweb is below it.
    """

    url: str
    slab: Slab
    studies: tuple[Study, Study]

    @property
    def dicom_web(self) -> str:
        return f"{self.url}/dicom-web"

    def segmentations(self, study: Study) -> list[str]:
        """Series of the study that hold a DICOM SEG, by QIDO-RS."""
        place = f"{self.dicom_web}/studies/{study.uid}/series"
        found = requests.get(place, params={"Modality": "SEG"}, timeout=30).json()
        return [one["0020000E"]["Value"][0] for one in found]

    def instance(self, series: str, path: Path) -> Path:
        """The only object of a series."""
        found = requests.post(f"{self.url}/tools/lookup", data=series, timeout=30).json()
        inner = requests.get(f"{self.url}/series/{found[0]['ID']}", timeout=30).json()["Instances"]
        path.write_bytes(requests.get(f"{self.url}/instances/{inner[0]}/file", timeout=60).content)
        return path


@contextlib.contextmanager
def running_orthanc(work: Path) -> Iterator[str]:
    """The address of an archive that is there while the block runs; skips where there is no Orthanc."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.is_file():
        pytest.skip("Orthanc is not there; on Debian: apt-get install orthanc orthanc-dicomweb")
    url = f"http://127.0.0.1:{free_port()}"
    settings = {
        **{"Name": "ctsam3d", "StorageDirectory": "./files", "IndexDirectory": "./files", "Plugins": [str(PLUGIN)]},
        **{"HttpPort": int(url.rpartition(":")[2]), "HttpServerEnabled": True, "RemoteAccessAllowed": False},
        **{"AuthenticationEnabled": False, "DicomServerEnabled": False},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }
    work.mkdir()
    (work / "orthanc.json").write_text(json.dumps(settings))
    with open(work / "orthanc.log", "wb") as log:
        process = subprocess.Popen([program, "orthanc.json"], cwd=work, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{url}/system", timeout=10).raise_for_status()
                break
            if time.monotonic() > end or process.poll() is not None:
                pytest.fail(f"Orthanc did not start:\n{(work / 'orthanc.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        stop(process)


def fill(url: str, work: Path, slab: Slab) -> Archive:
    """Stores the series, and another one of another patient, a unit brighter; training may learn from both."""
    studies = []
    for number, patient in enumerate(patients(False, 2)):
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        uids |= {"FrameOfReferenceUID": generate_uid(), "PatientID": patient, "PatientName": f"Patient^{number + 1}"}
        slices = work / f"slices{number}"
        slices.mkdir()
        for file in slab.files:
            dataset = pydicom.dcmread(file)
            for keyword, value in {**uids, "SOPInstanceUID": generate_uid()}.items():
                setattr(dataset, keyword, value)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PixelData = (dataset.pixel_array + number).astype(dataset.pixel_array.dtype).tobytes()
            dataset.save_as(slices / file.name)
            body = (slices / file.name).read_bytes()
            requests.post(f"{url}/instances", data=body, timeout=60).raise_for_status()
        studies.append(Study(uids["StudyInstanceUID"], uids["SeriesInstanceUID"], slices))
    return Archive(url, slab, tuple(studies))


def make_slab(work: Path, shared: Path) -> Slab:
    """The series of a real abdomen where it is there, else one of a phantom."""
    real = shared / "dicom_ct_slab"
    if real.is_dir():
        case = read_case(real)
        return Slab(sorted(real.glob("*.dcm")), *_places(case.mask("liver"), case.volume.affine_ras_mm))
    phantom = make_phantom(1, (2.0, 2.0, 3.0), "abdomen")
    liver = phantom.labels_ijk == 5
    middle = int(liver.sum(axis=(0, 1)).argmax())
    part = (slice(None), slice(None), slice(max(middle - 10, 0), middle + 10))
    affine = phantom.volume.affine_ras_mm.copy()
    affine[:3, 3] = apply_affine(affine, (0, 0, part[2].start))
    _write_series(work / "series", phantom.volume.array_ijk[part], affine)
    return Slab(sorted((work / "series").iterdir()), *_places(liver[part], affine))


def _places(mask_ijk: np.ndarray, affine_ras_mm: np.ndarray) -> tuple[list[float], list[float]]:
    """The deepest place of the middle slice, and one 20 mm from it on the way to the patient's left."""
    middle = mask_ijk.shape[2] // 2
    depth = ndimage.distance_transform_edt(mask_ijk[:, :, middle])
    i, j = np.unravel_index(depth.argmax(), depth.shape)
    inside_lps = apply_affine(affine_ras_mm, (i, j, middle)) * _LPS_FROM_RAS
    return inside_lps.tolist(), (inside_lps + np.array([20, 0, 0])).tolist()


def _write_series(folder: Path, hu_ijk: np.ndarray, affine_ras_mm: np.ndarray) -> None:
    axes = affine_ras_mm[:3, :3] * _LPS_FROM_RAS[:, None]
    spacing = np.linalg.norm(axes, axis=0)
    row, column = (axes / spacing).T[:2]
    common = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "PatientID": "phantom"}
    common |= {"PatientName": "Phantom^One", "StudyDate": "20200102", "StudyTime": "101112", "StudyID": "1"}
    common |= {"PixelSpacing": [spacing[1], spacing[0]], "SliceThickness": spacing[2], "SeriesNumber": 1}
    common |= {"AccessionNumber": "", "PatientBirthDate": "", "PatientSex": "", "ReferringPhysicianName": ""}
    common |= {"PositionReferenceIndicator": "", "SeriesDescription": "phantom"}
    slices = []
    for k in range(hu_ijk.shape[2]):
        position_lps = apply_affine(affine_ras_mm, (0, 0, k)) * _LPS_FROM_RAS
        stored = (np.clip(hu_ijk[:, :, k], -1024, 3000) + 1024).T
        slices.append(slice_of(stored, position_lps, row, column, InstanceNumber=k + 1, **common))
    write_slices(folder, slices)
