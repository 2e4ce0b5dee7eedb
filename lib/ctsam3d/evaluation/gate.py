"""Whether newly trained weights may be served: a pure rule over scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_STUDIES = 3  # with fewer validation studies their score is chance
MAX_LOSS = 0.01  # of DSC on the reference set
SCORE = "mean DSC over structures and over 1, 3 and 5 clicks"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Whether to publish, and why, in words for the people who pressed Train."""

    publish: bool
    reason: str


def decide(reference: tuple[float, float], validation: tuple[float, float] | None = None, studies: int = 0) -> Decision:
    """Publish only what is better on the team's validation studies and hardly worse on the reference set.

    Args:
        reference: score on the reference set, `SCORE`: the best so far of the weights and those they came from, and
            that after the training.
        validation: score on the validation studies before and after; None where there are none.
        studies: number of validation studies. With fewer than `MIN_STUDIES` the reference set decides alone.

    Raises:
        ValueError: a score that is no number from 0 to 1.
    """
    for name, scores in {"reference": reference, "validation": validation or (0.0, 0.0)}.items():
        if not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
            raise ValueError(f"{name} must be two scores from 0 to 1, got {scores}")
    kept_up = reference[0] - reference[1] <= MAX_LOSS + _ROUNDING
    loss = f"{'at most' if kept_up else 'more than'} {MAX_LOSS:g} worse"
    words = f"reference set {'not worse' if reference[1] >= reference[0] else loss}, {_change(reference)}"
    if validation is None or studies < MIN_STUDIES:
        words += f"; it decides alone, as there are {studies} validation studies, fewer than {MIN_STUDIES}"
        return Decision(kept_up, _reason(kept_up, words))
    better = validation[1] > validation[0]
    comparison = "better" if better else "not better"
    words = f"{studies} validation studies {comparison}, {_change(validation)}; {words}"
    return Decision(better and kept_up, _reason(better and kept_up, words))


def _change(scores: tuple[float, float]) -> str:
    return f"{scores[0]:.4f} -> {scores[1]:.4f}"


def _reason(publish: bool, words: str) -> str:
    return f"{'published' if publish else 'kept the old version'}: {words} ({SCORE})"
