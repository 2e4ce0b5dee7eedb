"""What a training tells the outside, and the lock that allows one training at a time in an app folder.

MONAI Label trains in a process of its own, and stops it by SIGKILL: the status is a file that is replaced whole, and
the lock is one that the system takes back from a dead process.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ctsam3d.data.files import atomic_path

DONE, FAILED, STOPPED = "done", "failed", "stopped"
_LOCK = ".train.lock"
_LOCK_SECONDS = 5.0  # whoever asks whether a training runs holds the lock for a moment
_WRITE_SECONDS = 1.0


class Status:
    """The values of a status file, written at most once a second unless said otherwise."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        self._written = 0.0

    def update(self, now: bool = True, **values) -> None:
        """Takes over `values`; `now`: writes them even if the last time was less than a second ago."""
        self.values.update(values, updated=time.strftime("%Y-%m-%d %H:%M:%S"))
        if now or time.monotonic() - self._written >= _WRITE_SECONDS:
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
            self._written = time.monotonic()


def read_status(path: Path) -> dict:
    """The values in a status file; empty where there was no training yet. A training that was killed is `STOPPED`."""
    runs = training_runs(path.parent)  # asked first: one that ends in between has written its end
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not runs and values.get("state") not in (DONE, FAILED):
        values["state"] = STOPPED
        values["error"] = "the training was stopped; Train goes on with it where studies and options are the same"
        values.pop("seconds_left", None)
        values["total_time"] = "stopped"  # to clients it says that none runs; how long it ran nobody wrote down
    return values


@contextlib.contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Holds the lock of an app's model folder.

    Raises:
        RuntimeError: another process, or thread, trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"training must run once at a time in an app folder, another one runs in {folder}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def training_runs(folder: Path) -> bool:
    """Whether somebody holds the lock of the folder."""
    if not (folder / _LOCK).exists():
        return False
    try:
        with FileLock(folder / _LOCK, timeout=0):
            return False
    except Timeout:
        return True
