"""Strategies of ``/activelearning``: which scan a client gets next. `acquisition` chooses, `Desk` does the rest."""

from __future__ import annotations

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from ctsam3d import acquisition
from ctsam3d.acquisition import Pick
from ctsam3d.labelapp.desk import Asked, Choose, Desk, Pool, parse_asked

DEFAULT = "foreground_random"  # until figures show another one to be better, see docs/active-learning.md


class PoolStrategy(Strategy):
    """A strategy by its way to choose.

    Args:
        scored: whether it needs what the model says of the scans.
    """

    def __init__(self, desk: Desk, choose: Choose, description: str, scored: bool = False):
        super().__init__(description)
        self._desk, self._choose, self._scored = desk, choose, scored

    def __call__(self, request: dict, datastore: Datastore) -> dict:
        """See `parse_asked` for the request, and `Desk.hand_out` for the reply.

        Raises:
            ValueError: a request that cannot be used.
        """
        return self._desk.hand_out(parse_asked(request), self._choose, datastore, self._scored)


def strategies(desk: Desk) -> dict[str, PoolStrategy]:
    """All strategies by name; viewers offer the first as the default."""
    found = {
        "foreground_random": PoolStrategy(desk, foreground_random, "Random among scans with a wanted structure"),
        "random": PoolStrategy(desk, at_random, "Random"),
        "first": PoolStrategy(desk, first, "The first scan without a final label"),
        "coldstart": PoolStrategy(desk, coldstart, "The most typical scans of groups without a label", True),
        "disagreement": PoolStrategy(desk, disagreement, "Where the model disagrees with itself", True),
        "click_effort": PoolStrategy(desk, click_effort, "Where the model lacks most for a click", True),
        "diverse_uncertain": PoolStrategy(desk, diverse_uncertain, "Uncertain, and unlike what is labelled", True),
    }
    return {DEFAULT: found[DEFAULT], **found}


def first(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """In the order of the datastore."""
    return [Pick(index, "the first that is free") for index in range(min(asked.k, len(pool.images)))]


def at_random(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.at_random`."""
    return acquisition.at_random(len(pool.images), asked.k, rng)


def foreground_random(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.foreground_random`."""
    return acquisition.foreground_random(pool.holds, asked.k, rng)


def coldstart(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.coldstart`."""
    return _among_scored(
        pool, asked, rng, lambda places: acquisition.coldstart(_embeddings(pool, places), pool.taken, asked.k)
    )


def disagreement(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.most_uncertain`."""

    def choose(places):
        return acquisition.most_uncertain(_disagreement(pool, asked, places), asked.k, rng, pool.labelled)

    return _among_scored(pool, asked, rng, choose)


def click_effort(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.click_effort`."""

    def choose(places):
        scores = [pool.scores[pool.images[place]] for place in places]
        quality = np.array([found.of(found.quality, asked.structures) for found in scores])
        return acquisition.click_effort(np.nan_to_num(quality, nan=1.0), pool.effort, asked.k)

    return _among_scored(pool, asked, rng, choose)


def diverse_uncertain(pool: Pool, asked: Asked, rng: np.random.Generator) -> list[Pick]:
    """See `acquisition.diverse_uncertain`."""

    def choose(places):
        scores = _disagreement(pool, asked, places)
        return acquisition.diverse_uncertain(scores, _embeddings(pool, places), pool.taken, asked.k, rng)

    return _among_scored(pool, asked, rng, choose)


def _among_scored(pool: Pool, asked: Asked, rng: np.random.Generator, choose) -> list[Pick]:
    """The choice among the scans that may hold a wanted structure and are scored.

    At random while there are none, or where the strategy finds none that is worth it.
    """
    possible = [place for place, holds in enumerate(pool.holds) if holds is not False] or range(len(pool.images))
    scored = [place for place in possible if pool.images[place] in pool.scores]
    if not scored:
        picks = acquisition.foreground_random(pool.holds, asked.k, rng)
        return [Pick(pick.index, f"no free scan is scored yet; {pick.reason}") for pick in picks]
    more = f"; {len(scored)} of {len(possible)} scans are scored so far" if len(scored) < len(possible) else ""
    picks = [Pick(scored[pick.index], pick.reason + more) for pick in choose(scored)]
    if not picks:
        rest = acquisition.foreground_random(pool.holds, asked.k, rng)
        picks = [Pick(pick.index, f"no free scan is unlike what is labelled; {pick.reason}") for pick in rest]
    return picks


def _embeddings(pool: Pool, places) -> np.ndarray:
    return np.array([pool.scores[pool.images[place]].embedding for place in places], float)


def _disagreement(pool: Pool, asked: Asked, places) -> np.ndarray:
    scores = [pool.scores[pool.images[place]] for place in places]
    values = np.array([found.of(found.disagreement, asked.structures) for found in scores])
    return np.nan_to_num(values, nan=0.0)
