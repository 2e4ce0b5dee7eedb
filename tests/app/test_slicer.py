"""3D Slicer without Slicer: the requests of its MONAILabel module, button by button, against the real server.

What the module does with the replies is done here too: it knows segments by name, takes value v of a label map for the
v-th name, and saves its segments numbered in their order, those without voxels included.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_plus

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from tests.app.conftest import free_port, start, stop, wait_until_up
from tests.app.labelling import patients, scan, write_team
from tests.app.test_train_server import SMALL

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import NAMES
from ctsam3d.volume import Volume

pytestmark = pytest.mark.slow

SECONDS = 300
INSIDE = {"spleen": [9, 9, 9], "liver": [29, 15, 8]}  # in the two boxes of every scan
INSIDE_LISTS = {name: [place] for name, place in INSIDE.items()}


@dataclass
class Slicer:
    """The module in one Slicer: the address that was typed in, its folder, and the scan that is open."""

    url: str
    folder: Path
    client_id: str = "user-xyz"
    info: dict = field(default_factory=dict)
    sample: dict = field(default_factory=dict)
    segments: dict[str, np.ndarray] = field(default_factory=dict)
    image: sitk.Image | None = None

    @property
    def client(self) -> MONAILabelClient:
        """One for each request."""
        return MONAILabelClient(self.url, str(self.folder), self.client_id)

    def connect(self) -> None:
        self.info = self.client.info()

    def options(self, section: str, name: str) -> dict:
        """The table of options as it stands: of a choice the first one."""
        config = self.info[section][name].get("config", {})
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def next_sample(self, strategy: str = "first") -> None:
        sample = self.client.next_sample(strategy, self.options("strategies", strategy))
        content = requests.get(f"{self.url}/datastore/image?image={quote_plus(sample['id'])}", timeout=60).content
        if "checksum" in sample:
            algorithm, _, digest = sample["checksum"].partition(":")
            assert hashlib.new(algorithm.lower(), content).hexdigest() == digest
        (self.folder / "volume.nii.gz").write_bytes(content)
        with pytest.raises(KeyError):  # no proposal of a model comes with it
            self.client.datastore()["objects"][sample["id"]]["labels"]["original"]
        self._open(sample, self.folder / "volume.nii.gz")

    def open_file(self, path: Path) -> None:
        """A scan of Slicer's own, which the server has not got."""
        self._open({"id": path.name.removesuffix(".nii.gz"), "session": True}, path)

    def _open(self, sample: dict, path: Path) -> None:
        self.sample, self.image = sample, sitk.ReadImage(str(path))
        empty = np.zeros(self.image.GetSize()[::-1], bool)  # k, j, i
        self.segments = {name: empty for name in self.info["labels"]}

    def smart_edit(self, model: str, label: str, points: dict[str, list], negative: list = (), **options) -> dict:
        """Points placed for a segment, with options changed in the table; the parameters of the reply."""
        if self.info["models"][model]["type"] == "deepedit":
            params = {name: points.get(name, []) for name in self.info["labels"]}
        else:
            params = {"foreground": points[label], "background": list(negative)}
        params |= {"label": label, **self.options("models", model), **options}
        params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
        file, reply = self.client.infer(model, self.sample["id"], params, None, None, self._session())
        labelmap = sitk.ReadImage(file)
        assert Path(file).suffix == ".nrrd" and labelmap.GetPixelID() == sitk.sitkUInt8
        assert labelmap.GetSize() == self.image.GetSize()
        for ours, theirs in ((labelmap.GetOrigin(), self.image.GetOrigin()), (labelmap.GetSpacing(), [1.5] * 3)):
            assert ours == pytest.approx(theirs, abs=1e-4)
        assert labelmap.GetDirection() == pytest.approx(self.image.GetDirection(), abs=1e-5)
        names = [label]
        if self.info["models"][model]["type"] == "deepedit":
            names = [name for name, _ in sorted(reply["label_names"].items(), key=lambda item: item[1])]
        values = sitk.GetArrayFromImage(labelmap)
        self.segments |= {names[value - 1]: values == value for value in np.unique(values[values > 0])}
        return reply

    def _session(self) -> str | None:
        if not self.sample.get("session"):
            return None
        if not self.sample.get("session_id") or not self.client.get_session(self.sample["session_id"]):
            self.sample["session_id"] = self.client.create_session(self._written(self.image))["session_id"]
        return self.sample["session_id"]

    def submit(self) -> dict:
        if self.sample.get("session"):
            self.client.upload_image(self._written(self.image), self.sample["id"])
            self.sample["session"] = False
        label_info, labels = [], np.zeros(self.image.GetSize()[::-1], np.uint8)
        for index, (name, mask) in enumerate(self.segments.items(), start=1):
            label_info.append({"name": name, "idx": index})
            labels[mask] = index
        labelmap = sitk.GetImageFromArray(labels)
        labelmap.CopyInformation(self.image)
        return self.client.save_label(self.sample["id"], self._written(labelmap), params={"label_info": label_info})

    def _written(self, image: sitk.Image) -> str:
        path = self.folder / f"tmp{time.monotonic_ns()}.nii.gz"
        sitk.WriteImage(image, str(path))
        return str(path)

    def voxels(self, name: str) -> int:
        return int(self.segments[name].sum())

    def at(self, name: str, ijk: list[int]) -> bool:
        return bool(self.segments[name][tuple(ijk[::-1])])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with two small scans, and few phantoms to train with."""
    work = tmp_path_factory.mktemp("slicer")
    studies, port = write_team(work), free_port()
    process = start(studies, work, port, "--conf", "expand_seconds", "0.05", more=SMALL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield url
    finally:
        stop(process)


@pytest.fixture
def slicer(server, tmp_path):
    found = Slicer(server, tmp_path)
    found.connect()
    return found


def test_what_the_module_lists(slicer):
    kinds = {name: model["type"] for name, model in slicer.info["models"].items()}
    assert kinds == {"ctsam3d": "deepedit", "ctsam3d_points": "deepgrow"}
    assert slicer.info["labels"] == list(NAMES) and list(slicer.info["trainers"]) == ["ctsam3d"]
    assert all(model["dimension"] == 3 for model in slicer.info["models"].values())


def test_smart_edit_in_both_modes_submit_and_next(slicer):
    slicer.next_sample()
    assert slicer.sample["id"] == "study0"
    reply = slicer.smart_edit("ctsam3d", "spleen", {"spleen": [INSIDE["spleen"]]})
    assert list(reply["label_names"]) == list(NAMES)
    assert slicer.at("spleen", INSIDE["spleen"]) and slicer.voxels("liver") == 0
    slicer.smart_edit("ctsam3d", "liver", INSIDE_LISTS)
    assert all(slicer.at(name, INSIDE[name]) for name in INSIDE)
    assert not (slicer.segments["spleen"] & slicer.segments["liver"]).any()

    slicer.segments["my lesion"] = np.zeros_like(slicer.segments["liver"])  # a segment that was added by hand
    slicer.smart_edit("ctsam3d_points", "my lesion", {"my lesion": [[20, 30, 20]]}, negative=[INSIDE["liver"]])
    assert slicer.at("my lesion", [20, 30, 20])
    voxels = {name: slicer.voxels(name) for name in ("spleen", "liver")}

    assert slicer.submit()["label"] == "study0"
    info = slicer.client.datastore()["objects"]["study0"]["labels"]["final"]["info"]
    names = {one["idx"]: one["name"] for one in info["label_info"]}
    assert names == dict(enumerate((*NAMES, "my lesion"), start=1))
    saved = sitk.GetArrayFromImage(sitk.ReadImage(slicer.client.download_label("study0", "final")))
    kept = {name: int((saved == NAMES.index(name) + 1).sum()) for name in voxels}
    assert kept["liver"] <= voxels["liver"] and (saved == len(NAMES) + 1).sum() == slicer.voxels("my lesion")
    slicer.next_sample()
    assert slicer.sample["id"] == "study1"


def test_a_scan_of_slicers_own_goes_through_a_session_and_is_uploaded_with_its_label(slicer, tmp_path):
    write_volume(tmp_path / "own scan.nii.gz", Volume(scan(7)[0].array_ijk, np.diag([-1.5, -1.5, 1.5, 1.0])))
    slicer.open_file(tmp_path / "own scan.nii.gz")
    with pytest.raises(requests.HTTPError):
        requests.get(f"{slicer.url}/datastore/image?image=own+scan", timeout=60).raise_for_status()
    slicer.smart_edit("ctsam3d", "liver", {"liver": [INSIDE["liver"]]})
    first = slicer.sample["session_id"]
    slicer.smart_edit("ctsam3d", "spleen", INSIDE_LISTS)
    assert slicer.sample["session_id"] == first and slicer.at("spleen", INSIDE["spleen"])
    assert slicer.submit()["image"] == "own scan"
    assert "own scan" in slicer.client.datastore()["objects"]
    slicer.client.remove_session(first)
    with pytest.raises(MONAILabelClientException, match="session_id must be that of a session in use"):
        slicer.client.get_session(first)


def test_the_option_save_stores_what_is_shown(slicer):
    slicer._open({"id": "study0"}, slicer.folder / _fetched(slicer, "study0"))
    told = slicer.smart_edit("ctsam3d", "liver", INSIDE_LISTS, save=True)["saved"]
    info = slicer.client.datastore()["objects"]["study0"]["labels"]["final"]["info"]
    assert (told["label"], told["tag"], told["version"]) == ("study0", "final", info["version"])
    assert info["label_info"] == [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 5}]
    saved = sitk.GetArrayFromImage(sitk.ReadImage(slicer.client.download_label("study0", "final")))
    for name, value in (("spleen", 1), ("liver", 5)):
        np.testing.assert_array_equal(saved == value, slicer.segments[name])


@pytest.mark.parametrize(
    ("more", "session", "words"),
    [({"result_box": True}, "", "result_box"), ({}, "x", "save needs image"), ({"save": 2}, "", "save must be true")],
)
def test_what_cannot_be_saved_is_refused(slicer, more, session, words):
    params = {"params": json.dumps({**INSIDE_LISTS, "save": True, **more})}
    query = {"image": "study0", "session_id": session}
    reply = requests.post(f"{slicer.url}/infer/ctsam3d", params, params=query, timeout=60)
    assert reply.status_code == 400 and words in reply.json()["detail"]


def test_a_segment_without_points_is_told_in_words(slicer):
    slicer.next_sample()
    with pytest.raises(MONAILabelClientException, match="at least one positive click"):
        slicer.smart_edit("ctsam3d", "liver", {})


def test_train_status_and_stop(slicer):
    for number, patient in enumerate(patients(False, 2)):
        info = {"info": f'{{"patient": "{patient}"}}'}
        assert requests.put(f"{slicer.url}/datastore/image/info?image=study{number}", info, timeout=60).ok
        slicer._open({"id": f"study{number}"}, slicer.folder / _fetched(slicer, f"study{number}"))
        for value, name in ((1, "spleen"), (2, "liver")):
            slicer.segments[name] = scan(number)[1].T == value
        slicer.submit()
    options = slicer.options("trainers", "ctsam3d")
    assert options["train"] == "decoder"
    started = slicer.client.train_start("ctsam3d", {**options, "max_epochs": 1000, "samples_per_volume": 1})
    assert started["status"] in ("SUBMITTED", "PENDING", "RUNNING") and started["id"] and started["start_ts"]
    wait_for(lambda: slicer.client.train_status(check_if_running=True))  # a moment, from submitted to running
    with pytest.raises(MONAILabelClientException, match="429"):
        slicer.client.train_start("ctsam3d", options)
    wait_for(lambda: slicer.client.info()["train_stats"].get("ctsam3d", {}).get("step", 0) >= 1)
    stopped = slicer.client.train_stop()
    assert stopped.get("details") or stopped.get("result")
    wait_for(lambda: not slicer.client.train_status(check_if_running=True))


def _fetched(slicer: Slicer, image: str) -> str:
    content = requests.get(f"{slicer.url}/datastore/image?image={image}", timeout=60).content
    (slicer.folder / f"{image}.nii.gz").write_bytes(content)
    return f"{image}.nii.gz"


def wait_for(condition) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)
