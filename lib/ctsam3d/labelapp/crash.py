"""kill -9 of a running server at random moments, while clients save labels: what it had acknowledged is all there."""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests

from ctsam3d.data.io import read_label_grid, write_mask, write_volume
from ctsam3d.evaluation.timing import Row
from ctsam3d.labelapp.local_server import copy_app, launch, wait_until_up
from ctsam3d.volume import Volume

TAG = "final"
_SHAPE = (24, 20, 16)
_EARLY = 0.25  # share of kills that come before the server is up
_START_SECONDS = 10.0  # within which those come, until a start has been timed
_SAVE_SECONDS = 3.0  # of saving, within which the others come
_TIMEOUT_SECONDS = 60
_LOOKS, _LOOK_SECONDS = 3, 0.2  # for what is half-written


@dataclass
class Saves:
    """One client's saves of the label of one image: numbered, of which a server has acknowledged some."""

    image: str
    sent: int = 0
    acknowledged: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Crash:
    """What the kills brought.

    Attributes:
        kills: how many.
        early: how many of them came before the server was up.
        acknowledged: saves that a server has said were done.
        faults: what was lost or torn, in words; empty where nothing was.
    """

    kills: int
    early: int
    acknowledged: int
    faults: list[str]

    def rows(self) -> list[Row]:
        """As a table."""
        return [
            {
                "kills": self.kills,
                "while starting": self.early,
                "labels acknowledged": self.acknowledged,
                "faults": len(self.faults),
            }
        ]


def crash(
    app: str | os.PathLike, kills: int = 100, clients: int = 3, seed: int = 0, conf: Mapping[str, str] | None = None
) -> Crash:
    """Starts a server, lets every client save labels as fast as it can, kills it, and looks at what is left.

    Raises:
        RuntimeError: a server that does not start, which is the gravest fault.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ctsam3d-crash-") as name:
        folder = Path(name)
        studies = folder / "studies"
        work = [Saves(f"image{number}") for number in range(clients)]
        for saves in work:
            write_volume(studies / f"{saves.image}.nii.gz", Volume(np.zeros(_SHAPE, np.int16), np.eye(4)))
        served = copy_app(app, folder / "app")
        faults, early, start_seconds = [], 0, _START_SECONDS
        for _ in range(kills):
            process, url = launch(served, studies, folder / "server.log", conf)
            try:
                if rng.random() < _EARLY:
                    early += 1
                    time.sleep(rng.uniform(0, start_seconds))
                else:
                    launched = time.monotonic()
                    wait_until_up(process, url, folder / "server.log")
                    start_seconds = time.monotonic() - launched
                    faults += check(url, studies, work)
                    _save_until_killed(process, url, work, folder, rng.uniform(0.01, _SAVE_SECONDS))
            finally:
                process.kill()
                process.wait()
        process, url = launch(served, studies, folder / "server.log", conf)
        try:
            wait_until_up(process, url, folder / "server.log")
            faults += check(url, studies, work)
        finally:
            process.kill()
            process.wait()
    return Crash(kills, early, sum(len(saves.acknowledged) for saves in work), faults)


def _save_until_killed(process, url: str, work: Sequence[Saves], folder: Path, seconds: float) -> None:
    threads = [threading.Thread(target=_save_away, args=(url, saves, folder)) for saves in work]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    process.kill()
    for thread in threads:
        thread.join()


def _save_away(url: str, saves: Saves, folder: Path) -> None:
    """Saves until the server is gone."""
    path = folder / f"{saves.image}-label.nii.gz"
    while True:
        saves.sent += 1
        write_mask(path, numbered(saves.sent), Volume(np.zeros(_SHAPE, np.int16), np.eye(4)))
        said = {"label_info": [{"name": "structure", "idx": 1}], "number": saves.sent}
        try:
            reply = requests.put(
                f"{url}/datastore/label",
                params={"image": saves.image, "tag": TAG},
                data={"params": json.dumps(said)},
                files={"label": (path.name, path.read_bytes())},
                timeout=_TIMEOUT_SECONDS,
            )
        except requests.RequestException:
            return
        if reply.ok:
            saves.acknowledged.append(saves.sent)


def numbered(number: int) -> np.ndarray:
    """A mask (I, J, K) that says its number: the bits, one a voxel, of the first row, and a voxel for good measure."""
    mask = np.zeros(_SHAPE, np.uint8)
    mask[-1, -1, -1] = 1
    mask[:, 0, 0] = [number >> bit & 1 for bit in range(_SHAPE[0])]
    return mask


def number_of(mask_ijk: np.ndarray) -> int:
    """The number that a mask says."""
    return int(sum(int(value) << bit for bit, value in enumerate(mask_ijk[:, 0, 0])))


def check(url: str, studies: Path, work: Sequence[Saves]) -> list[str]:
    """What is wrong with the labels of a server that has just started."""
    faults = [f"left half-written: {path.name}" for path in _half_written(studies)]
    json.loads((studies / "datastore_v2.json").read_text())
    for saves in work:
        if not saves.acknowledged:
            continue
        asked = {"params": {"label": saves.image, "tag": TAG}, "timeout": _TIMEOUT_SECONDS}
        said = requests.get(f"{url}/datastore/label/info", **asked)
        history = requests.get(f"{url}/datastore/label/history", **asked)
        if not (said.ok and history.ok):
            faults.append(f"{saves.image}: its label is gone, {said.status_code} {history.status_code}")
            continue
        number, last = said.json().get("number"), saves.acknowledged[-1]
        held = {version.get("number") for version in history.json()}
        on_disk = number_of(read_label_grid(studies / "labels" / TAG / f"{saves.image}.nii.gz")[0])
        if number != on_disk:
            faults.append(f"{saves.image}: the label of save {on_disk} has the names of save {number}")
        if number is None or number < last:
            faults.append(f"{saves.image}: save {last} was acknowledged, and {number} is there")
        if missing := sorted(set(saves.acknowledged) - held):
            faults.append(f"{saves.image}: saves {missing[:5]} were acknowledged, and the history lacks them")
    for path in (studies / ".history" / TAG).glob("*/*.nii.gz"):
        try:
            read_label_grid(path)
        except ValueError as error:
            faults.append(str(error))
    return faults


def _half_written(studies: Path) -> set[Path]:
    """Temporary files that stay: the server may be writing one at any moment."""
    found = [
        {path for path in studies.rglob(".*") if path.is_file() and path.name != ".lock"}
        for _ in range(_LOOKS)
        if not time.sleep(_LOOK_SECONDS)
    ]
    return set.intersection(*found)
