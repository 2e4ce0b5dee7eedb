"""The server's process: where it listens, its temporary files, its log, and how it ends."""

import json
import logging
import logging.handlers
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from filelock import FileLock
from tests.app.conftest import free_port, start, wait_until_up

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.labelapp import process
from ctsam3d.labelapp.process import Scratch, share_log_file, told

START = ["start_server", "--app", "a", "--studies", "b"]


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        (START, None),
        ([*START, "--port", "8001", "--conf", "host", "1.2.3.4"], None),
        ([*START, "--host", "0.0.0.0"], "0.0.0.0"),
        ([*START, "--host=::1"], "::1"),
        ([*START, "-i", "10.0.0.1"], "10.0.0.1"),
        ([*START, "--hos", "10.0.0.1"], "10.0.0.1"),
        (["-m", "pytest"], None),
        ([], None),
    ],
)
def test_the_host_that_a_command_line_names(arguments, host):
    assert told(arguments).host == host


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="--workers must be 1, got 4"):
        told([*START, "--workers", "4"])


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Temporary files of this test go to a folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(Scratch, "_own", None)
    monkeypatch.setattr(process.atexit, "register", lambda _: None)
    return tmp_path


def test_temporary_files_lie_in_one_folder_that_goes(scratch):
    Scratch().use()
    Scratch().use()
    with tempfile.NamedTemporaryFile(delete=False) as file:
        folder = Path(file.name).parent
    assert folder.parent == scratch and folder.name.startswith("ctsam3d-server-")
    Scratch.clear_own()
    assert list(scratch.iterdir()) == []


def test_folders_of_dead_servers_go_and_those_of_others_stay(scratch):
    alive, dead, other = (scratch / name for name in ("ctsam3d-server-alive", "ctsam3d-server-dead", "of-others"))
    for folder in (alive, dead, other):
        folder.mkdir()
        (folder / "scan.nii").write_text("x")
    with FileLock(alive / ".lock"):
        Scratch().use()
    assert alive.is_dir() and other.is_dir() and not dead.exists()


def test_no_task_begins_while_those_that_run_are_stopped(monkeypatch):
    done = []

    class Executor:
        def shutdown(self, wait, cancel_futures):
            done.append(("cancelled", wait, cancel_futures))

    monkeypatch.setattr(process, "background_executors", {"train": Executor()})
    monkeypatch.setattr(process.AsyncTask, "stop", lambda method: done.append(method))
    process._stop_tasks()
    assert done == [("cancelled", False, True), "train", "scoring", "batch_infer"]


def test_one_handler_rotates_the_log(tmp_path):
    path = tmp_path / "app.log"
    logs = {name: logging.Logger(name) for name in ("", "task_train", "task_scoring", "task_batch_infer")}
    for name, log in logs.items():
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=200, backupCount=3)
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s" if not name else "%(message)s"))
        log.addHandler(handler)
    share_log_file(logs.values())
    assert len({handler for log in logs.values() for handler in log.handlers}) == 1
    for number in range(12):
        logs[""].warning("line %d", number)
        logs["task_train"].warning("step %d", number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["app.log", "app.log.1", "app.log.2", "app.log.3"] or len(files) < 4
    kept = "".join(file.read_text() for file in reversed(files)).splitlines()
    assert kept[-2:] == ["[] line 11", "step 11"] and all(file.stat().st_size <= 200 for file in files)
    assert [line for line in kept if "step" in line] == [f"step {n}" for n in range(12)][
        -sum("step" in k for k in kept) :
    ]


@pytest.mark.slow
def test_a_server_told_to_end_finishes_the_click_in_hand(tmp_path):
    phantom = make_phantom(2, (2.5, 2.5, 4.0), "abdomen")
    write_volume(tmp_path / "studies" / "scan.nii.gz", phantom.volume)
    stale = tmp_path / "tmp" / "ctsam3d-server-stale"
    stale.mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = start(tmp_path / "studies", tmp_path, port, "--conf", "expand_seconds", "4")
    replies = []

    def click():
        inside = np.argwhere(phantom.labels_ijk == VALUE_OF["liver"])
        params = json.dumps({"liver": [inside[len(inside) // 2].tolist()]})
        query = {"image": "scan", "output": "json"}
        replies.append(requests.post(f"{url}/infer/ctsam3d", params=query, data={"params": params}, timeout=120))

    try:
        wait_until_up(server, url, tmp_path / "server.log")
        assert not stale.exists()
        thread = threading.Thread(target=click)
        thread.start()
        while "ctsam3d_click_sessions 1" not in requests.get(f"{url}/metrics", timeout=60).text:
            time.sleep(0.02)
        server.send_signal(signal.SIGTERM)
        thread.join()
        assert replies[0].status_code == 200 and replies[0].json()["expansion"]["liver"]["proposed"] > 0
        server.wait(60)
        assert list((tmp_path / "tmp").glob("ctsam3d-*")) == []
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/info/", timeout=5)
    finally:
        server.kill()
        server.wait()
