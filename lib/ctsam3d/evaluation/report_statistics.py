"""The statistics that reports use, all through here.

A frame has the columns of results.csv. Runs are (case, structure, seed).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

_FIRST, _LAST = 1, 5  # clicks of the area
_RUN = ["case", "structure", "seed"]
_RESAMPLES = 2000


def noc(frame: pd.DataFrame, target: float) -> pd.DataFrame:
    """The number of clicks after which each run first had a DSC of at least `target`.

    Only numbers of clicks that were scored can be found. A run that never got there counts with its largest number.

    Returns:
        A row per run with case, structure, seed, clicks (int) and failed (bool).
    """
    runs = frame.groupby(_RUN, sort=False)["clicks"].max().to_frame("most")
    reached = frame[frame["dsc"] >= target].groupby(_RUN, sort=False)["clicks"].min()
    found = reached.reindex(runs.index)
    runs["clicks"], runs["failed"] = found.fillna(runs["most"]).astype(int), found.isna()
    return runs.drop(columns="most").reset_index()


def auc(frame: pd.DataFrame) -> pd.Series:
    """The area under DSC over clicks 1 to 5, over its width, so from 0 to 1; by structure, the mean over its runs.

    Trapezoids between the numbers of clicks that were scored. NaN where DSC after 1 or after 5 clicks is not there,
    since the area would be another one.
    """
    curves = frame.groupby(["structure", "clicks"], sort=False)["dsc"].mean().unstack("clicks")
    clicks = sorted({_FIRST, _LAST}.union(count for count in curves.columns if _FIRST < count < _LAST))
    areas = trapezoid(curves.reindex(columns=clicks).to_numpy(), clicks, axis=1) / (_LAST - _FIRST)
    return pd.Series(areas, index=curves.index, name="auc")


def interval(values_by_patient: np.ndarray | pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean by resampling patients (percentile bootstrap); NaN for fewer than two patients.

    The same values give the same interval.
    """
    values = np.asarray(values_by_patient, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
