"""Results on disk: results.csv, figures, and report.md with what was run and what came out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ctsam3d.data.files import atomic_path
from ctsam3d.evaluation.simulate import Result

COLUMNS = tuple(field.name for field in dataclasses.fields(Result))
SCORES = {"dsc": "DSC", "nsd": "NSD"}
_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A structure that was not evaluated: `voxels` of the model grid is too few, 0 where the case has none."""

    case: str
    structure: str
    voxels: int


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What was run, for the head of the report.

    Attributes:
        weights: the name or path that was asked for.
        version, sha256: of the weights that were used.
        trained_on: names of the data that the weights say they were trained on.
        expand: whether a click spread to other patches.
        command: the command line, "" where there was none.
        dataset: kind of the data set, "" for a folder of cases.
        user: who clicked, see `user_click`.
    """

    weights: str
    version: str
    sha256: str
    trained_on: tuple[str, ...]
    cases: tuple[str, ...]
    seeds: tuple[int, ...]
    min_voxels: int
    spacing_mm: float
    tolerance_mm: float
    device: str
    command: str = ""
    expand: bool = True
    dataset: str = ""
    user: str = "deepest"


def write_report(
    folder: str | os.PathLike, results: Sequence[Result], skipped: Sequence[Skipped], run: RunInfo
) -> Path:
    """Write results.csv, dsc.png, nsd.png and report.md into `folder`, each whole or not at all; the last is returned.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError(f"results must hold at least one structure, got none; {len(skipped)} were skipped")
    folder, frame = Path(folder), pd.DataFrame([dataclasses.asdict(r) for r in results], columns=list(COLUMNS))
    with atomic_path(folder / "results.csv") as path:
        frame.to_csv(path, index=False, float_format="%.6f")
    for score, name in SCORES.items():
        with atomic_path(folder / f"{score}.png") as path:
            _curves(frame, score, name).savefig(path, dpi=100)
    with atomic_path(folder / "report.md") as path:
        path.write_text(_markdown(frame, skipped, run), encoding="utf-8")
    return folder / "report.md"


def means(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean score over cases and seeds, a row per structure and a column per number of clicks; NaN where none."""
    return frame.groupby(["structure", "clicks"], sort=False)[score].mean().unstack("clicks").sort_index(axis=1)


def median_seconds(frame: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Median seconds of first and of later clicks, each with the number of clicks that it is of."""
    made = frame[frame["seconds"] > 0]
    parts = {"first click": made[made["clicks"] == 1], "later clicks": made[made["clicks"] > 1]}
    return {name: (float(part["seconds"].median()), len(part)) for name, part in parts.items() if len(part)}


def _markdown(frame: pd.DataFrame, skipped: Sequence[Skipped], run: RunInfo) -> str:
    sections = ["# Evaluation with simulated clicks", _head(frame, run)]
    for score, name in SCORES.items():
        sections += [f"## {name}", _score_table(means(frame, score)), f"![{name} over clicks]({score}.png)"]
    times = [[name, f"{seconds:.2f}", n] for name, (seconds, n) in median_seconds(frame).items()]
    sections += ["## Time", "Only clicks after which the mask was scored are counted."]
    sections.append(_table(["", "median seconds", "clicks"], times))
    if skipped:
        sections += ["## Skipped", f"Fewer than {run.min_voxels} voxels of {run.spacing_mm:g} mm."]
        sections.append(_table(["case", "structure", "voxels"], [[s.case, s.structure, s.voxels] for s in skipped]))
    return "\n\n".join(sections) + "\n"


def _head(frame: pd.DataFrame, run: RunInfo) -> str:
    runs = len(frame[["case", "structure", "seed"]].drop_duplicates())
    cases = [f"{name} (trained on)" if name in run.trained_on else name for name in run.cases]
    lines = [
        f"- weights: `{run.weights}`, version `{run.version}`, SHA-256 `{run.sha256}`",
        f"- trained on: {', '.join(run.trained_on) or 'not said in the weights'}",
        f"- cases: {', '.join(cases)}",
        f"- seeds: {', '.join(map(str, run.seeds))}",
        f"- structures: {frame['structure'].nunique()}; runs (case, structure, seed): {runs}",
        "- user: first click random in the structure, the next at the deepest point (mm) of the error",
        f"- scores: on the scan's own grid; NSD at a tolerance of {run.tolerance_mm:g} mm",
        f"- device: {run.device}",
        f"- a click {'spreads from patch to patch' if run.expand else 'segments its own patch alone'}",
    ]
    if run.command:
        lines.append(f"- command: `{run.command}`")
    return "\n".join(lines)


def _score_table(table: pd.DataFrame) -> str:
    rows = [[name, *(f"{v:.{_DIGITS}f}" for v in table.loc[name])] for name in table.index]
    rows.append(["**mean over structures**", *(f"**{v:.{_DIGITS}f}**" for v in table.mean())])
    return _table(["structure", *(f"{n} click{'s' * (n > 1)}" for n in table.columns)], rows)


def _table(header: Sequence, rows: Sequence[Sequence]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _curves(frame: pd.DataFrame, score: str, name: str) -> Figure:
    """A small plot per structure: each run in grey, the mean in colour."""
    table, counts = means(frame, score), sorted(frame["clicks"].unique())
    columns = min(5, len(table))
    rows = -(-len(table) // columns)
    figure = Figure(figsize=(max(4.0, 2.6 * columns), 0.6 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[len(table) :]:
        ax.set_axis_off()
    for ax, structure in zip(axes, table.index):
        for _, run in frame[frame["structure"] == structure].groupby(["case", "seed"]):
            ax.plot(run["clicks"], run[score], color="0.75", linewidth=0.8)
        ax.plot(table.columns, table.loc[structure], color="#0064b4", marker="o", markersize=4, linewidth=2)
        ax.set_title(structure, fontsize=9)
        ax.set(ylim=(-0.02, 1.02), xticks=counts)
        ax.grid(alpha=0.3)
    figure.supxlabel("clicks", fontsize=10)
    figure.supylabel(name, fontsize=10)
    return figure
