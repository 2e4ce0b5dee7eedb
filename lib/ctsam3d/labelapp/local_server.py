"""The server as a user starts it, on this machine and a free port: for what plays or measures against it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

_START_SECONDS = 600  # 15 on an idle machine
_LOG_CHARACTERS = 3000
_NOT_THE_APP = shutil.ignore_patterns("model", "logs", "lib", "bin", "__pycache__")  # what a server writes beside it


@dataclass(frozen=True)
class LocalServer:
    """A running server: its address and the id of its process."""

    url: str
    pid: int


def copy_app(app: str | os.PathLike, target: str | os.PathLike) -> Path:
    """The app without what it has learned, in the new folder `target`: it serves the packaged weights."""
    return Path(shutil.copytree(app, target, ignore=_NOT_THE_APP))


@contextlib.contextmanager
def local_server(
    app: str | os.PathLike, studies: str | os.PathLike, log: str | os.PathLike, conf: Mapping[str, str] | None = None
) -> Iterator[LocalServer]:
    """Runs the plain start command while the block runs.

    Args, Raises: as `launch` and `wait_until_up`.
    """
    process, url = launch(app, studies, log, conf)
    try:
        wait_until_up(process, url, log)
        yield LocalServer(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launch(
    app: str | os.PathLike, studies: str | os.PathLike, log: str | os.PathLike, conf: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen, str]:
    """Starts the plain start command on a free port, and does not wait for it.

    Args:
        app: folder of the app, also the working directory, as MONAI Label reads ``.env`` from there.
        studies: folder of images.
        log: file for its output.
        conf: settings of the app, as ``--conf`` takes them.

    Returns:
        The process, and the address that it will answer at.
    """
    app = Path(app).resolve()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(Path(studies).resolve()), "--host", "127.0.0.1", "--port", str(port)]
    for key, value in (conf or {}).items():
        command += ["--conf", key, value]
    with open(log, "wb") as lines:
        process = subprocess.Popen(command, cwd=app, stdout=lines, stderr=subprocess.STDOUT)
    return process, f"http://127.0.0.1:{port}"


def wait_until_up(process: subprocess.Popen, url: str, log: str | os.PathLike) -> None:
    """Returns when the server answers.

    Raises:
        RuntimeError: it has ended, or does not answer within ten minutes.
    """
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{url}/healthz", timeout=10)  # also a refusal is an answer
            return
        time.sleep(0.5)
    said = Path(log).read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    raise RuntimeError(f"the server did not start; its status is {process.poll()}, and its last words are\n{said}")
