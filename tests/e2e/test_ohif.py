"""OHIF in Chromium over a DICOM archive: clicks, the same mask in the browser and on the server, saved, found again.

Then the next sample, and a training, watched; and a server that asks for tokens.
"""

import contextlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from tests.app.conftest import free_port, start, stop, wait_until_up
from tests.e2e.archive import Archive, fill, make_slab, running_orthanc
from tests.e2e.conftest import TOKEN, run_script

from ctsam3d.data.dicom_seg import read_dicom_seg
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.data.labels import NAMES, VALUE_OF

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
QUICK_TRAINING = Path(__file__).with_name("quick_training.py").read_text()
LABEL, MODEL = "liver", "ctsam3d"
OHIF_VALUE = str(sorted(NAMES).index(LABEL) + 1)  # OHIF's own numbers
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Hospital:
    """A server over an archive, and the folder that it works in."""

    url: str
    archive: Archive
    work: Path

    def get(self, path: str, **more) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=60, **more)

    def voxels(self, params: dict, folder: Path, study: int = 0, **more) -> int:
        """Of the structure, in the mask that the server gives for the same clicks."""
        query = {"image": self.archive.studies[study].series, "output": "image"}
        body = {"params": json.dumps({**params, "result_extension": ".nii.gz"})}
        reply = requests.post(f"{self.url}/infer/{MODEL}", body, params=query, timeout=120, **more)
        assert reply.ok, reply.text
        (folder / "again.nii.gz").write_bytes(reply.content)
        labels = np.asanyarray(nib.load(folder / "again.nii.gz").dataobj)
        return int((labels == VALUE_OF[LABEL]).sum())


@pytest.fixture(scope="module")
def archive(chromium, tmp_path_factory):
    work = tmp_path_factory.mktemp("archive")
    with running_orthanc(work / "orthanc") as url:
        yield fill(url, work, make_slab(work, ROOT.parent / "shared" / "data"))


@contextlib.contextmanager
def serving(archive, work, *settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "cache"))
        port = free_port()
        process = start(archive.dicom_web, work, port, *settings, more=QUICK_TRAINING)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield Hospital(url, archive, work)
    finally:
        stop(process)


@pytest.fixture(scope="module")
def hospital(archive, tmp_path_factory):
    with serving(archive, tmp_path_factory.mktemp("hospital")) as found:
        yield found


def test_liver_clicked_saved_and_opened_again(chromium, hospital, tmp_path):
    archive, (study, _) = hospital.archive, hospital.archive.studies
    places = {"inside": archive.slab.inside_lps, "outside": archive.slab.beside_lps}
    given = {"chromium": chromium, "url": hospital.url, "study": study.uid, "label": LABEL, "model": MODEL}
    result = run_script("ohif_label.mjs", tmp_path, {**given, **places})
    assert result["models"] == ["ctsam3d", "ctsam3d_points"]
    assert set(result["first"]) == set(result["second"]) == {OHIF_VALUE}
    assert result["second"][OHIF_VALUE] < result["first"][OHIF_VALUE]  # the background click has taken something away
    assert result["saved"] == result["second"]

    asked = [one["params"] for one in result["asked"]]
    assert [(len(one[LABEL]), len(one["background"]), one.get("save", False)) for one in asked] == [
        (1, 0, False),
        (1, 1, False),
        (1, 1, True),
    ]
    assert hospital.voxels(asked[1], tmp_path) == result["second"][OHIF_VALUE]

    (series,) = archive.segmentations(study)
    labels, _, names = read_dicom_seg(archive.instance(series, tmp_path / "seg.dcm"), study.slices)
    assert names == {1: LABEL} and int((labels == 1).sum()) == result["saved"][OHIF_VALUE]
    assert hospital.get("/datastore/label", params={"label": study.series, "tag": "final"}).status_code == 200
    if shutil.which("dciodvfy"):  # of what the archive gives back
        said = subprocess.run(["dciodvfy", str(tmp_path / "seg.dcm")], capture_output=True, text=True).stderr
        assert not [line for line in said.splitlines() if line.startswith("Error")], said
    (opened,) = result["reopened"]
    (segment,) = opened["segments"]
    assert (segment["label"], segment["type"]) == (LABEL, "Liver")  # name, and meaning of the SNOMED CT code
    assert segment["voxels"] == result["saved"][OHIF_VALUE]
    assert np.allclose(segment["colour"], COLOURS[LABEL], atol=3)  # DICOM keeps it as CIELab


