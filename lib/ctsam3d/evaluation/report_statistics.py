"""The statistics of runs in the form that the tables of a report take."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ctsam3d.evaluation import statistics
from ctsam3d.evaluation.statistics import noc

__all__ = ["auc", "interval", "noc"]


def auc(frame: pd.DataFrame) -> pd.Series:
    """`statistics.auc` by structure, the mean over its runs."""
    return statistics.auc(frame).groupby("structure", sort=False)["auc"].mean()


def interval(values_by_patient: np.ndarray | pd.Series) -> tuple[float, float]:
    """`statistics.interval` of one value a patient, NaN left out; NaN for fewer than two patients."""
    values = np.asarray(values_by_patient, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    patients = [str(number) for number in range(len(values))]
    found = statistics.interval(pd.DataFrame({"case": patients, "structure": "all", "score": values}), "score")
    return found.low, found.high
