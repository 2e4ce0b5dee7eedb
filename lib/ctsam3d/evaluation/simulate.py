"""A simulated user on the session that serves: clicks where the mask is worst, and what each click brought."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctsam3d.clicks import USERS, check_user, first_click, user_click
from ctsam3d.metrics import Surface, dice, surface, surface_dice
from ctsam3d.session import Session
from ctsam3d.volume import Box

CLICK_COUNTS = (1, 3, 5, 7, 9)  # paper, section 4.1
TUMOUR_CLICK_COUNTS = (1, 3, 5, 7, 9, 10)  # paper, Table 3
TOLERANCE_MM = 5.0  # paper, supplementary Table 1
STRICT_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Result:
    """One structure of one case after some clicks; the fields are the columns of results.csv.

    Attributes:
        clicks: how many the user was allowed so far; fewer were made where the mask was already right.
        dsc, nsd: on the scan's own grid; NSD at the tolerance that was asked for.
        seconds: time of the last of these clicks alone; 0 where none was made.
        patches: that make up the mask.
        nsd_2mm: NSD at 2 mm; NaN where it was not measured.
    """

    case: str
    structure: str
    seed: int
    clicks: int
    dsc: float
    nsd: float
    seconds: float
    patches: int
    nsd_2mm: float = math.nan


@dataclass(frozen=True, eq=False)
class Target:
    """A true mask, cut to the box that holds it and prepared once for all users who click it.

    Attributes:
        shape_ijk: of the scan.
        box_ijk: the smallest that holds every voxel of the structure; empty at the origin where it has none.
        mask_ijk: bool, on that box.
        surface: of the mask, in voxels of the scan.
    """

    shape_ijk: tuple[int, int, int]
    box_ijk: Box
    mask_ijk: np.ndarray
    surface: Surface

    @classmethod
    def of(cls, mask_ijk: np.ndarray, spacing_ijk_mm: tuple[float, float, float]) -> Target:
        """The target of a mask (I, J, K) on the scan's grid."""
        mask_ijk = np.asarray(mask_ijk, dtype=bool)
        box_ijk = bounding_box(mask_ijk)
        own = mask_ijk[box_ijk.slices()].copy()
        return cls(mask_ijk.shape, box_ijk, own, surface(own, spacing_ijk_mm, box_ijk.start))

    @property
    def voxels(self) -> int:
        """Number of voxels of the scan."""
        return int(np.count_nonzero(self.mask_ijk))

    def on(self, box_ijk: Box) -> np.ndarray:
        """The bool mask on a box of the scan that holds the target's own."""
        mask_ijk = np.zeros(box_ijk.shape, bool)
        mask_ijk[self.box_ijk.slices(box_ijk)] = self.mask_ijk
        return mask_ijk


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
    target_ijk: np.ndarray | Target,
    case: str,
    structure: str,
    seed: int,
    clicks: Sequence[int] = CLICK_COUNTS,
    tolerance_mm: float = TOLERANCE_MM,
    user: str = USERS[0],
    enough: float | None = None,
) -> list[Result]:
    """Click one structure in a fresh session and score it after each of the numbers of clicks (paper, section 4.1).

    The first click is a random voxel of the structure, each further one lies in the missed or wrong foreground on the
    scan's own grid: at its deepest point in mm, or where another user clicks (see `user_click`). Where mask and
    target agree, or the session refuses the click, the user stops, and what there is counts for the larger numbers of
    clicks too. A voxel is clicked once: what a click of wrong sign left there does not draw the next one.

    Args:
        session: without clicks; afterwards it holds those of the user.
        target_ijk: (I, J, K), the true mask on the scan's grid, or prepared as a `Target`.
        seed: non-negative; with `case` and `structure` it decides all that the user draws.
        clicks: the numbers of clicks after which to score.
        tolerance_mm: of NSD; NSD at 2 mm comes beside it.
        user: one of `USERS`.
        enough: DSC from which on the user clicks no more: there are no results for larger numbers of clicks then.

    Raises:
        ValueError: an empty target, another shape than the scan's, no such user, or a number of clicks below 1.
    """
    counts, user, rng = check_click_counts(clicks), check_user(user), user_rng(seed, case, structure)
    spacing_mm, shape_ijk = session.volume.spacing_ijk_mm, session.volume.shape_ijk
    target = target_ijk if isinstance(target_ijk, Target) else Target.of(target_ijk, spacing_mm)
    if target.shape_ijk != shape_ijk:
        raise ValueError(f"target_ijk must have the scan's shape {shape_ijk}, got {target.shape_ijk}")
    click = (_shifted(first_click(target.mask_ijk, rng), target.box_ijk), True)
    error, results, scores = _Error(session, target), [], None
    for number in range(1, counts[-1] + 1):
        seconds = 0.0
        if click is not None and (spent := _timed_click(session, *click)) is not None:
            seconds, scores = spent, None
            click = error.next_click(user, rng) if number < counts[-1] else None
        else:
            click = None
        if number in counts:
            scores = scores or error.scores((tolerance_mm, STRICT_TOLERANCE_MM))
            dsc, nsd, nsd_2mm = scores
            results.append(Result(case, structure, seed, number, dsc, nsd, seconds, session.patches, nsd_2mm))
            if enough is not None and dsc >= enough:
                break
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

    def __init__(self, session: Session, target: Target):
        self.session, self.target = session, target

    def _masks(self) -> tuple[Box, np.ndarray, np.ndarray]:
        box_ijk = self.target.box_ijk.union(self.session.mask_box_ijk)
        return box_ijk, self.session.mask(box_ijk).view(bool), self.target.on(box_ijk)

    def next_click(self, user: str, rng: np.random.Generator) -> tuple[tuple[int, int, int], bool] | None:
        """Voxel (i, j, k) of the scan and sign; None where mask and target agree."""
        box_ijk, mask, target = self._masks()
        for click in self.session.clicks:
            if box_ijk.contains(click.ijk):
                place = tuple(v - a for v, a in zip(click.ijk, box_ijk.start))
                mask[place] = target[place]
        found = user_click(user, mask, target, self.session.volume.spacing_ijk_mm, rng)
        return found and (_shifted(found[0], box_ijk), found[1])

    def scores(self, tolerances_mm: Sequence[float]) -> tuple[float, ...]:
        """DSC, and NSD at each tolerance."""
        box_ijk, mask, target = self._masks()
        own = bounding_box(mask)  # far smaller than the patches that it came from
        start = tuple(a + b for a, b in zip(box_ijk.start, own.start))
        found = surface(mask[own.slices()], self.session.volume.spacing_ijk_mm, start)
        return dice(mask, target), *surface_dice(found, self.target.surface, tolerances_mm)


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
