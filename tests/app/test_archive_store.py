"""The datastore over a DICOM archive: what it lists, fetches and stores, with an archive in memory."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from monailabel.interfaces.datastore import DefaultLabelTag
from starlette.testclient import TestClient
from tests.data.test_dicom_seg import SHAPE, write_series

from ctsam3d.data.dicom_seg import write_dicom_seg
from ctsam3d.data.io import read_volume, write_mask
from ctsam3d.data.labels import NAMES
from ctsam3d.labelapp import archive_store
from ctsam3d.labelapp.archive_store import ArchiveStore
from ctsam3d.labelapp.errors import install_handlers
from ctsam3d.labelapp.guard import Guard
from ctsam3d.labelapp.monitor import Monitor
from ctsam3d.labelapp.routes_datastore import datastore_router

FINAL = DefaultLabelTag.FINAL.value


class Archive:
    """A client of a DICOMweb archive that lies in memory."""

    base_url = "http://pacs/dicom-web"

    def __init__(self):
        self.stored, self.asked = [], []

    def add(self, folder):
        self.stored += [pydicom.dcmread(file) for file in folder.iterdir()]

    def search_for_series(self, search_filters, offset=0):
        self.asked.append((search_filters, offset))
        ((keyword, value),) = search_filters.items()
        found = {one.SeriesInstanceUID: one for one in self.stored if one.get(keyword) == value}
        return [one.to_json_dict() for one in found.values()][offset:]

    def retrieve_series(self, study, series):
        return [one for one in self.stored if one.SeriesInstanceUID == series]

    def retrieve_series_metadata(self, study, series):
        return [one.to_json_dict() for one in self.retrieve_series(study, series)]

    def store_instances(self, datasets):
        self.stored += datasets


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An archive with one CT series, a store over it, and a label map of it: liver in one corner."""
    monkeypatch.setattr(archive_store, "_LIST_SECONDS", 0.0)
    folder, volume = write_series(tmp_path / "series")
    archive = Archive()
    archive.add(folder)
    store = ArchiveStore(archive, {"Modality": "CT"}, cache_path=str(tmp_path / "cache"))
    labels = np.zeros(SHAPE, np.uint8)
    labels[:2, :2, :3] = 5
    path = tmp_path / "label.nii.gz"
    write_mask(path, labels, volume)
    image = str(archive.stored[0].SeriesInstanceUID)
    return SimpleNamespace(archive=archive, store=store, image=image, folder=folder, labels=labels, path=str(path))


def named(*pairs):
    return {"label_info": [{"name": name, "idx": value} for name, value in pairs]}


def segmentations(site):
    return [one for one in site.archive.stored if one.Modality == "SEG"]


def write_elsewhere(site, tmp_path, labels, names):
    """A segmentation that another workstation has put into the archive."""
    path = tmp_path / "elsewhere.dcm"
    write_dicom_seg(path, site.folder, labels, read_volume(site.folder).affine_ras_mm, names)
    site.archive.stored.append(pydicom.dcmread(path))


def test_a_series_is_an_image(site):
    assert site.store.list_images() == [site.image]
    assert site.store.get_unlabeled_images() == [site.image] and site.store.get_labeled_images() == []
    found = read_volume(site.store.get_image_uri(site.image))
    expected = read_volume(site.folder)
    np.testing.assert_array_equal(found.array_ijk, expected.array_ijk)
    np.testing.assert_allclose(found.affine_ras_mm, expected.affine_ras_mm, atol=1e-5)
    assert site.store.get_image_info(site.image)["PatientID"] == "7"


def test_a_final_label_becomes_a_segmentation_in_the_archive(site):
    assert site.store.save_label(site.image, site.path, FINAL, named(("liver", 5), ("spleen", 1))) == site.image
    (found,) = segmentations(site)
    assert [s.SegmentLabel for s in found.SegmentSequence] == ["spleen", "liver"]
    assert site.store.get_labeled_images() == [site.image] and site.store.get_unlabeled_images() == []
    info = site.store.get_label_info(site.image, FINAL)
    assert info["SeriesInstanceUID"] == found.SeriesInstanceUID and info["version"] == 1
    kept = np.asanyarray(nib.load(site.store.get_label_uri(site.image, FINAL)).dataobj)
    np.testing.assert_array_equal(kept, site.labels)


def test_other_tags_stay_here(site):
    site.store.save_label(site.image, site.path, "original", {})
    assert segmentations(site) == [] and site.store.get_labeled_images() == []


def test_nothing_there_can_be_saved(site, tmp_path):
    write_mask(tmp_path / "empty.nii.gz", np.zeros_like(site.labels), read_volume(site.folder))
    site.store.save_label(site.image, str(tmp_path / "empty.nii.gz"), FINAL, named(("liver", 5)))
    assert [s.SegmentLabel for s in segmentations(site)[0].SegmentSequence] == ["liver"]
    assert site.store.get_labeled_images() == [site.image]


