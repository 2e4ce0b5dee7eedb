"""What the harness of evaluations adds to the network's time: whole runs over cases, with clocks in the session."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ctsam3d.data.datasets import CaseFiles, find_dataset
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.evaluation import MIN_VOXELS, TOLERANCE_MM
from ctsam3d.evaluation.runs import Parts, Run, Settings
from ctsam3d.evaluation.simulate import CLICK_COUNTS
from ctsam3d.evaluation.timing import Row, wait
from ctsam3d.segmenter import Segmenter, load
from ctsam3d.session import Session


def benchmark_evaluation(
    data: str | os.PathLike | None = None,
    weights: str | os.PathLike = "default",
    device: str = "cpu",
    cases: Sequence[str] | None = None,
    structures: Sequence[str] | None = None,
    seeds: int = 1,
    expand: bool = True,
    user: str = "deepest",
    seed: int = 0,
) -> list[Row]:
    """Evaluate structures of cases, nine clicks each, and tell the network's time from the rest.

    The harness is all that happens outside of `Session.click`: reading the case and its masks, finding the next click,
    scoring after 1, 3, 5, 7 and 9 clicks, and writing the parts. A report is written once a run and is not counted.

    Args:
        data: folder of a data set, see `find_dataset`; None for a phantom of an abdomen.
        seeds: users who click each structure.
        seed: of the phantom.

    Raises:
        FileNotFoundError, ValueError: data, weights or a case that cannot be used.

    Returns:
        A row a case and one of all: structures, clicks, seconds of the network, of the rest of the clicks, of reading
        the case, of the rest of the harness, and the harness, reading included, in % of the network.
    """
    clocked = _Clocked(load(weights, device))
    clocked.warm_up()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = Path(folder) / "data"
            write_phantom_case(data / f"phantom_{seed}", make_phantom(seed, region="abdomen"))
        settings = Settings.of(clocked, CLICK_COUNTS, seeds, TOLERANCE_MM, user, expand)
        parts = Parts(Path(folder) / "parts", settings)
        run = Run(parts, structures, MIN_VOXELS)
        for files in find_dataset(data).chosen(cases):
            rows.append(_measured(run, clocked, files))
    if len(rows) > 1:
        rows.append({"case": "all"} | {key: sum(row[key] for row in rows) for key in rows[0] if key != "case"})
    return [{**row, "harness / network %": _share(row)} for row in rows]


def _measured(run: Run, clocked: _Clocked, files: CaseFiles) -> Row:
    clocked.seconds, clocked.clicks = {}, 0
    start = time.perf_counter()
    failed = run.do(clocked, [dataclasses.replace(files, read=lambda: clocked.timed("reading", files.read))])
    total = time.perf_counter() - start
    if failed:
        raise ValueError(f"cases must be usable, {files.name} is not: {failed[files.name]}")
    results = run.gather([files]).results
    network, clicks, reading = (clocked.seconds.get(name, 0.0) for name in ("network", "clicks", "reading"))
    return {
        "case": files.name,
        "structures": len({result.structure for result in results}),
        "clicks": clocked.clicks,
        "network s": network,
        "rest of clicks s": clicks - network,
        "reading s": reading,
        "harness s": total - clicks - reading,
    }


def _share(row: Row) -> float:
    return 100 * (row["harness s"] + row["reading s"]) / row["network s"] if row["network s"] else float("nan")


class _Clocked(Segmenter):
    """A segmenter that counts the seconds of the network and of clicks in its sessions, and the clicks."""

    def __init__(self, segmenter: Segmenter):
        super().__init__(segmenter.info, segmenter.device)
        self.seconds: dict[str, float] = {}
        self.clicks = 0

    def session(self, volume, expand: bool = True) -> Session:
        return _ClockedSession(self, volume, expand)

    def encode(self, hu_zyx, mirrored=False):
        return self.timed("network", super().encode, hu_zyx, mirrored)

    def decode(self, features, prompts):
        return self.timed("network", super().decode, features, prompts)

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        return self.timed("network", super().propose_batch, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx)

    def timed(self, name: str, run, *arguments):
        """What `run` returns; its seconds are added to those of `name`."""
        with self._clock(name):
            return run(*arguments)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        wait(self.device)
        start = time.perf_counter()
        yield
        wait(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class _ClockedSession(Session):
    def __init__(self, clocked: _Clocked, volume, expand: bool):
        super().__init__(clocked, volume, expand)
        self._clocked = clocked

    def click(self, ijk, positive: bool = True, seconds: float | None = None) -> None:
        self._clocked.clicks += 1
        self._clocked.timed("clicks", super().click, ijk, positive, seconds)
