"""What a report is of: how a run was made, and its results.csv read back and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from ctsam3d.evaluation import paper

_THEN = "first click random in the structure, the next"
USERS = {
    "deepest": f"{_THEN} at the deepest point (mm) of the error",
    "jittered": f"{_THEN} a few mm beside the deepest point of the error",
    "wrong-sign": f"{_THEN} at the deepest point (mm) of the error, some with the wrong sign",
    "random": f"{_THEN} anywhere in the error",
}
"""How the clicks of each simulated user are chosen, in words."""

_KEY = ["case", "structure", "seed", "clicks"]
_NEEDED = (*_KEY, "dsc", "nsd", "seconds", "patches")


@dataclass(frozen=True)
class Skipped:
    """A structure that was not evaluated: `voxels` of the model grid is too few, 0 where the case has none."""

    case: str
    structure: str
    voxels: int


@dataclass(frozen=True)
class RunInfo:
    """What was run, for the head of the report.

    Attributes:
        weights: the name or path that was asked for.
        version, sha256: of the weights that were used.
        trained_on: names of the data that the weights say they were trained on.
        expand: whether a click spread to other patches.
        command: the command line, "" where there was none.
        dataset: one of `paper.TITLES`; "" for data that the paper did not use.
        user: how the clicks were chosen; a key of `USERS`, or words.
        memory_mb: the most memory that the run took, of the GPU where it used one, else of a process; None where that
            is not known.
        patients: patient of each case, where that is not the case itself.
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
    memory_mb: float | None = None
    patients: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        paper.of_dataset(self.dataset)  # raises where there is no such data set

    @property
    def published(self) -> tuple[paper.Published, ...]:
        """The paper's figures that ours may stand beside: its NSD only where ours has its tolerance."""
        rows = paper.of_dataset(self.dataset)
        return rows if self.tolerance_mm == paper.TOLERANCE_MM else tuple(replace(row, nsd=None) for row in rows)


def read_results(path: str | os.PathLike) -> pd.DataFrame:
    """The results of a run.

    Args:
        path: its folder, or its results.csv.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no table of results, see `check_results`.
    """
    path = Path(path)
    path = path / "results.csv" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"results must be a folder with results.csv, or such a file, got {path}")
    try:
        frame = pd.read_csv(
            path, dtype={"case": str, "structure": str, "patient": str}, keep_default_na=False, na_values=["", "nan"]
        )
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"results {path} cannot be read as a table: {error}") from error
    return check_results(frame, str(path))


def check_results(
    frame: pd.DataFrame, source: str = "results", patients: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The frame, if it is one of results; with a column ``patient``, as it has it or as `patients` says.

    Args:
        patients: of cases that are not each a patient of their own.

    Raises:
        ValueError: a missing column, no row, two rows of one run and number of clicks, a score beyond 0 to 1.
    """
    missing = [column for column in _NEEDED if column not in frame]
    if missing:
        raise ValueError(f"{source} must have the columns {', '.join(_NEEDED)}, {', '.join(missing)} are not there")
    if frame.empty:
        raise ValueError(f"{source} must hold at least one row, got none")
    if (twice := frame.duplicated(_KEY)).any():
        row = frame.loc[twice, _KEY].iloc[0].tolist()
        raise ValueError(f"{source} must have one row per {', '.join(_KEY)}, got {row} twice")
    for score in ("dsc", "nsd"):
        low, high = frame[score].min(), frame[score].max()
        if low < 0 or high > 1:
            raise ValueError(f"{score} of {source} must be from 0 to 1, got {low} to {high}")
    if "patient" in frame:
        return frame.astype({"patient": str})
    return frame.assign(patient=[(patients or {}).get(case, case) for case in frame["case"]])
