"""How long a click takes, and a step of training, by stage; medians of one run."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.io import Case
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.model.build import build
from ctsam3d.session import Segmenter
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Run, Source
from ctsam3d.training.step import Rounds, train_step

STAGES = ("encode", "decode", "other", "total")
SHARES = ("data", "clicks", "S", "P", "optimiser")


def benchmark_clicks(presets: list[str], repeats: int, device: str, feedback: int = 0, seed: int = 0) -> list[dict]:
    """Time a first click (a new patch) and a second one (in that patch, with a previous mask) on a phantom.

    The weights are random: they take as long as trained ones. One unmeasured session warms up.

    Args:
        feedback: passes in which S sees its own answer once more, as `Checkpoint.feedback`.

    Returns:
        A row a preset and click: preset, click, and median seconds of encode, decode, everything else, and in all.
    """
    phantom = make_phantom(seed, region="abdomen")
    liver = np.argwhere(phantom.labels_ijk == VALUE_OF["liver"])
    first = tuple(int(v) for v in liver[np.argmin(np.abs(liver - liver.mean(axis=0)).sum(axis=1))])
    second = (first[0] + 10, first[1], first[2])
    rows = []
    for preset in presets:
        torch.manual_seed(seed)
        segmenter = Segmenter(Checkpoint(build(preset), (-500.0, 800.0), feedback=feedback), device)
        seconds: dict[str, list[dict]] = {"first": [], "second": []}
        for repeat in range(repeats + 1):
            session = segmenter.session(phantom.volume)
            for name, click in (("first", first), ("second", second)):
                measured = _timed(session, click)
                if repeat:
                    seconds[name].append(measured)
        for name, measured in seconds.items():
            medians = {stage: statistics.median(m[stage] for m in measured) for stage in STAGES}
            rows.append({"preset": preset, "click": name, **medians})
    return rows


def _timed(session, click_ijk) -> dict[str, float]:
    start = time.perf_counter()
    session.click(click_ijk)
    total = time.perf_counter() - start
    encode, decode = session.seconds.get("encode", 0.0), session.seconds["decode"]
    return {"encode": encode, "decode": decode, "other": total - encode - decode, "total": total}


def benchmark_training(presets: list[str], repeats: int, device: str, batch_size: int = 4, seed: int = 0) -> list[dict]:
    """Time steps of Algorithm 1 on a phantom, with fresh weights and all augmentation; one unmeasured step warms up.

    Pairs are cut in the training process itself, so that their whole cost shows. P's forward and backward pass are
    timed alone, S's are the rest of the network's.

    Returns:
        A row a preset: preset, median seconds of a step and of one round of one pair, the share of data, clicks, S, P
        and optimiser in the sum of the steps, and the peak memory in GB: the GPU's, or on a CPU the process's so far.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        volume = VolumeCache(Path(folder) / "volumes").get(_phantom_case(seed))
        for preset in presets:
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            config = TrainingConfig(preset=preset, batch_size=batch_size, epochs=1, samples_per_volume=1000, seed=seed)
            run = Run([Source([volume])], config, Path(folder) / preset, device=device)
            steps = [_timed_step(run, run.loader(workers=0), repeat) for repeat in range(repeats + 1)][1:]
            totals = [sum(seconds[name] for name in SHARES) for seconds in steps]
            row = {"preset": preset, "step": statistics.median(totals)}
            row["pair-round"] = row["step"] / (config.rounds * batch_size)
            row |= {name: sum(seconds[name] for seconds in steps) / sum(totals) for name in SHARES}
            rows.append({**row, "memory": _peak_gb(device)})
    return rows


def _phantom_case(seed: int) -> Case:
    phantom = make_phantom(seed, region="abdomen")
    masks = {NAMES[v - 1]: (lambda v=v: phantom.labels_ijk == v) for v in np.unique(phantom.labels_ijk) if v}
    return Case(f"phantom_{seed}", phantom.volume, masks)


def _timed_step(run: Run, loader, step: int) -> dict[str, float]:
    """Seconds of each of `SHARES` in one step of a run."""
    seconds = dict.fromkeys((*SHARES, "network"), 0.0)

    @contextmanager
    def stage(name: str):
        _wait(run.device)
        start = time.perf_counter()
        yield
        _wait(run.device)
        seconds[name] += time.perf_counter() - start

    with stage("data"):
        batches = loader.dataset[step]
    train_step(run.pair_network, run.optimiser, batches, run.config, run.device, stage)
    with stage("P"):
        for batch in batches:
            own = Rounds(batch, run.config, run.device)
            heatmaps = run.pair_network.propose(own.image, own.target.float(), own.source, own.neighbour, own.offset)
            heatmaps.square().mean().backward()
    seconds["P"] *= run.config.rounds
    seconds["S"] = seconds.pop("network") - seconds["P"]
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_gb(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KB
