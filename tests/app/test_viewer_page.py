"""The routes of the browser page: its files and no others, the studies, and saved labels as it shows them."""

import gzip
import json
import re
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from requests_toolbelt import MultipartDecoder

from ctsam3d.data.io import write_volume
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.labelapp.access import ANYBODY, set_person
from ctsam3d.labelapp.errors import install_handlers
from ctsam3d.labelapp.infer import ClickEngine
from ctsam3d.labelapp.store import StudyStore
from ctsam3d.labelapp.versions import Versions
from ctsam3d.labelapp.viewer_page import FOLDER, NIIVUE, page_files, viewer_router
from ctsam3d.volume import Volume

SHAPE = (6, 5, 4)
LPS = np.array([[-2.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 3.0, -30], [0, 0, 0, 1]])


class Page:
    """The routes over a datastore with one scan, `ct`; `niivue` is a file that need not be there."""

    def __init__(self, folder, person=ANYBODY):
        self.studies, self.niivue = folder / "studies", folder / "niivue.js"
        rng = np.random.default_rng(0)
        self.volume = Volume(rng.integers(-1000, 1000, SHAPE).astype(np.int16), LPS)
        write_volume(self.studies / "ct.nii.gz", self.volume)
        self.store = StudyStore(str(self.studies), auto_reload=False)
        engine = ClickEngine(Versions(folder / "model"), "cpu")
        application = FastAPI()
        install_handlers(application)
        router = viewer_router(SimpleNamespace(datastore=lambda: self.store), engine, 2**20, self.niivue)
        application.include_router(router)

        async def with_person(scope, receive, send):
            if person is not None:
                set_person(scope, person)
            await application(scope, receive, send)

        self.client = TestClient(with_person)

    def get(self, path, **query):
        return self.client.get(path, params=query)

    def save(self, labels, affine=LPS, **info):
        path = self.studies.parent / "label.nii.gz"
        nib.save(nib.Nifti1Image(labels, affine), path)
        self.store.save_label("ct", str(path), "final", info)


@pytest.fixture
def page(tmp_path):
    return Page(tmp_path)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_without_niivue_the_page_says_how_to_get_it(page):
    reply = page.get("/viewer/")
    assert reply.status_code == 200
    assert "NiiVue" in reply.text and "npm" in reply.text and "scripts/serve" in reply.text
    assert page.get("/viewer/niivue.js").status_code == 404


def test_with_niivue_the_page_is_there(page):
    page.niivue.write_text("export const Niivue = 1;")
    reply = page.get("/viewer/")
    assert 'src="viewer.js"' in reply.text
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert page.get("/viewer/niivue.js").text == "export const Niivue = 1;"


