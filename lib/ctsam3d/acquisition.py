"""Which scans to label next: pure functions from what is known of a pool to picks, each with its reason.

Scores and embeddings come in, positions in the pool go out. What is random is drawn from the generator that is passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist

from ctsam3d.metrics import dice

TARGET_DSC = 0.9
BORDER_VOXELS = 2  # on either side of a predicted mask that count as its border
MAX_CLUSTERS = 20
MAX_COMPARED = 500  # scans that each is compared with: of a larger pool, evenly spaced ones
_CHUNK = 500  # scans whose distances are in memory at once
NEIGHBOURS = 20  # that say how typical a scan is
BATCHES = 200
LABELS_PER_BETA = 10.0
SAME = 1e-6  # distance of two embeddings, as a share of the pool's spread, below which the scans count as one
PRIOR_SESSIONS = 5.0  # real sessions that weigh as much as the assumption made without any
PRIOR_RATE = 0.7  # share of the error that a click leaves, assumed without any sessions


@dataclass(frozen=True)
class Pick:
    """A scan of the pool that was chosen: its position, and why."""

    index: int
    reason: str


# ---- random --------------------------------------------------------------------------------------------------------


def at_random(count: int, k: int, rng: np.random.Generator) -> list[Pick]:
    """`k` of `count` scans, all equally likely."""
    return [Pick(int(index), f"drawn at random from {count} scans") for index in rng.permutation(count)[:k]]


def foreground_random(holds: Sequence[bool | None], k: int, rng: np.random.Generator) -> list[Pick]:
    """`k` scans at random among those that hold a wanted structure.

    Where these are not enough, scans of which it is not known, then the rest.

    Args:
        holds: of each scan; None: not known.
    """
    known = sum(value is True for value in holds)
    words = {
        True: f"drawn at random from the {known} scans that hold a wanted structure",
        None: f"drawn at random; whether it holds a wanted structure is not known ({known} that do were left)",
        False: "drawn at random; no scan is left that may hold a wanted structure",
    }
    rank = {True: 0, None: 1, False: 2}
    order = sorted(rng.permutation(len(holds)), key=lambda index: rank[holds[index]])  # stable
    return [Pick(int(index), words[holds[index]]) for index in order[:k]]


# ---- without labels ------------------------------------------------------------------------------------------------


def coldstart(embeddings: np.ndarray, taken: np.ndarray, k: int) -> list[Pick]:
    """The most typical scans of clusters that nobody has labelled in yet, the largest clusters first.

    The pool and what is taken are cut into as many clusters as there will be picks (Ward, at most `MAX_CLUSTERS`). A
    cluster is due its share of all picks, and at least one while there are any; what is taken counts for its cluster.
    Nothing is picked that equals a scan which is taken or picked before it. Source: Hacohen et al. 2022, "Active
    learning on a budget: opposite strategies suit high and low budgets", for typicality and clusters not covered yet.

    Args:
        embeddings: (N, D) of the pool.
        taken: (M, D) of scans that are labelled, or about to be; M may be 0.
    """
    count = min(k, len(embeddings))
    if count < 1:
        return []
    points = np.concatenate([embeddings, taken]) if len(taken) else np.asarray(embeddings, float)
    clusters = _clusters(points, min(MAX_CLUSTERS, len(taken) + count))
    typical = typicality(points)
    own, others = clusters[: len(embeddings)], clusters[len(embeddings) :]
    sizes = np.bincount(clusters)
    had = np.bincount(others, minlength=len(sizes)).astype(float)
    free = ~_equal(embeddings, taken)
    picks: list[Pick] = []
    for _ in range(count):
        open_clusters = np.unique(own[free])
        if not len(open_clusters):
            break
        # The largest that has none; then the one that is farthest behind its share.
        cluster = max(open_clusters, key=lambda c: (had[c] == 0, sizes[c] / (had[c] + 1)))
        inside = np.flatnonzero(free & (own == cluster))
        index = int(inside[np.argmax(typical[inside])])
        picks.append(Pick(index, f"the most typical scan of a group of {sizes[cluster]} alike, {int(had[cluster])} of "
                                 "which were taken before"))  # fmt: skip
        had[cluster] += 1
        free[index] = False
        free &= ~_equal(embeddings, embeddings[index : index + 1], points)
    return picks


def typicality(embeddings: np.ndarray) -> np.ndarray:
    """(N,) how close each embedding is to its nearest `NEIGHBOURS` of `MAX_COMPARED`: one over the mean distance.

    Infinite for copies.
    """
    some = _evenly(len(embeddings))
    count = min(NEIGHBOURS, len(some) - 1)
    if count < 1:
        return np.ones(len(embeddings))
    place = np.full(len(embeddings), -1)  # of each among those that all are compared with
    place[some] = np.arange(len(some))
    means = np.empty(len(embeddings))
    for start in range(0, len(embeddings), _CHUNK):
        apart, own = cdist(embeddings[start : start + _CHUNK], embeddings[some]), place[start : start + _CHUNK]
        apart[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf  # nobody is a neighbour of itself
        means[start : start + _CHUNK] = np.partition(apart, count - 1, axis=1)[:, :count].mean(axis=1)
    return np.divide(1.0, means, out=np.full(len(means), np.inf), where=means > 0)


def _clusters(points: np.ndarray, count: int) -> np.ndarray:
    """(N,) number of the cluster of each point; far more points than can be compared go where the nearest one is."""
    if len(points) < 2 or count < 2:
        return np.zeros(len(points), int)
    some = _evenly(len(points))
    found = fcluster(linkage(points[some], "ward"), count, "maxclust") - 1
    if len(some) == len(points):
        return found
    return np.concatenate([found[cdist(part, points[some]).argmin(axis=1)] for part in _chunks(points)])


def _evenly(count: int) -> np.ndarray:
    """Positions of the scans of a pool that all others are compared with."""
    return np.linspace(0, count - 1, min(count, MAX_COMPARED)).round().astype(int)


def _chunks(points: np.ndarray) -> list[np.ndarray]:
    return [points[start : start + _CHUNK] for start in range(0, len(points), _CHUNK)]


def _nearest(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) distance to the nearest of the others; infinite where there is none."""
    if not len(others) or not len(embeddings):
        return np.full(len(embeddings), np.inf)
    return np.concatenate([cdist(part, others).min(axis=1) for part in _chunks(embeddings)])


