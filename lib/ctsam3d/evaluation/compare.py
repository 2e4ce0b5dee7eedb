"""Two runs side by side: what changed, whether more than by chance, and where; from their results.csv alone.

Runs are paired by case, structure, seed and number of clicks; what only one of them has is left out and counted. Seeds
are averaged first, then structures, then cases, so that a patient is one value: structures of one patient are no
independent observations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from ctsam3d.data.datasets import read_patients
from ctsam3d.evaluation.report import write_document
from ctsam3d.evaluation.report_document import Block, Bullets, Document, Picture, Section, Table
from ctsam3d.evaluation.report_groups import GROUPS, grouped
from ctsam3d.evaluation.report_run import read_results
from ctsam3d.evaluation.report_tables import clicks_text, headline_clicks, number
from ctsam3d.evaluation.statistics import interval

SCORES = {"dsc": "DSC", "nsd": "NSD", "nsd_2mm": "NSD at 2 mm"}
ALPHA = 0.05
MIN_PAIRS = 6  # fewer cannot bring the signed-rank test below 0.05
_KEY = ["case", "structure", "seed", "clicks"]
_DIGITS = 9  # beyond them a difference is rounding
_ABOUT = ("version", "sha256", "dataset", "user", "tolerance_mm", "expand", "min_voxels", "device")


@dataclass(frozen=True)
class Difference:
    """One comparison of B with A over pairs of values.

    Attributes:
        pairs: how many.
        a, b: means.
        low, high: 95 % interval of the mean of B - A, by resampling the pairs; NaN for fewer than two.
        p: of the two-sided Wilcoxon signed-rank test; 1 where no pair differs.
        adjusted: p after Holm's correction over the table that this stands in.
    """

    name: str
    pairs: int
    a: float
    b: float
    low: float
    high: float
    p: float
    adjusted: float = float("nan")

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a


def pair(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The rows that both runs have, with the columns of A ending in `_a` and those of B in `_b`.

    Raises:
        ValueError: no row in common.
    """
    both = a.merge(b, on=_KEY, suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError(f"the two runs must share rows of {', '.join(_KEY)}, got none among {len(a)} and {len(b)}")
    return both


def compare_pairs(name: str, a: np.ndarray | pd.Series, b: np.ndarray | pd.Series) -> Difference:
    """One comparison; pairs with a NaN are left out.

    Args:
        a, b: (N,), values of the same patients in the same order.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if not len(a):
        return Difference(name, 0, *(float("nan"),) * 5)
    change = np.round(b - a, _DIGITS)
    p = float(wilcoxon(change).pvalue) if change.any() else 1.0
    return Difference(name, len(a), float(a.mean()), float(b.mean()), *_bounds(change), p)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of one value a patient."""
    found = interval(pd.DataFrame({"case": np.arange(len(values)), "structure": "", "value": values}), "value")
    return found.low, found.high


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for their number (Scandinavian Journal of Statistics 1979).

    NaN stays NaN and does not count.
    """
    out, running = [float("nan")] * len(p_values), 0.0
    order = sorted((p, index) for index, p in enumerate(p_values) if p == p)
    for rank, (p, index) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        out[index] = running
    return out


def by_score(both: pd.DataFrame, patients: Mapping[str, str] | None = None) -> list[Difference]:
    """Each score after each number of clicks, over patients; corrected together.

    Args:
        both: see `pair`.
        patients: patient of each case, where it is not the case itself.
    """
    found = []
    for score in _scores(both):
        for clicks in sorted(both["clicks"].unique()):
            values = _by_patient(both[both["clicks"] == clicks], score, patients)
            found.append(compare_pairs(f"{SCORES[score]} after {clicks_text(clicks)}", values["a"], values["b"]))
    return _corrected(found)


def by_structure(
    both: pd.DataFrame, score: str, clicks: int, patients: Mapping[str, str] | None = None
) -> list[Difference]:
    """One score after a number of clicks, of each structure over patients; corrected together."""
    rows = both[both["clicks"] == clicks]
    found = []
    for structure in (name for names in grouped(rows["structure"], GROUPS).values() for name in names):
        values = _by_patient(rows[rows["structure"] == structure], score, patients)
        found.append(compare_pairs(structure, values["a"], values["b"]))
    return _corrected(found)


def compare(
    a: str | os.PathLike,
    b: str | os.PathLike,
    out: str | os.PathLike,
    patients: str | os.PathLike | None = None,
    command: str = "",
) -> Path:
    """Write comparison.md (returned), comparison.html and figures into `out`.

    Args:
        a, b: folders of runs, or their results.csv.
        patients: a CSV file with the columns case and patient; the patients of cases that it leaves out are as A has
            them.
        command: for the report.

    Raises:
        FileNotFoundError, ValueError: a file that is not there or cannot be used, or no row in common.
    """
    frame_a, frame_b = read_results(a), read_results(b)
    both, patient_of = pair(frame_a, frame_b), dict(zip(frame_a["case"], frame_a["patient"]))
    patient_of |= read_patients(patients) if patients is not None else {}
    clicks = headline_clicks(both)
    structures = {score: by_structure(both, score, clicks, patient_of) for score in ("dsc", "nsd")}
    unit = "cases" if all(case == patient for case, patient in patient_of.items()) else "patients"
    sections = (
        Section("What is compared", (Bullets(_head(a, b, frame_a, frame_b, both, command)),)),
        Section("Over all structures", (_table(by_score(both, patient_of), unit), *_notes(unit))),
        Section(
            "By structure",
            (
                Picture(
                    "differences.png", f"Difference of DSC by structure after {clicks_text(clicks)}, 95 % intervals"
                ),
                *(
                    replace(_table(found, unit), caption=f"{SCORES[score]} after {clicks_text(clicks)}.")
                    for score, found in structures.items()
                ),
            ),
        ),
        Section("Every run", (Picture("pairs.png", f"DSC of each case and structure after {clicks_text(clicks)}"),)),
        Section("Time", (_times(both),)),
    )
    figures = {"differences.png": _forest(structures["dsc"]), "pairs.png": _scatter(both[both["clicks"] == clicks])}
    return write_document(Path(out), "comparison", Document("Comparison of two runs", sections), figures)


def _scores(both: pd.DataFrame) -> list[str]:
    return [score for score in SCORES if f"{score}_a" in both and f"{score}_b" in both]


def _by_patient(rows: pd.DataFrame, score: str, patients: Mapping[str, str] | None) -> pd.DataFrame:
    """Columns a and b, a row per patient."""
    values = rows.rename(columns={f"{score}_a": "a", f"{score}_b": "b"})[["case", "structure", "a", "b"]]
    values = values.dropna(subset=["a", "b"])
    cases = values.groupby(["case", "structure"])[["a", "b"]].mean().groupby(level="case").mean()
    return cases.groupby(lambda case: (patients or {}).get(case, case)).mean()


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]))]


def _head(a, b, frame_a: pd.DataFrame, frame_b: pd.DataFrame, both: pd.DataFrame, command: str) -> tuple[str, ...]:
    about_a, about_b = _about(a), _about(b)
    lines = [f"A: `{a}`, {len(frame_a)} rows", f"B: `{b}`, {len(frame_b)} rows"]
    lines.append(
        f"in both: {len(both)} rows, of {both['case'].nunique()} cases and {both['structure'].nunique()} structures; "
        f"left out: {len(frame_a) - len(both)} of A, {len(frame_b) - len(both)} of B"
    )
    lines += [
        f"{key}: A `{about_a[key]}`, B `{about_b[key]}`"
        for key in _ABOUT
        if key in about_a and key in about_b and about_a[key] != about_b[key]
    ]
    if "tolerance_mm" in about_a and about_a["tolerance_mm"] != about_b.get("tolerance_mm", about_a["tolerance_mm"]):
        lines.append("**The two NSD have different tolerances and cannot be compared.**")
    lines += _seen(both, about_a, about_b)
    return (*lines, f"command: `{command}`") if command else tuple(lines)


def _seen(both: pd.DataFrame, about_a: Mapping, about_b: Mapping) -> list[str]:
    """What each run's weights were trained on among the cases of both; nothing where that is none of them."""
    cases = list(dict.fromkeys(both["case"]))
    seen = [[case for case in cases if case in about.get("trained_on", ())] for about in (about_a, about_b)]
    if not any(seen):
        return []
    lists = (f"{name} on {len(own)}{' (' + ', '.join(own) + ')' if own else ''}" for name, own in zip("AB", seen))
    return [f"**Of the {len(cases)} cases some were trained on**, which flatters those weights: {', '.join(lists)}"]


def _about(path: str | os.PathLike) -> dict:
    """What a run's report.json says of it; nothing where there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError):
        return {}


def _table(found: Sequence[Difference], unit: str) -> Table:
    rows = []
    for one in found:
        sure = one.adjusted < ALPHA
        change = f"{one.difference:+.3f}" if one.pairs else "–"
        span = f"{one.low:+.3f} to {one.high:+.3f}" if one.low == one.low else "–"
        cells = (number(one.a), number(one.b), f"**{change}**" if sure else change, span)
        rows.append((one.name, str(one.pairs), *cells, _p_text(one.p), _p_text(one.adjusted)))
    header = ("", unit, "A", "B", "B − A", "95 % interval", "p", "p, Holm")
    return Table(header, tuple(rows))


def _p_text(p: float) -> str:
    return "–" if p != p else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _notes(unit: str) -> tuple[Block, ...]:
    return (
        f"A value is the mean of one of the {unit} over its structures and seeds. p: two-sided Wilcoxon signed-rank "
        f"test; Holm: corrected for the rows of its table; **bold**: below {ALPHA:g} after that. Intervals of the mean "
        f"difference: paired bootstrap over {unit}.",
        f"Fewer than {MIN_PAIRS} pairs that differ cannot bring the test below {ALPHA:g}, whatever the difference.",
    )


def _times(both: pd.DataFrame) -> Table:
    made = both[(both["seconds_a"] > 0) & (both["seconds_b"] > 0)]
    parts = {"first click": made[made["clicks"] == 1], "later clicks": made[made["clicks"] > 1]}
    rows = []
    for name, part in parts.items():
        if len(part):
            a, b = part["seconds_a"].median(), part["seconds_b"].median()
            rows.append((name, str(len(part)), f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"))
    return Table(("median seconds", "clicks", "A", "B", "B / A"), tuple(rows))


def _forest(found: Sequence[Difference]) -> Figure:
    """B - A of each structure as a dot with its interval, filled where it is more than chance."""
    figure = Figure(figsize=(8.0, 1.2 + 0.2 * len(found)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="0.4", linewidth=1)
    for place, one in enumerate(found):
        colour = "#0064b4" if one.difference >= 0 else "#d9480f"
        ax.hlines(place, one.low, one.high, color=colour, linewidth=1.6)
        fill = colour if one.adjusted < ALPHA else "white"
        ax.plot(one.difference, place, "o", markersize=5, markeredgecolor=colour, markerfacecolor=fill)
    ax.set_yticks(range(len(found)), [one.name for one in found], fontsize=8)
    ax.set(ylim=(len(found) - 0.5, -0.5), xlabel="B − A, DSC (filled: p < 0.05 after Holm's correction)")
    ax.grid(axis="x", alpha=0.3)
    return figure


def _scatter(rows: pd.DataFrame) -> Figure:
    """B against A, a dot for each case and structure; above the line B is better."""
    means = rows.groupby(["case", "structure"])[["dsc_a", "dsc_b"]].mean()
    figure = Figure(figsize=(6.0, 6.0), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    ax.plot(means["dsc_a"], means["dsc_b"], ".", color="#0064b4", alpha=0.6)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="DSC of A", ylabel="DSC of B", aspect="equal")
    ax.grid(alpha=0.3)
    return figure
