"""What all benchmarks share: runs in turn, medians, tables, and one JSON file that says how they came about.

A table is a list of rows, a row a dict from column to value. A column's name ends with its unit.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import monai
import numpy as np
import torch

from ctsam3d.data.files import atomic_path

Result = TypeVar("Result")
Row = dict[str, str | int | float | None]
_DIGITS = {"MB": 0, "%": 2, "x": 1, "ms": 1}  # behind the point, by unit; others 3


class Runs(NamedTuple):
    """What the runs of one name returned, and the most GPU memory that one of them took, in MB; 0 on a CPU."""

    results: list
    vram_mb: float


def in_turn(runs: Mapping[str, Callable[[], Result]], repeats: int, device: torch.device) -> dict[str, Runs]:
    """Each run `repeats` times, one after the other, so that a slow spell of the machine meets them all.

    One round before those warms up and does not count.
    """
    results: dict[str, list] = {name: [] for name in runs}
    vram_mb = dict.fromkeys(runs, 0.0)
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            result = run()
            wait(device)
            if repeat:
                results[name].append(result)
                vram_mb[name] = max(vram_mb[name], vram_peak_mb(device))
    return {name: Runs(results[name], vram_mb[name]) for name in runs}


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def vram_peak_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0


def peak_memory_mb(device: torch.device) -> float:
    """The most memory (MB) that was in use so far: of the GPU where it is one, else of the whole process."""
    if device.type == "cuda":
        return vram_peak_mb(device)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def median_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each column that all rows have."""
    columns = [column for column in rows[0] if all(column in row for row in rows)]
    return {column: statistics.median(row[column] for row in rows) for column in columns}


def percentiles_ms(seconds: Sequence[float]) -> Row:
    """The number of times, and their 50th, 95th and 99th percentile and maximum in milliseconds."""
    values = np.percentile(seconds, (50, 95, 99, 100)) * 1000 if len(seconds) else [float("nan")] * 4
    return {"count": len(seconds), **dict(zip(("p50 ms", "p95 ms", "p99 ms", "max ms"), map(float, values)))}


def markdown(rows: Sequence[Row]) -> str:
    """A table whose columns are those of all rows, in the order in which they first come; empty without rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(column, row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: str, value) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if column.endswith("difference"):
        return f"{value:.1e}"
    return f"{value:.{_DIGITS.get(column.rpartition(' ')[2], 3)}f}"


def write_results(path: str | os.PathLike, tables: Mapping[str, Sequence[Row]], command: str, about: Mapping) -> None:
    """Tables, the command that made them, `about` (device, weights, …), versions and threads as JSON; atomically."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__}
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}
    values = {"command": command, **about, **machine, "figures": "medians of one run", "tables": tables}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