@pytest.mark.parametrize("info", [{}, named(("liver", 1)), {"label_info": "liver"}, {"label_info": [{"idx": 5}]}])
def test_a_final_label_without_the_names_of_its_values_is_refused(site, info):
    with pytest.raises(ValueError, match="name"):
        site.store.save_label(site.image, site.path, FINAL, info)
    assert segmentations(site) == [] and not site.store.get_label_uri(site.image, FINAL)


def test_what_was_segmented_elsewhere_is_the_final_label(site, tmp_path):
    write_elsewhere(site, tmp_path, site.labels, {5: "liver"})
    assert site.store.get_labeled_images() == [site.image]
    found = np.asanyarray(nib.load(site.store.get_label_uri(site.image, FINAL)).dataobj)
    np.testing.assert_array_equal(found == 1, site.labels == 5)
    assert site.store.get_label_info(site.image, FINAL)["label_info"] == [{"name": "liver", "idx": 1}]


def test_a_newer_segmentation_from_elsewhere_takes_the_place_of_ours(site, tmp_path):
    site.store.save_label(site.image, site.path, FINAL, named(("liver", 5)))
    (own,) = segmentations(site)
    own.ContentDate = "20000101"
    write_elsewhere(site, tmp_path, np.where(site.labels, 0, 1), {1: "spleen"})
    site.store._referenced.clear()
    found = np.asanyarray(nib.load(site.store.get_label_uri(site.image, FINAL)).dataobj)
    np.testing.assert_array_equal(found == 1, site.labels == 0)
    assert [len(v.info["label_info"]) for v in site.store.label_versions(site.image, FINAL)] == [1, 1]


def test_names_that_slicer_only_lists_are_not_said_to_be_absent(site, tmp_path):
    listed = [*((name, value) for value, name in enumerate(NAMES, start=1)), ("my lesion", 108)]
    site.store.save_label(site.image, site.path, FINAL, named(*listed))
    assert [s.SegmentLabel for s in segmentations(site)[0].SegmentSequence] == ["liver", "my lesion"]
    write_mask(tmp_path / "empty.nii.gz", np.zeros_like(site.labels), read_volume(site.folder))
    with pytest.raises(ValueError, match="at most 20 structures"):
        site.store.save_label(site.image, str(tmp_path / "empty.nii.gz"), FINAL, named(*listed[:-1]))


def test_a_training_takes_what_the_archive_has_and_no_more(site, tmp_path):
    site.store.get_image_uri(site.image)
    write_elsewhere(site, tmp_path, site.labels, {5: "liver"})
    assert len(site.store.datalist()) == 1
    site.archive.stored = [one for one in site.archive.stored if one.Modality != "SEG"]
    assert site.store.datalist() == []
    assert len(site.store.label_versions(site.image, FINAL)) == 1  # its history stays


def test_lists_are_asked_for_again_but_not_at_every_call(site, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(archive_store, "_LIST_SECONDS", 3.0)
    monkeypatch.setattr(archive_store.time, "monotonic", lambda: now[0])
    for _ in range(5):
        site.store.status()
    assert site.archive.asked == [({"Modality": "CT"}, 0), ({"Modality": "CT"}, 1), ({"Modality": "SEG"}, 0)]
    site.archive.add(write_series(tmp_path / "more", SeriesInstanceUID="1.2.3.4")[0])
    now[0] += 3.1
    assert site.store.list_images() == [site.image, "1.2.3.4"]


def test_the_routes_never_answer_500(site):
    application = FastAPI()
    install_handlers(application)
    app = SimpleNamespace(datastore=lambda: site.store, studies=site.archive.base_url, on_save_label=lambda *_: None)
    application.include_router(datastore_router(app, 10**9, lambda *_: None))
    guard = Guard(application, None, Monitor(), 10**6, hosts=["testserver"])
    client = TestClient(guard, raise_server_exceptions=False)
    wanted = {"label": site.image, "tag": FINAL}
    assert client.get("/datastore/label", params=wanted).status_code == 404
    assert client.get("/datastore/label", params={**wanted, "label": "1.2.3"}).status_code == 404

    def save(info):
        with open(site.path, "rb") as label:
            files = {"label": ("label.nii.gz", label)}
            data = {"params": json.dumps(info)}
            return client.put("/datastore/label", params={"image": site.image}, data=data, files=files)

    reply = save({})
    assert reply.status_code == 400 and "label_info" in reply.json()["detail"]
    assert save(named(("liver", 5))).json()["label"] == site.image
    reply = client.get("/datastore/label", params=wanted)
    assert reply.status_code == 200 and reply.content
    assert client.get("/datastore/label/info", params=wanted).json()["label_info"] == [{"name": "liver", "idx": 5}]
    assert client.get("/datastore/").json()["completed"] == 1