def test_next_sample_and_a_training_that_is_watched(chromium, hospital, tmp_path):
    labelled, free = hospital.archive.studies
    if not hospital.archive.segmentations(labelled):
        hospital.voxels({LABEL: [[80, 70, 10]], "background": [], "expand": False, "save": True}, tmp_path)
    given = {"chromium": chromium, "url": hospital.url, "study": labelled.uid}
    result = run_script("ohif_learn.mjs", tmp_path, given)

    assert result["strategies"] == list(hospital.get("/info/").json()["strategies"])
    sample = result["sample"]
    assert (sample["Study Instance UID"], sample["Series Instance UID"]) == (free.uid, free.series)
    assert sample["Modality"] == "CT" and sample["Patient ID"]
    assert result["opened"] == [free.series]
    assert list(hospital.get("/leases/").json()) == [free.series]
    shown = hospital.get("/datastore/image/info", params={"image": free.series}).json()["strategy"]
    assert list(shown) == ["first"]  # the one that was chosen

    assert (result["before"]["Annotated"], result["before"]["Training"]) == ("1/2 samples annotated", "Not Running")
    assert result["running"]["Training"].endswith("/1000 epochs completed")
    assert (result["stopped"]["state"], result["done"]["state"]) == ("stopped", "done")
    assert result["stopped"]["options"]["max_epochs"] == 1000 and result["done"]["options"]["max_epochs"] == 1
    assert result["done"]["studies"]["training"] == [labelled.series] and result["done"]["outcome"]["published"]
    assert result["ended"]["Training"] == "Not Running"
    assert result["ended"]["Train Acc"] == "70% is current best metric"
    trainings = hospital.get("/train/", params={"all": True}).json()
    assert [one["status"] for one in trainings] == ["STOPPED", "DONE"]


# ---- behind tokens -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(archive, tmp_path_factory):
    work = tmp_path_factory.mktemp("guarded")
    (work / "tokens").write_text(f"annotator reader {TOKEN}\nadmin chief chief-token-0123456789\n")
    (work / "tokens").chmod(0o600)
    with serving(archive, work, "--conf", "token_file", str(work / "tokens")) as found:
        yield found


def test_without_a_token_there_is_the_sign_in_page_and_no_dicom(guarded):
    study = guarded.archive.studies[0]
    series = f"studies/{study.uid}/series/{study.series}"
    places = ["studies", f"studies/{study.uid}/series", f"{series}/metadata", f"{series}/instances", series]
    for place in places:
        for operation in ("", "qido/", "wado/"):
            path = f"/proxy/dicom/{operation}{place}"
            assert guarded.get(path, headers=BEARER).ok, path
            for cookies in ({}, {"ctsam3d": "9999999999.0"}):
                reply = guarded.get(path, cookies=cookies)
                assert (reply.status_code, set(reply.json())) == (401, {"detail", "request_id"}), path
    assert requests.post(f"{guarded.url}/proxy/dicom/stow/studies", data=b"x", timeout=60).status_code == 401
    for path in ("/ohif/app-config.js", "/ohif/app.bundle.css", "/info/", f"/datastore/image?image={study.series}"):
        assert guarded.get(path).status_code == 401, path
    for path in ("/ohif/", f"/ohif/monai-label?StudyInstanceUIDs={study.uid}"):
        reply = guarded.get(path, headers={"accept": "text/html"}, allow_redirects=False)
        assert (reply.status_code, reply.headers["location"].partition("?")[0]) == (303, "/signin")


def test_signed_in_from_the_list_to_a_mask(chromium, guarded, tmp_path):
    study = guarded.archive.studies[0]
    given = {"chromium": chromium, "url": guarded.url, "token": TOKEN, "study": study.uid, "label": LABEL}
    given |= {"model": MODEL, "inside": guarded.archive.slab.inside_lps, "other": "spleen"}
    result = run_script("ohif_token.mjs", tmp_path, given)
    assert study.uid in result["address"] and TOKEN not in result["address"]
    assert "click" in result["none"]
    _, asked, anew = (one["params"] for one in result["asked"])
    assert len(anew["spleen"]) == 1 and LABEL not in anew  # what was cleared is not sent again
    assert set(result["voxels"]) == {OHIF_VALUE}
    assert result["voxels"][OHIF_VALUE] == guarded.voxels(asked, tmp_path, headers=BEARER)
    assert "role must be admin" in result["training"]
    assert guarded.get("/train/", headers=BEARER).status_code == 404  # there was none
    assert TOKEN not in (guarded.work / "server.log").read_text()