def _equal(embeddings: np.ndarray, others: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
    """(N,) whether each embedding is that of one of the others."""
    if not len(others):
        return np.zeros(len(embeddings), bool)
    spread = float(np.std(embeddings if points is None else points, axis=0).max())
    return _nearest(embeddings, others) <= SAME * max(spread, 1e-12)


# ---- uncertainty ---------------------------------------------------------------------------------------------------


def disagreement(masks: np.ndarray) -> float:
    """How far several predictions of one structure disagree, over what they predict and its border only.

    Args:
        masks: bool (T, D, H, W), one a prediction.

    Returns:
        The mean of 4 v (1 - v) over the voxels within `BORDER_VOXELS` of any predicted foreground, v being the share of
        predictions that hold the voxel: 0 where all agree, 1 where every voxel has half of them. 0 where all are empty.
    """
    masks = np.asarray(masks, bool)
    anywhere = masks.any(axis=0)
    if not anywhere.any():
        return 0.0
    region = ndimage.binary_dilation(anywhere, ndimage.generate_binary_structure(3, 1), iterations=BORDER_VOXELS)
    share = masks.mean(axis=0)[region]
    return float((4 * share * (1 - share)).mean())


def predicted_quality(probability: np.ndarray) -> float:
    """The DSC that a prediction expects of itself: of its mask with a truth drawn voxel by voxel from `probability`.

    Twice the expected overlap over the expected sum of both; 1 where nothing is predicted and nothing is likely.
    """
    probability = np.asarray(probability, np.float64)
    mask = probability > 0.5
    total = np.count_nonzero(mask) + probability.sum()
    return float(2 * probability[mask].sum() / total) if total > 0 else 1.0


def mean_dice(masks: np.ndarray) -> float:
    """Mean DSC of all pairs of predictions (T, D, H, W) of one structure; 1 with fewer than two."""
    pairs = [dice(one, other) for one, other in itertools.combinations(np.asarray(masks, bool), 2)]
    return float(np.mean(pairs)) if pairs else 1.0


def most_uncertain(scores: np.ndarray, k: int, rng: np.random.Generator, labelled: int) -> list[Pick]:
    """`k` scans by their score under power noise, which decays as labels come in.

    The ones with the largest log score plus Gumbel noise of scale 1 / beta, with beta = 1 + labelled / 10: at first
    scans are drawn in proportion to their score, later the highest ones are taken. Source: Kirsch et al. 2023,
    "Stochastic batch acquisition", power acquisition.

    Args:
        scores: (N,), 0 or more.
        labelled: scans with a final label.
    """
    scores = np.asarray(scores, float)
    beta = 1 + labelled / LABELS_PER_BETA
    noisy = np.log(np.maximum(scores, 1e-12)) + rng.gumbel(scale=1 / beta, size=len(scores))
    ranks = (-scores).argsort(kind="stable").argsort(kind="stable") + 1
    return [
        Pick(int(index), f"predictions disagree by {scores[index]:.3f}, rank {ranks[index]} of {len(scores)}, "
                         f"power noise of scale {1 / beta:.2f}")
        for index in (-noisy).argsort(kind="stable")[:k]
    ]  # fmt: skip


# ---- clicks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How predicted quality becomes DSC, and DSC becomes clicks.

    Attributes:
        slope, intercept: DSC after the first click = intercept + slope * predicted quality.
        rate: share of the error that each further click leaves.
        sessions: recorded ones that it was fitted to.
    """

    slope: float = 1.0
    intercept: float = 0.0
    rate: float = PRIOR_RATE
    sessions: int = 0

    def dsc(self, quality: np.ndarray | float) -> np.ndarray:
        """DSC that is to be expected after the first click, of one or more predicted qualities."""
        return np.clip(self.intercept + self.slope * np.asarray(quality, float), 0.0, 1.0)

    def clicks(self, quality: np.ndarray | float, target: float = TARGET_DSC) -> np.ndarray:
        """Clicks that it takes until DSC is `target`, the first one included."""
        goal = 1 - target
        return 1 + np.log(goal / np.maximum(1 - self.dsc(quality), goal)) / np.log(self.rate)


def fit_effort(quality: Sequence[float], dsc: Sequence[float], clicks: Sequence[int]) -> Effort:
    """The effort that recorded sessions show; with few of them, little more than the assumption.

    `slope` and `intercept` by least squares, held to the identity as if `PRIOR_SESSIONS` sessions had shown it at
    either end; `rate` from how far the true number of clicks brought the last mask: error after the first click, as
    predicted, times rate to the further clicks is the error at the end.

    Args:
        quality: predicted after the first click of each session.
        dsc: of the first click's mask where it is known, NaN else, and ...
        clicks: the true number of clicks until the mask was saved.
    """
    quality, dsc, clicks = (np.asarray(values, float) for values in (quality, dsc, clicks))
    known = np.isfinite(quality) & np.isfinite(dsc)
    x = np.concatenate([quality[known], [0.0, 1.0]])
    y = np.concatenate([dsc[known], [0.0, 1.0]])
    weights = np.sqrt(np.concatenate([np.ones(known.sum()), [PRIOR_SESSIONS, PRIOR_SESSIONS]]))
    a = np.stack([x, np.ones_like(x)], axis=1) * weights[:, None]
    slope, intercept = np.linalg.lstsq(a, y * weights, rcond=None)[0]
    line = Effort(float(slope), float(intercept))
    error = 1 - line.dsc(np.where(np.isfinite(quality), quality, 1.0))
    # Saved once it was good: the error had come down to the target's.
    told = np.isfinite(quality) & (clicks > 1) & (error > 1 - TARGET_DSC)
    log_rates = np.log((1 - TARGET_DSC) / error[told]) / (clicks[told] - 1)
    log_rate = (log_rates.sum() + PRIOR_SESSIONS * np.log(PRIOR_RATE)) / (len(log_rates) + PRIOR_SESSIONS)
    return Effort(line.slope, line.intercept, float(np.clip(np.exp(log_rate), 0.05, 0.98)), len(quality))


def click_effort(quality: np.ndarray, effort: Effort, k: int) -> list[Pick]:
    """The scans where the model lacks most for a click of what it takes to bring it to `TARGET_DSC`.

    Args:
        quality: (N,) predicted, of each scan.
    """
    lacking, clicks = 1 - effort.dsc(quality), effort.clicks(quality)
    gain = lacking / clicks
    return [
        Pick(int(index), f"DSC {1 - lacking[index]:.2f} expected after a click, and {clicks[index]:.1f} clicks to "
                         f"{TARGET_DSC} ({effort.sessions} sessions seen)")
        for index in (-gain).argsort(kind="stable")[:k]
    ]  # fmt: skip


# ---- batches -------------------------------------------------------------------------------------------------------


def diverse_uncertain(
    scores: np.ndarray,
    embeddings: np.ndarray,
    taken: np.ndarray,
    k: int,
    rng: np.random.Generator,
    batches: int = BATCHES,
) -> list[Pick]:
    """The best of many random batches of `k` scans: uncertain, and far from each other and from what is taken.

    A batch's score is the mean rank of its uncertainty, 0 to 1, plus the mean distance of its scans to the nearest
    other one of the batch or of the taken, over about the largest distance of any two. Scoring batches rather than
    scans needs no weight for redundancy, and costs the same for any k.

    Args:
        scores: (N,) uncertainty; embeddings: (N, D); taken: (M, D), M may be 0.
        batches: that are drawn.
    """
    count = len(scores)
    k = min(k, count)
    if k < 1:
        return []
    drawn = np.stack([rng.permutation(count)[:k] for _ in range(batches)])  # (batches, k)
    ranks = np.asarray(scores, float).argsort(kind="stable").argsort(kind="stable") / max(1, count - 1)
    embeddings, far = np.asarray(embeddings, float), _nearest(embeddings, taken)
    largest = max(_extent(np.concatenate([embeddings, taken]) if len(taken) else embeddings), 1e-12)
    totals = np.empty(batches)
    for number, batch in enumerate(drawn):
        inner = cdist(embeddings[batch], embeddings[batch])
        np.fill_diagonal(inner, np.inf)
        nearest = np.minimum(inner.min(axis=1), far[batch])
        nearest = np.where(np.isfinite(nearest), nearest, largest) / largest
        totals[number] = ranks[batch].mean() + nearest.mean()
    best = drawn[totals.argmax()]
    words = f"of the best of {batches} random batches of {k}: uncertain, and unlike the others and what is labelled"
    return [Pick(int(index), words) for index in best]


def _extent(points: np.ndarray) -> float:
    """About the largest distance of any two points, at least half of it: from the farthest one of their mean."""
    end = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmax()]
    return float(np.linalg.norm(points - end, axis=1).max())
