"""The real server, started with the plain command, and clients that drive it; an app whose training is a stand-in."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from scipy import ndimage
from tests.app.labelling import patients
from tests.app.standin import App

from ctsam3d.data.io import read_case
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.volume import Volume

ROOT = Path(__file__).parents[2]
APP = ROOT / "apps" / "ctsam3d"
START_SECONDS = 180


@dataclass(frozen=True)
class Scan:
    """An image of the studies folder: id, file, geometry, and one voxel deep inside each structure."""

    image: str
    path: Path
    volume: Volume
    mask: Callable[[str], np.ndarray]

    def inside(self, name: str, depth: float = 1.0) -> list[int]:
        """The voxel of a structure that is farthest from its border, or `depth` of the way there."""
        distance = ndimage.distance_transform_edt(np.pad(self.mask(name), 1))[1:-1, 1:-1, 1:-1]
        index = np.argmin(np.abs(distance - depth * distance.max()) + (distance == 0) * distance.max())
        return [int(v) for v in np.unravel_index(index, distance.shape)]


@dataclass(frozen=True)
class Server:
    """A running server, its folders, and its two good scans."""

    url: str
    studies: Path
    replies: Path
    temporary: Path
    log: Path
    scans: dict[str, Scan]
    pid: int

    def click(self, scan: str, params: dict, client: str | None = None, model: str = "ctsam3d", **more):
        """The label map (I, J, K) as it comes back through MONAI Label's client, and the parameters of the reply."""
        path, reply = self.infer(scan, params, client, model, **more)
        labels = np.asanyarray(nib.load(path).dataobj)
        Path(path).unlink()
        return labels, reply

    def infer(self, scan: str, params: dict, client: str | None = None, model: str = "ctsam3d", **more):
        """The file of the reply and its parameters. Without expansion unless asked for: that takes its time."""
        own = MONAILabelClient(self.url, tmpdir=str(self.replies), client_id=client)
        return own.infer(model, scan, {"result_extension": ".nii.gz", "expand": False, **params}, **more)

    def post(self, model="ctsam3d", image="organs", params="{}", **more) -> requests.Response:
        """A request as it is, `params` in text."""
        query = {"image": image, **more.pop("query", {})}
        return requests.post(f"{self.url}/infer/{model}", params=query, data={"params": params}, timeout=120, **more)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_scan(case_folder: Path, studies: Path, image: str) -> Scan:
    case = read_case(case_folder)
    path = studies / f"{image}.nii.gz"
    shutil.copyfile(case_folder / "ct.nii.gz", path)
    return Scan(image, path, case.volume, case.mask)


def write_bad_images(studies: Path, good: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((20, 20), np.int16), np.eye(4)), studies / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.int16), np.eye(4)), studies / "four.nii.gz")
    (studies / "truncated.nii.gz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (studies / "empty.nii.gz").write_bytes(b"")


def copy_app(work: Path, more: str = "") -> Path:
    """The app in a folder of its own, with `more` code in it.

    So what is trained in the app of the project changes no test, and no test leaves a trace there.
    """
    folder = work / "app"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text((APP / "main.py").read_text() + more)
    return folder


def start(
    studies: Path, work: Path, port: int, *arguments: str, more: str = "", host: str = "127.0.0.1"
) -> subprocess.Popen:
    """``monailabel start_server --app work/app --studies DIR``, in a folder of its own; `host` "": none is said."""
    environment = {
        **os.environ,
        "TMPDIR": str(work / "tmp"),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(copy_app(work, more))]
    command += ["--studies", str(studies), "--port", str(port), *(["--host", host] if host else []), *arguments]
    with open(work / "server.log", "wb") as log:
        return subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            requests.get(f"{url}/healthz", timeout=5)  # also a refusal is an answer
            return
        except requests.RequestException:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests: `organs` is the real abdomen where it is there, else a phantom; `other` a phantom."""
    work = tmp_path_factory.mktemp("server")
    studies, replies = work / "studies", work / "replies"
    studies.mkdir()
    replies.mkdir()
    example = ROOT.parent / "shared" / "data" / "ts_example"
    if not example.is_dir():
        example = write_phantom_case(work / "organs", make_phantom(1, (2.0, 2.0, 3.0), "abdomen"))
    other = write_phantom_case(work / "other", make_phantom(2, (2.5, 2.5, 4.0), "abdomen"))
    scans = {"organs": copy_scan(example, studies, "organs"), "other": copy_scan(other, studies, "other")}
    write_bad_images(studies, scans["other"].path)
    port = free_port()
    limits = ("--conf", "max_upload_mb", "60", "--conf", "max_scan_mb", "300")
    process = start(studies, work, port, *limits)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield Server(url, studies, replies, work / "tmp", work / "server.log", scans, process.pid)
    finally:
        stop(process)


@pytest.fixture
def app(tmp_path, monkeypatch):
    return App(tmp_path, monkeypatch)


@pytest.fixture
def labelled(app):
    """Two patients for training, three for validation."""
    for number, patient in enumerate((*patients(False, 2), *patients(True, 3))):
        app.team.label(f"study{number}", number, patient)
    return app
