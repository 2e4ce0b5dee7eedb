"""What a simulation of active learning shows: learning curves, the area under them, paired against the baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats
from scipy.integrate import trapezoid

from ctsam3d.data.files import atomic_path
from ctsam3d.evaluation.timing import markdown
from ctsam3d.labelapp.simulation import CLICK_SECONDS, SCAN_SECONDS, Played
from ctsam3d.labelapp.strategy import DEFAULT

COSTS = ("clicks", "seconds")


def area(cost: Sequence[float], dsc: Sequence[float], end: float) -> float:
    """The mean DSC of a learning curve from cost 0 to `end`, by trapezoids.

    A curve that ends earlier keeps its last DSC, one that ends later is cut off, by a straight line between two rounds.

    Args:
        cost: of the rounds, not decreasing, the first one 0.

    Raises:
        ValueError: `end` is not positive.
    """
    if not end > 0:
        raise ValueError(f"end must be positive, got {end}")
    cost, dsc = np.asarray(cost, float), np.asarray(dsc, float)
    inside = cost < end
    places = np.concatenate([cost[inside], [end]])
    # Of rounds that cost nothing, the last one holds from there on.
    last = np.append(np.diff(cost) > 0, True)
    heights = np.concatenate([dsc[inside], [np.interp(end, cost[last], dsc[last])]])
    return float(trapezoid(heights, places) / end)


def areas(frame: pd.DataFrame, cost: str) -> pd.DataFrame:
    """(seeds, strategies) areas under the curves over `cost`, up to the largest cost that every run has reached.

    Where a run cost nothing, up to the largest one of any run.
    """
    ends = frame.groupby(["strategy", "seed"])[cost].max()
    end = float(ends[ends > 0].min()) if (ends > 0).any() else 1.0
    runs = frame.groupby(["seed", "strategy"], sort=False)
    return runs.apply(lambda run: area(run[cost], run["dsc"], end), include_groups=False).unstack("strategy")


def compare(table: pd.DataFrame, baseline: str = DEFAULT) -> list[dict]:
    """Rows of each strategy: mean area, its difference to the baseline's by pairs of seeds, 95 % interval, and p of
    the paired t test; the last three only from two seeds on."""
    rows = []
    for name in table.columns:
        row = {"strategy": name, "area": table[name].mean()}
        if baseline in table and name != baseline:
            difference = (table[name] - table[baseline]).dropna()
            row["difference"] = difference.mean()
            if len(difference) > 1 and difference.std() > 0:
                found = stats.ttest_1samp(difference, 0.0)
                low, high = found.confidence_interval(0.95)
                row |= {"low": float(low), "high": float(high), "p": float(found.pvalue)}
        rows.append(row)
    return rows


def curves(frame: pd.DataFrame) -> Figure:
    """DSC against clicks and against seconds: mean over seeds, by round."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for ax, cost in zip(figure.subplots(1, 2, sharey=True), COSTS):
        for name, part in frame.groupby("strategy", sort=False):
            means = part.groupby("round")[[cost, "dsc"]].mean()
            ax.plot(means[cost], means["dsc"], marker="o", label=name, linewidth=2.5 if name == DEFAULT else 1.2)
        ax.set_xlabel(f"{cost} of the annotator")
    figure.axes[0].set_ylabel("DSC on the test cases")
    figure.axes[0].legend(fontsize=8)
    return figure


def write_report(out: Path, played: Sequence[Played], command: str = "") -> Path:
    """Writes ``results.csv``, ``curves.png`` and ``report.md`` into `out`.

    Raises:
        ValueError: no run is complete.
    """
    if not played:
        raise ValueError(f"out {out} must hold a complete run, it holds none")
    out, frame = Path(out), pd.DataFrame([dataclasses.asdict(row) for row in played])
    with atomic_path(out / "results.csv") as path:
        frame.to_csv(path, index=False)
    with atomic_path(out / "curves.png") as path:
        curves(frame).savefig(path, dpi=140)
    last = frame["round"].max()
    ends = frame[frame["round"] == last].groupby("strategy", sort=False)[["dsc", "clicks", "seconds"]].mean()
    start = frame[frame["round"] == 0]["dsc"].mean()
    lines = ["# Active learning, simulated", ""]
    lines += [f"`{command}`", ""] if command else []
    lines += [f"{frame['seed'].nunique()} seeds, {last} rounds; DSC {start:.4f} before the first label. Seconds: "
              f"{SCAN_SECONDS:g} for a scan and {CLICK_SECONDS:g} for a click.", ""]  # fmt: skip
    rows = [{"strategy": name, **values} for name, values in ends.round(4).to_dict("index").items()]
    lines += ["After the last round, mean over seeds:", "", markdown(rows), ""]
    for cost in COSTS:
        lines += [f"Area under the curve over {cost}, and its difference to `{DEFAULT}` paired by seed (95 % interval, "
                  "paired t test):", "", markdown(_filled(compare(areas(frame, cost)))), ""]  # fmt: skip
    with atomic_path(out / "report.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / "report.md"


def _filled(rows: list[dict]) -> list[dict]:
    names = ("strategy", "area", "difference", "low", "high", "p")
    return [{name: _shown(row.get(name)) for name in names} for row in rows]


def _shown(value) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.4f}"
