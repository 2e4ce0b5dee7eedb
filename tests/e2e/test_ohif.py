"""OHIF in Chromium over a DICOM archive: clicks, the same mask in the browser and on the server, saved, found again."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from tests.app.conftest import free_port, start, stop, wait_until_up
from tests.e2e.archive import Slab, make_slab, running_orthanc
from tests.e2e.conftest import run_script

from ctsam3d.data.dicom_seg import read_dicom_seg
from ctsam3d.data.labels import NAMES, VALUE_OF

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
LABEL = "liver"


@dataclass(frozen=True)
class Hospital:
    """An archive with one study, and a server over it; `slices` holds copies of the series' files."""

    archive: str
    url: str
    slab: Slab
    slices: Path
    study: str
    series: str

    def segmentations(self) -> list[str]:
        """Series of the study that hold a DICOM SEG, by QIDO-RS."""
        place = f"{self.archive}/dicom-web/studies/{self.study}/series"
        found = requests.get(place, params={"Modality": "SEG"}, timeout=30).json()
        return [one["0020000E"]["Value"][0] for one in found]

    def instance(self, series: str, path: Path) -> Path:
        """The only object of a series."""
        found = requests.post(f"{self.archive}/tools/lookup", data=series, timeout=30).json()
        inner = requests.get(f"{self.archive}/series/{found[0]['ID']}", timeout=30).json()["Instances"]
        path.write_bytes(requests.get(f"{self.archive}/instances/{inner[0]}/file", timeout=60).content)
        return path


@pytest.fixture(scope="module")
def hospital(chromium, tmp_path_factory):
    work = tmp_path_factory.mktemp("hospital")
    with running_orthanc(work / "orthanc") as archive, pytest.MonkeyPatch.context() as patch:
        slab = make_slab(work, ROOT.parent / "shared" / "data")
        slices = work / "slices"
        slices.mkdir()
        for file in slab.files:
            (slices / file.name).write_bytes(file.read_bytes())
            requests.post(f"{archive}/instances", data=file.read_bytes(), timeout=60).raise_for_status()
        head = pydicom.dcmread(slab.files[0], stop_before_pixels=True)
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "cache"))
        port = free_port()
        process = start(f"{archive}/dicom-web", work, port)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(process, url, work / "server.log")
            yield Hospital(archive, url, slab, slices, str(head.StudyInstanceUID), str(head.SeriesInstanceUID))
        finally:
            stop(process)


def test_liver_clicked_saved_and_opened_again(chromium, hospital, tmp_path):
    places = {"inside": hospital.slab.inside_lps, "outside": hospital.slab.beside_lps}
    given = {"chromium": chromium, "url": hospital.url, "study": hospital.study, "label": LABEL, "model": "ctsam3d"}
    result = run_script("ohif.mjs", tmp_path, {**given, **places})
    value = str(sorted(NAMES).index(LABEL) + 1)  # OHIF's own numbers
    assert result["models"] == ["ctsam3d", "ctsam3d_points"]
    assert set(result["first"]) == set(result["second"]) == {value}
    assert result["second"][value] < result["first"][value]  # the background click has taken something away
    assert result["saved"] == result["second"]

    asked = [one["params"] for one in result["asked"]]
    assert [(len(one[LABEL]), len(one["background"]), one.get("save", False)) for one in asked] == [
        (1, 0, False),
        (1, 1, False),
        (1, 1, True),
    ]
    query = {"image": hospital.series, "output": "image"}
    clicks = {"params": json.dumps({**asked[1], "result_extension": ".nii.gz"})}
    again = requests.post(f"{hospital.url}/infer/ctsam3d", clicks, params=query, timeout=120)
    (tmp_path / "again.nii.gz").write_bytes(again.content)
    labels = np.asanyarray(nib.load(tmp_path / "again.nii.gz").dataobj)
    assert int((labels == VALUE_OF[LABEL]).sum()) == result["second"][value]

    (series,) = hospital.segmentations()
    labels, _, names = read_dicom_seg(hospital.instance(series, tmp_path / "seg.dcm"), hospital.slices)
    assert names == {1: LABEL} and int((labels == 1).sum()) == result["saved"][value]
    stored = requests.get(f"{hospital.url}/datastore/label", {"label": hospital.series, "tag": "final"}, timeout=60)
    assert stored.status_code == 200
    (opened,) = result["reopened"]
    assert opened["segments"] == [{"label": LABEL, "type": "Liver"}]  # name, and meaning of the SNOMED CT code