def test_the_address_without_a_slash_leads_to_the_page(page):
    reply = page.client.get("/viewer", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (307, "viewer/")


@pytest.mark.parametrize(("name", "kind"), [("viewer.js", "text/javascript"), ("viewer.css", "text/css")])
def test_files_have_their_kind(page, name, kind):
    reply = page.get(f"/viewer/{name}")
    assert reply.headers["content-type"].startswith(kind)
    assert reply.text == (FOLDER / name).read_text()


@pytest.mark.parametrize(
    "name",
    [
        *("package.json", "package-lock.json", "node_modules", "...", "viewer.js%00", "VIEWER.JS", ".x", "a" * 999),
        *("..%2fserver.py", "%2e%2e%2fserver.py", "..%5cserver.py", "%2fetc%2fpasswd", "..%2f..%2f__init__.py"),
        *("node_modules%2f@niivue%2fniivue%2fpackage.json", "%252e%252e%252fserver.py", "viewer.js%2f..%2findex.html"),
    ],
)
def test_nothing_but_the_files_of_the_page(page, name):
    page.niivue.write_text("")
    reply = page.get(f"/viewer/{name}")
    assert reply.status_code == 404
    assert isinstance(reply.json()["detail"], str)


def test_every_file_that_a_file_names_is_served():
    served = {*page_files(), "niivue.js"}
    for name, path in page_files().items():
        named = re.findall(r'(?:from "\./|src="|href=")([\w.]+)"', path.read_text())
        assert set(named) <= served, name


def test_every_id_that_the_script_names_is_in_the_page():
    ids = set(re.findall(r'id="([\w-]+)"', (FOLDER / "index.html").read_text()))
    script = (FOLDER / "viewer.js").read_text()
    assert set(re.findall(r'(?:\$|press)\("([\w-]+)"\)', script)) <= ids


def test_niivue_is_pinned_with_its_checksum():
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]["@niivue/niivue"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]["node_modules/@niivue/niivue"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", wanted)
    assert locked["version"] == wanted
    assert locked["integrity"].startswith("sha512-")
    assert NIIVUE.is_relative_to(FOLDER / "node_modules" / "@niivue" / "niivue")


@pytest.mark.parametrize("path", ["/viewer/", "/viewer/studies", "/viewer/viewer.js", "/viewer/label?image=ct"])
def test_nobody_is_let_in_without_a_person(tmp_path, path):
    assert Page(tmp_path, person=None).get(path).status_code == 401


# ---- studies and labels --------------------------------------------------------------------------------------------


def test_studies_and_what_is_labelled(page):
    assert page.get("/viewer/studies").json()["images"] == [{"id": "ct", "final": False}]
    page.save(np.ones(SHAPE, np.uint8))
    said = page.get("/viewer/studies").json()
    assert said["images"] == [{"id": "ct", "final": True}]
    assert said["colours"]["liver"] == list(COLOURS["liver"])


def test_the_grid_of_a_study_is_the_files_own(page):
    said = page.get("/viewer/study", image="ct").json()
    assert said == {"shape": list(SHAPE), "affine": LPS.tolist(), "final": False}
    page.save(np.ones(SHAPE, np.uint8))
    assert page.get("/viewer/study", image="ct").json()["final"] is True


def parts(reply):
    """The parameters, and the label map of the form."""
    found = MultipartDecoder(reply.content, reply.headers["content-type"]).parts
    params, image = found
    return json.loads(params.content), nib.Nifti1Image.from_bytes(gzip.decompress(image.content))


def test_a_saved_label_comes_as_its_box(page):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 2, 1:4] = 7
    labels[4, 3, 2] = 9
    page.save(labels, label_info=[{"name": "liver", "idx": 7}])
    params, image = parts(page.get("/viewer/label", image="ct"))
    assert params["result_box"] == [[1, 2, 1], [5, 4, 4]]
    assert params["info"]["label_info"] == [{"name": "liver", "idx": 7}]
    assert np.array_equal(np.asanyarray(image.dataobj), labels[1:5, 2:4, 1:4])
    assert np.allclose(image.affine[:3, 3], (LPS @ [1, 2, 1, 1])[:3])


def test_a_label_in_another_direction_is_turned_onto_the_scan(page):
    labels = np.zeros(SHAPE, np.uint8)
    labels[5, 0, 3] = 3
    flipped = LPS @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    page.save(np.ascontiguousarray(labels[::-1]), flipped)
    params, image = parts(page.get("/viewer/label", image="ct"))
    assert params["result_box"] == [[5, 0, 3], [6, 1, 4]]
    assert np.asanyarray(image.dataobj).tolist() == [[[3]]]


def test_an_empty_label_is_one_voxel_without_a_structure(page):
    page.save(np.zeros(SHAPE, np.uint8))
    params, image = parts(page.get("/viewer/label", image="ct"))
    assert params["result_box"] == [[0, 0, 0], [1, 1, 1]]
    assert np.asanyarray(image.dataobj).tolist() == [[[0]]]


def test_what_cannot_be_shown_is_said(page):
    assert page.get("/viewer/label", image="ct").status_code == 404
    for image in ("other", "../ct", "", "/etc/passwd"):
        for path in ("/viewer/label", "/viewer/study"):
            reply = page.get(path, image=image)
            assert 400 <= reply.status_code < 500
            assert "image" in reply.json()["detail"]
    page.save(np.ones((3, 3, 3), np.uint8))
    assert "another grid" in page.get("/viewer/label", image="ct").json()["detail"]
    page.save(np.full(SHAPE, 300, np.int16))
    assert "above 255" in page.get("/viewer/label", image="ct").json()["detail"]
