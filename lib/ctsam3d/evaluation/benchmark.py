"""How long a click takes, by stage; medians of one run."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.model.build import build
from ctsam3d.session import Segmenter

STAGES = ("encode", "decode", "other", "total")


def benchmark_clicks(presets: list[str], repeats: int, device: str, seed: int = 0) -> list[dict]:
    """Time a first click (a new patch) and a second one (in that patch, with a previous mask) on a phantom.

    The weights are random: they take as long as trained ones. One unmeasured session warms up.

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
        segmenter = Segmenter(Checkpoint(build(preset), (-500.0, 800.0)), device)
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
