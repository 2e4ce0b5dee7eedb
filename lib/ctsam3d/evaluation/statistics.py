"""What many runs of simulated users say together: clicks needed, area under the curve, costs, confidence intervals.

All functions take a frame with the columns of results.csv (see `Result`) and are pure. A run is one case, structure
and seed. A column ``patient`` says whose a case is; without it each case is a patient of its own. Scores of empty masks
follow `ctsam3d.metrics`: a mask that stays empty scores 0, and a structure that a case does not have is not clicked,
so that it has no rows and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

RUN = ["case", "structure", "seed"]


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval.

    Attributes:
        mean: of the frame itself.
        low, high: percentiles over the bootstrap's draws; NaN with fewer than two patients.
        patients: that were drawn from.
    """

    mean: float
    low: float
    high: float
    patients: int


def noc(frame: pd.DataFrame, target: float, score: str = "dsc") -> pd.DataFrame:
    """NoC@target: the clicks that each run needs until its score is at least `target`, say 0.85.

    Only the numbers of clicks after which the masks were scored are seen: with 1, 3, 5, 7, 9 a run that needs four
    clicks counts as five. A run that does not get there is a failure and counts with the largest number of clicks,
    as is usual in interactive segmentation.

    Args:
        target: a share, 0 to 1.
        score: column that is compared.

    Returns:
        A row a run, in the order of the frame: case, structure, seed, clicks (int), failed (bool).

    Raises:
        ValueError: a target that is no share.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"target must be a share from 0 to 1, got {target}")
    table = _by_clicks(frame, score)
    there = table.to_numpy() >= target
    counts = np.asarray(table.columns)
    needed = np.where(there.any(axis=1), counts[there.argmax(axis=1)], _largest(table))
    return _runs_of(frame).assign(clicks=needed.astype(int), failed=~there.any(axis=1))


def auc(frame: pd.DataFrame, score: str = "dsc", first: int = 1, last: int = 5) -> pd.DataFrame:
    """The area under the score over the clicks `first` to `last`, by trapezoids, divided by `last` - `first`.

    A run that always scores s has the area s.

    Returns:
        A row a run, in the order of the frame: case, structure, seed, auc; NaN where the run was not scored after
        `first` and after `last` clicks, since the area would be another one.

    Raises:
        ValueError: `first` is not smaller than `last`.
    """
    if not first < last:
        raise ValueError(f"first must be smaller than last, got {first} and {last}")
    table = _by_clicks(frame, score)
    counts = sorted({first, last}.union(count for count in table.columns if first < count < last))
    area = trapezoid(table.reindex(columns=counts).to_numpy(), counts, axis=1) / (last - first)
    return _runs_of(frame).assign(auc=area)


def patient_means(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """The mean over seeds, then over a patient's cases: a row a patient, a column a structure, NaN where there is none.

    Args:
        frame: rows of one number of clicks, or a table of `noc` or `auc`.
    """
    patient = frame["patient" if "patient" in frame else "case"].rename("patient")
    cases = frame.groupby([patient, frame["case"].rename("scan"), frame["structure"]], sort=False)[score].mean()
    return cases.groupby(level=["patient", "structure"], sort=False).mean().unstack("structure")


def interval(
    frame: pd.DataFrame, score: str = "dsc", level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean score with its confidence interval, from a bootstrap over patients (percentiles).

    The mean is that over structures of the means over patients (`patient_means`), so that neither a patient with many
    runs nor an organ that many patients have counts more. Patients are drawn with replacement, all their structures
    together, since these depend on each other.

    Args:
        frame: rows of one number of clicks, or a table of `noc` or `auc`.
        score: column; "clicks" of a table of `noc`.
        level: share of the draws between the bounds.
        seed: of the draws; the same frame gives the same interval.

    Raises:
        ValueError: no rows, rows of several numbers of clicks, or a level or number of draws that cannot be used.
    """
    counts = set(frame["clicks"]) if "clicks" in frame and score != "clicks" else {0}
    if frame.empty or len(counts) > 1:
        raise ValueError(f"frame must hold rows of one number of clicks, got {len(frame)} rows of {sorted(counts)}")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie between 0 and 1 and draws be at least 1, got {level} and {draws}")
    table = patient_means(frame, score).sort_index().to_numpy()
    mean, count = float(_mean_over_structures(np.ones((1, len(table))), table)[0]), len(table)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"), count)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    low, high = np.quantile(_mean_over_structures(times, table), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), count)


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Seconds of a click, and patches of the mask after it: 50th and 95th percentile.

    Only clicks that were made and after which the mask was scored are counted.

    Returns:
        Rows "first click" and "later clicks", those that there are; columns count, seconds_p50, seconds_p95,
        patches_p50, patches_p95.
    """
    made = frame[frame["seconds"] > 0]
    parts = {"first click": made[made["clicks"] == 1], "later clicks": made[made["clicks"] > 1]}
    rows = {}
    for name, part in parts.items():
        if len(part):
            values = {f"{c}_p{p}": part[c].quantile(p / 100) for c in ("seconds", "patches") for p in (50, 95)}
            rows[name] = {"count": len(part), **values}
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_clicks(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """A row a run in the order of the frame, a column a number of clicks, increasing; NaN where not scored."""
    table = frame.set_index([*RUN, "clicks"])[score].unstack("clicks")
    return table.reindex(pd.MultiIndex.from_frame(_runs_of(frame)[RUN]))


def _runs_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs in the order of the frame, with their patients where the frame has them."""
    columns = [*RUN, "patient"] if "patient" in frame else RUN
    return frame[columns].drop_duplicates(RUN).reset_index(drop=True)


def _largest(table: pd.DataFrame) -> np.ndarray:
    """The largest number of clicks that each row has a score of."""
    scored = table.notna().to_numpy()
    return np.asarray(table.columns)[scored.shape[1] - 1 - scored[:, ::-1].argmax(axis=1)]


def _mean_over_structures(times: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(draws,) means over structures, each over the patients that have it, as often as they were drawn.

    Args:
        times: (draws, patients), how often each patient was drawn.
        table: (patients, structures), NaN where a patient has no such structure.
    """
    there = np.isfinite(table)
    sums, counts = times @ np.where(there, table, 0.0), times @ there
    drawn = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums, dtype=float), where=drawn)
    structures = drawn.sum(axis=1)
    nothing = np.full(len(times), np.nan)
    return np.divide(means.sum(axis=1), structures, out=nothing, where=structures > 0)
