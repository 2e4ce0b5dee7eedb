"""A simulated user on the session that serves: clicks where the mask is worst, and what each click brought."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctsam3d.clicks import first_click, next_click
from ctsam3d.metrics import dice, normalised_surface_dice
from ctsam3d.session import Session
from ctsam3d.volume import Box

CLICK_COUNTS = (1, 3, 5, 7, 9)  # paper, section 4.1
TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Result:
    """One structure of one case after some clicks; the fields are the columns of results.csv.

    Attributes:
        clicks: how many the user was allowed so far; fewer were made where the mask was already right.
        dsc, nsd: on the scan's own grid.
        seconds: time of the last of these clicks alone; 0 where none was made.
        patches: that make up the mask.
    """

    case: str
    structure: str
    seed: int
    clicks: int
    dsc: float
    nsd: float
    seconds: float
    patches: int


def check_click_counts(clicks: Sequence[int]) -> tuple[int, ...]:
    """The numbers of clicks in increasing order, each once.

    Raises:
        ValueError: none, or one below 1.
    """
    counts = tuple(sorted(set(clicks)))
    if not counts or counts[0] < 1:
        raise ValueError(f"clicks must be whole numbers from 1 up, got {list(clicks)}")
    return counts


def user_rng(seed: int, case: str, structure: str) -> np.random.Generator:
    """The user's random numbers: the same on every machine, others for each case, structure and seed."""
    return np.random.default_rng([seed, zlib.crc32(f"{case}/{structure}".encode())])


def simulate(
    session: Session,
    target_ijk: np.ndarray,
    case: str,
    structure: str,
    seed: int,
    clicks: Sequence[int] = CLICK_COUNTS,
    tolerance_mm: float = TOLERANCE_MM,
) -> list[Result]:
    """Click one structure in a fresh session and score it after each of the numbers of clicks (paper, section 4.1).

    The first click is a random voxel of the structure, each further one the deepest point, in mm, of the missed or
    wrong foreground on the scan's own grid. Where mask and target agree, or the session refuses the click, the user
    stops, and what there is counts for the larger numbers of clicks too.

    Args:
        session: without clicks; afterwards it holds those of the user.
        target_ijk: (I, J, K), the true mask on the scan's grid.
        seed: non-negative; with `case` and `structure` it decides the first click.
        clicks: the numbers of clicks after which to score.
        tolerance_mm: of NSD.

    Raises:
        ValueError: an empty target, another shape than the scan's, or a number of clicks below 1.
    """
    counts, target_ijk = check_click_counts(clicks), np.asarray(target_ijk, dtype=bool)
    if target_ijk.shape != session.volume.shape_ijk:
        raise ValueError(f"target_ijk must have the scan's shape {session.volume.shape_ijk}, got {target_ijk.shape}")
    target_box = bounding_box(target_ijk)
    start = first_click(target_ijk[target_box.slices()], user_rng(seed, case, structure))
    click = (_shifted(start, target_box), True)
    error, results, scores = _Error(session, target_ijk, target_box), [], None
    for number in range(1, counts[-1] + 1):
        seconds = 0.0
        if click is not None and (spent := _timed_click(session, *click)) is not None:
            seconds, scores, click = spent, None, error.next_click()
        else:
            click = None
        if number in counts:
            scores = scores or error.scores(tolerance_mm)
            results.append(Result(case, structure, seed, number, *scores, seconds, session.patches))
    return results


def bounding_box(mask_ijk: np.ndarray) -> Box:
    """The smallest box that holds every voxel of a mask; the empty box at the origin where there is none."""
    start, stop = [], []
    for axis in range(3):
        inside = np.flatnonzero(mask_ijk.any(axis=tuple(a for a in range(3) if a != axis)))
        start.append(int(inside[0]) if inside.size else 0)
        stop.append(int(inside[-1]) + 1 if inside.size else 0)
    return Box(tuple(start), tuple(stop))


class _Error:
    """Where a session's mask differs from the target, looked at only in the box that holds both."""

    def __init__(self, session: Session, target_ijk: np.ndarray, target_box_ijk: Box):
        self.session, self.target_ijk, self.target_box_ijk = session, target_ijk, target_box_ijk

    def _masks(self) -> tuple[Box, np.ndarray, np.ndarray]:
        box_ijk = self.target_box_ijk.union(self.session.mask_box_ijk)
        return box_ijk, self.session.mask(box_ijk).astype(bool), self.target_ijk[box_ijk.slices()]

    def next_click(self) -> tuple[tuple[int, int, int], bool] | None:
        """Voxel (i, j, k) of the scan and sign; None where mask and target agree."""
        box_ijk, mask, target = self._masks()
        found = next_click(mask, target, spacing=self.session.volume.spacing_ijk_mm)
        return found and (_shifted(found[0], box_ijk), found[1])

    def scores(self, tolerance_mm: float) -> tuple[float, float]:
        """DSC and NSD."""
        _, mask, target = self._masks()
        spacing_mm = self.session.volume.spacing_ijk_mm
        return dice(mask, target), normalised_surface_dice(mask, target, spacing_mm, tolerance_mm)


def _shifted(index, box_ijk: Box) -> tuple[int, int, int]:
    return tuple(a + v for a, v in zip(box_ijk.start, index))


def _timed_click(session: Session, ijk: tuple[int, int, int], positive: bool) -> float | None:
    """Seconds that the session took for a click; None where it was clicked before or the session refuses it."""
    if any(click.ijk == ijk for click in session.clicks):
        return None
    start = time.perf_counter()
    try:
        session.click(ijk, positive)
    except ValueError:
        return None
    return time.perf_counter() - start
