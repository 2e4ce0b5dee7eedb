"""How long a client waits for the next sample of a large pool whose scans were scored before."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from monailabel.client import MONAILabelClient
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.data.files import append_json, file_signature
from ctsam3d.data.io import write_volume
from ctsam3d.evaluation.scan_scores import ScanScores
from ctsam3d.evaluation.timing import Row, percentiles_ms
from ctsam3d.labelapp.desk import active_folder
from ctsam3d.labelapp.local_server import copy_app, local_server
from ctsam3d.labelapp.sessions import content_of
from ctsam3d.volume import Volume

_SHAPE = (24, 24, 24)
_FEATURES = 96  # of an embedding, as the packaged weights have it
_LABELLED = 50
_SESSIONS = 2000
_STRUCTURES = ("liver", "spleen")


def benchmark_next_sample(app: str | os.PathLike, scans: int, repeats: int, seed: int = 0) -> list[Row]:
    """Next Sample over HTTP, every strategy, each time by another client.

    The scans are noise of 24 x 24 x 24 voxels, 50 of them labelled; their scores and a log of 2,000 saved sessions are
    drawn, in the place of those that the server would have made in the background.

    Returns:
        A row a strategy: number of requests, milliseconds (percentiles), and what a request costs the server in
        milliseconds of a core, which also a busy machine tells.
    """
    with tempfile.TemporaryDirectory(prefix="ctsam3d-next-sample-") as name:
        folder = Path(name)
        served, studies = copy_app(app, folder / "app"), folder / "studies"
        _make_pool(studies, active_folder(served, str(studies)), scans, np.random.default_rng(seed))
        with local_server(served, studies, folder / "server.log") as server:
            process = psutil.Process(server.pid)
            strategies = list(MONAILabelClient(server.url, tmpdir=name).info()["strategies"])
            rows = []
            for strategy in tqdm(strategies, desc="strategies"):
                seconds, before = [], _cpu_seconds(process)
                for number in range(repeats):
                    client = MONAILabelClient(server.url, tmpdir=name, client_id=f"{strategy} {number}")
                    start = time.perf_counter()
                    found = client.next_sample(strategy, {"structures": list(_STRUCTURES)})
                    seconds.append(time.perf_counter() - start)
                    if "id" not in found:
                        raise RuntimeError(f"strategy {strategy} gave no scan: {found}")
                core = {"core ms": 1000 * (_cpu_seconds(process) - before) / repeats}
                rows.append({"strategy": strategy, "scans": scans, **percentiles_ms(seconds), **core})
            return rows


def _make_pool(studies: Path, active: Path, count: int, rng: np.random.Generator) -> None:
    """Scans, final labels of some, and a survey of all."""
    version = checkpoint.read_about(checkpoint.packaged_path()).version
    lines = []
    for number in tqdm(range(count), desc="scans"):
        path = studies / f"scan{number:05d}.nii"
        write_volume(path, Volume(rng.normal(-50, 200, _SHAPE).astype(np.int16), np.diag([1.5, 1.5, 1.5, 1.0])))
        content = content_of(path)
        scores = {name: float(rng.random()) for name in _STRUCTURES}
        found = ScanScores(tuple(rng.normal(size=_FEATURES).round(5).tolist()), scores, scores)
        if number < _LABELLED:
            label = Volume((rng.random(_SHAPE) > 0.5).astype(np.uint8), np.diag([1.5, 1.5, 1.5, 1.0]))
            write_volume(studies / "labels" / "final" / path.name, label)
            found = dataclasses.replace(found, prototypes={"liver": (1.0,) * 16})
        known = {"image": path.stem, "signature": file_signature(path), "content": content, "problem": ""}
        lines += [known, {"content": content, "version": version, **dataclasses.asdict(found)}]
    append_json(active / "survey.jsonl", lines)
    costs = [{"clicks": 1 + n % 6, "quality": rng.random(), "dsc": rng.random()} for n in range(_SESSIONS)]
    saves = [{"event": "saved", "image": "scan", "time": 0, "structures": [cost]} for cost in costs]
    append_json(active / "effort.jsonl", saves)


def _cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])
