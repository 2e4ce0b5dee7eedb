"""Whether newly trained weights may be served: a pure rule over scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_STUDIES = 3  # with fewer validation studies their score is chance
MAX_LOSS = 0.01  # of DSC on the reference set
MAX_PROPOSALS_LOSS = 0.02  # of what P gets right there
SCORE = "mean DSC of single patches over structures and over 1, 3 and 5 clicks; cross-patch prompts: share right"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Whether to publish, and why, in words for the people who pressed Train."""

    publish: bool
    reason: str


def decide(
    reference: tuple[float, float],
    proposals: tuple[float, float],
    validation: tuple[float, float] | None = None,
    studies: int = 0,
) -> Decision:
    """Publish only what is better on the team's validation studies and hardly worse on the reference set.

    Args:
        reference: score on the reference set, `SCORE`: the best so far of the weights and those they came from, and
            that after the training.
        proposals: what P gets right on the reference set, before and after.
        validation: score on the validation studies before and after; None where there are none.
        studies: number of validation studies. With fewer than `MIN_STUDIES` the reference set decides alone.

    Raises:
        ValueError: a score that is no number from 0 to 1.
    """
    pairs = {"reference": reference, "proposals": proposals, "validation": validation or (0.0, 0.0)}
    for name, scores in pairs.items():
        if not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
            raise ValueError(f"{name} must be two scores from 0 to 1, got {scores}")
    kept_up = reference[0] - reference[1] <= MAX_LOSS + _ROUNDING
    leads_on = proposals[0] - proposals[1] <= MAX_PROPOSALS_LOSS + _ROUNDING
    words = f"reference set {_loss(reference, MAX_LOSS)}, {_change(reference)}"
    words += f"; cross-patch prompts {_loss(proposals, MAX_PROPOSALS_LOSS)}, {_change(proposals)}"
    if validation is None or studies < MIN_STUDIES:
        words += f"; it decides alone, as there are {studies} validation studies, fewer than {MIN_STUDIES}"
        return _decision(kept_up and leads_on, words)
    better = validation[1] > validation[0]
    words = f"{studies} validation studies {'better' if better else 'not better'}, {_change(validation)}; {words}"
    return _decision(better and kept_up and leads_on, words)


def _loss(scores: tuple[float, float], most: float) -> str:
    if scores[1] >= scores[0]:
        return "not worse"
    return f"{'at most' if scores[0] - scores[1] <= most + _ROUNDING else 'more than'} {most:g} worse"


def _change(scores: tuple[float, float]) -> str:
    return f"{scores[0]:.4f} -> {scores[1]:.4f}"


def _decision(publish: bool, words: str) -> Decision:
    return Decision(publish, f"{'published' if publish else 'kept the old version'}: {words} ({SCORE})")
