"""Train pressed in a client of the real server: a process of its own, its status, a stop, and what is served after."""

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import torch
from monailabel.client import MONAILabelClient
from tests.app.conftest import ROOT, free_port, start, stop, wait_until_up
from tests.app.labelling import INFO, patients, scan, write_team

from ctsam3d import checkpoint
from ctsam3d.clicks import first_click, next_click
from ctsam3d.data.io import write_mask, write_volume
from ctsam3d.labelapp.effort import read_events
from ctsam3d.labelapp.effort_report import find_logs, report, saved_structures
from ctsam3d.labelapp.versions import Versions

pytestmark = pytest.mark.long

SECONDS = 300
KILLS = int(os.environ.get("CTSAM3D_KILLS", "2"))  # 20 take about ten minutes
KILL_SECONDS = 30.0  # within which a kill comes; a whole training takes about as long
QUICK = {"max_epochs": 1, "samples_per_volume": 1, "batch_size": 1, "learning_rate": 1e-6}
SMALL = """
from ctsam3d.labelapp import retrain
retrain.REPLAY, retrain.REFERENCE = retrain.REPLAY[:1], retrain.REFERENCE[:1]
retrain.SAVE_EVERY = {"cpu": 1}
"""  # appended to the app, which every training makes anew


@dataclass(frozen=True)
class Team:
    """A running server, its folders, and a client of it."""

    url: str
    work: Path
    process: subprocess.Popen
    client: MONAILabelClient

    @property
    def app(self) -> Path:
        return self.work / "app"

    def stats(self) -> dict:
        return self.client.info()["train_stats"]["ctsam3d"]

    def version(self, client_id: str, name: str = "spleen") -> str:
        """Of the weights that answer a click."""
        params = json.dumps({name: [[20, 20, 18]], "background": [], "client_id": client_id})
        query = {"image": "study0", "output": "json"}
        reply = requests.post(f"{self.url}/infer/ctsam3d", params=query, data={"params": params}, timeout=120)
        assert reply.ok, reply.text
        return reply.json()["version"]

    def wait(self, reached, what: str) -> dict:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            stats = self.stats()
            if reached(stats):
                return stats
            time.sleep(0.5)
        pytest.fail(f"waited {SECONDS} s for {what}: {self.stats()}\n{self.client.train_status()}")

    def ended(self) -> dict:
        """MONAI Label's own view of the last training, once its process is gone."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            status = self.client.train_status()
            if status["status"] in ("DONE", "ERROR", "STOPPED") and not self.client.train_status(True):
                return status
            time.sleep(0.5)
        pytest.fail(f"the training did not end: {self.client.train_status()}")


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """Two scans of training patients, and few and small phantoms, which stand in the app's folder already."""
    work = tmp_path_factory.mktemp("team")
    studies, port = write_team(work), free_port()
    process = start(studies, work, port, more=SMALL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield Team(url, work, process, MONAILabelClient(url, tmpdir=str(work)))
    finally:
        stop(process)


def test_a_client_trains_stops_and_goes_back(team, tmp_path):
    base = team.version("early")
    assert team.client.info()["trainers"]["ctsam3d"]["config"]["train"] == ["decoder", "full"]
    assert team.stats() == {}
    refuses_bad_requests(team)
    for number, patient in enumerate(patients(False, 2)):
        volume, labels = scan(number)
        write_mask(tmp_path / "label.nii.gz", labels, volume)
        info = {"info": f'{{"patient": "{patient}"}}'}
        assert requests.put(f"{team.url}/datastore/image/info?image=study{number}", data=info, timeout=60).ok
        label = str(tmp_path / "label.nii.gz")
        team.client.save_label(f"study{number}", label, tag="final", params={"label_info": INFO})
    is_stopped_in_the_middle(team)
    outcome = trains_to_the_end(team)
    assert team.version("early") == base and team.version("late") == outcome["version"] != base
    goes_back(team, base)


def refuses_bad_requests(team):
    for model, body, status, words in (
        ("ctsam3d", {"max_epochs": 0}, 400, "max_epochs must be a whole number from 1"),
        ("ctsam3d", {"epochs": 3}, 400, "option must be one of max_epochs"),
        ("other", {}, 404, "model must be one of ctsam3d to be trained, got 'other'"),
    ):
        reply = requests.post(f"{team.url}/train/{model}", json=body, timeout=60)
        assert (reply.status_code, words in reply.json()["detail"]) == (status, True), reply.text
    assert not team.client.train_status(check_if_running=True)


def is_stopped_in_the_middle(team):
    team.client.train_start("ctsam3d", {**QUICK, "max_epochs": 1000})
    running = team.wait(lambda stats: stats.get("step", 0) >= 1, "a first step")
    assert running["state"] == "training" and running["total_epochs"] == 1000 and len(running["rounds"]) == 5
    assert team.version("during") == team.version("early")  # clicks go on
    assert requests.post(f"{team.url}/train/ctsam3d", json={}, timeout=60).status_code == 429
    assert team.client.train_stop()["status"] == "STOPPED"
    assert team.ended()["status"] == "STOPPED"
    assert team.wait(lambda stats: stats["state"] == "stopped", "the stop")["step"] >= 1
    assert team.version("after the stop") == team.version("early")


def trains_to_the_end(team) -> dict:
    team.client.train_start("ctsam3d", QUICK)
    stats = team.wait(lambda stats: stats["state"] in ("done", "failed"), "the end")
    assert stats["state"] == "done", stats
    status = team.ended()
    assert status["status"] == "DONE"
    assert stats["outcome"]["published"] and "decides alone" in stats["outcome"]["reason"]
    assert set(stats["studies"]["training"]) == {"study0", "study1"} and stats["skipped"] == {}
    assert set(stats["reference"]) == {"before", "after"}
    assert any(stats["outcome"]["reason"] in line for line in status["details"]), status["details"]
    folder = team.app / "model" / "ctsam3d"
    assert not (folder / "run").exists() and not list(folder.rglob(".writing-*"))
    return stats["outcome"]


def goes_back(team, base):
    command = [sys.executable, str(ROOT / "scripts" / "rollback.py"), "--app", str(team.app)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "current: base\n", done.stderr
    assert team.version("newest") == base
    assert len(Versions(team.app / "model" / "ctsam3d").list()) == 1


# ---- killed --------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_no_click_fails_and_it_goes_on(team):
    """Runs after the test above, whose studies and labels it trains on. CTSAM3D_KILLS sets the number of kills."""
    rng, kills, step = random.Random(0), 0, 0
    request = {**QUICK, "max_epochs": 2, "seed": 7}
    with clicking(team) as rounds:
        while kills < KILLS:
            team.client.train_start("ctsam3d", request)
            killed = is_killed(team, rng.uniform(0, KILL_SECONDS))
            team.ended()
            kills += killed
            before, step, state = step, can_all_be_read(team), team.stats()["state"]
            assert state in ("stopped", "done")  # "done" also where it was killed before it said anything
            assert step >= before or state == "done", (before, step)  # it goes on, rather than begins again
        team.client.train_start("ctsam3d", request)
        assert team.ended()["status"] == "DONE" and team.stats()["state"] == "done"
        can_all_be_read(team)
    assert rounds and all(reply == 200 for reply in rounds), rounds
    assert not list((team.app / "model" / "ctsam3d").glob("run/*"))


@contextlib.contextmanager
def clicking(team):
    """A client that clicks all the while, in old sessions and in new ones; yields the status of every reply."""
    rounds, over = [], threading.Event()

    def click():
        for number in itertools.count():
            if over.is_set():
                return
            places = [[20, 20, 18], [22 + number % 5, 20, 18]][: 1 + number % 2]
            params = {"spleen": places, "background": [], "client_id": f"clicking {number // 10}"}
            query = {"image": "study0", "output": "json"}
            try:
                address, data = f"{team.url}/infer/ctsam3d", {"params": json.dumps(params)}
                rounds.append(requests.post(address, params=query, data=data, timeout=120).status_code)
            except requests.RequestException as error:
                rounds.append(repr(error))

    thread = threading.Thread(target=click)
    thread.start()
    try:
        yield rounds
    finally:
        over.set()
        thread.join()


def is_killed(team, after: float) -> bool:
    """SIGKILL to the training process once it has run so many seconds; False where it was over by then."""
    end = time.monotonic() + SECONDS
    while not (trainers := psutil.Process(team.process.pid).children()) and time.monotonic() < end:
        time.sleep(0.05)
    (trainer,) = trainers
    with contextlib.suppress(psutil.TimeoutExpired):
        trainer.wait(after)
        return False
    trainer.kill()
    return True


def can_all_be_read(team) -> int:
    """Opens every file of the app's model folder that has its name; returns the step of the latest state."""
    folder, step = team.app / "model" / "ctsam3d", 0
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".safetensors":
            checkpoint.load(path)
        elif path.suffix == ".pt":
            step = max(step, torch.load(path, weights_only=True)["step"])
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npy":
            np.load(path)
    return step


# ---- two who label in turn -----------------------------------------------------------------------------------------

NAMED = [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]


def test_two_clients_label_in_turn_and_the_log_shows_what_it_cost(team, tmp_path):
    """Next sample, simulated clicks, submit, a training, and the same again: clicks by version of the weights."""
    clients = [MONAILabelClient(team.url, tmpdir=str(tmp_path), client_id=name) for name in ("anna", "ben")]
    truth = {}
    for number, patient in enumerate(patients(False, 8)[2:]):
        volume, truth[f"pool{number}"] = scan(50 + number)
        write_volume(tmp_path / f"pool{number}.nii.gz", volume)
        team.client.upload_image(
            str(tmp_path / f"pool{number}.nii.gz"), f"pool{number}", {"patient": patient, "structures": ["spleen"]}
        )
    before = labels_a_round(team, clients, truth, tmp_path)
    team.client.train_start("ctsam3d", {**QUICK, "seed": 11})
    assert team.ended()["status"] == "DONE", team.stats()
    after = labels_a_round(team, clients, truth, tmp_path)
    assert len({*before, *after}) == 4  # nobody got what another one had
    (log,) = find_logs(team.app)
    frame = wait_for_saves(log, [*before, *after], 8)
    assert frame["version"].nunique() == 2 and (frame["clicks"] >= 1).all() and frame["dsc"].between(0, 1).all()
    assert set(frame["image"]) == {*before, *after}
    text = report([log])
    assert all(f"| {version} |" in text for version in frame["version"].unique())


def labels_a_round(team, clients, truth, folder) -> list[str]:
    """Each client takes a scan, both at once, then clicks and submits it."""
    samples = [client.next_sample("foreground_random", {"structures": ["spleen"]}) for client in clients]
    taken = [sample["id"] for sample in samples]
    assert all("drawn at random" in sample["reason"] for sample in samples)
    held = requests.get(f"{team.url}/leases/", timeout=60).json()
    assert {image: held[image]["client"] for image in taken} == dict(zip(taken, ("anna", "ben")))
    for client, image in zip(clients, taken):
        clicks(client, image, truth[image])
        write_mask(folder / "label.nii.gz", truth[image], scan(0)[0])
        client.save_label(image, str(folder / "label.nii.gz"), tag="final", params={"label_info": NAMED})
    return taken


def clicks(client, image, labels) -> None:
    """Two clicks of a simulated user on each structure; the second request also asks where to look next."""
    rng = np.random.default_rng(0)
    for entry in NAMED:
        target = labels == entry["idx"]
        lists = {"foreground": [[int(v) for v in first_click(target, rng)]], "background": []}
        for suggest in (False, True):
            asked = {**lists, "label": entry["name"], "expand": False, "suggest": suggest}
            file, reply = client.infer("ctsam3d_points", image, {**asked, "result_extension": ".nii.gz"})
            found = next_click(np.asanyarray(nib.load(file).dataobj) > 0, target)
            if found is not None:
                lists["foreground" if found[1] else "background"].append([int(v) for v in found[0]])
        assert set(reply["confidence"]) == {entry["name"]}


def wait_for_saves(log, images, count: int):
    """What was saved of the images; the log is written after the reply, and other tests write to it too."""
    end = time.monotonic() + SECONDS
    while True:
        frame = saved_structures(read_events(log))
        frame = frame[frame["image"].isin(images)]
        if len(frame) >= count or time.monotonic() > end:
            break
        time.sleep(0.2)
    assert len(frame) == count
    return frame
