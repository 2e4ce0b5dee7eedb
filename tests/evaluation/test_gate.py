"""What is published and what is not, on scores written by hand."""

import pytest

from ctsam3d.evaluation.gate import SCORE, decide


@pytest.mark.parametrize(
    ("reference", "validation", "studies", "publish", "words"),
    [
        (
            (0.60, 0.60),
            (0.50, 0.51),
            3,
            True,
            ["published", "3 validation studies better", "0.5000 -> 0.5100", "not worse"],
        ),
        ((0.60, 0.59), (0.50, 0.501), 3, True, ["at most 0.01 worse", "0.6000 -> 0.5900"]),
        ((0.60, 0.5899), (0.50, 0.90), 9, False, ["kept", "9 validation studies better", "more than 0.01 worse"]),
        ((0.60, 0.90), (0.50, 0.50), 3, False, ["kept", "3 validation studies not better"]),
        ((0.60, 0.90), (0.50, 0.499), 3, False, ["kept", "not better"]),
        ((0.30, 0.29), None, 0, True, ["it decides alone", "0 validation studies, fewer than 3"]),
        ((0.30, 0.28), None, 0, False, ["kept", "more than 0.01 worse", "decides alone"]),
        ((0.60, 0.60), (0.50, 0.10), 2, True, ["it decides alone", "2 validation studies, fewer than 3"]),
        ((0.60, 0.50), (0.50, 0.90), 2, False, ["kept", "decides alone"]),
        ((0.0, 0.0), (0.0, 1.0), 4, True, ["published"]),
    ],
)
def test_decision(reference, validation, studies, publish, words):
    decision = decide(reference, (0.9, 0.9), validation, studies)
    assert decision.publish is publish
    assert all(word in decision.reason for word in words), decision.reason
    assert decision.reason.endswith(f"({SCORE})")


@pytest.mark.parametrize(
    ("proposals", "publish", "words"),
    [
        ((0.9, 0.95), True, "cross-patch prompts not worse, 0.9000 -> 0.9500"),
        ((0.9, 0.88), True, "cross-patch prompts at most 0.02 worse, 0.9000 -> 0.8800"),
        ((0.9, 0.8799), False, "cross-patch prompts more than 0.02 worse, 0.9000 -> 0.8799"),
    ],
)
def test_p_must_go_on_leading_the_way(proposals, publish, words):
    for validation, studies in ((None, 0), ((0.5, 0.6), 3)):
        decision = decide((0.6, 0.7), proposals, validation, studies)
        assert decision.publish is publish and words in decision.reason


@pytest.mark.parametrize("loss", [0.01, 0.1 - 0.09, 0.73 - 0.72])  # a hundredth, as floating point has it
def test_a_loss_of_exactly_one_point_is_allowed(loss):
    assert decide((0.5, 0.5 - loss), (0.9, 0.9)).publish


@pytest.mark.parametrize("scores", [(float("nan"), 0.5), (0.5, float("nan")), (0.5, 1.2), (-0.1, 0.5)])
def test_what_is_no_score(scores):
    with pytest.raises(ValueError, match="reference must be two scores from 0 to 1"):
        decide(scores, (0.9, 0.9))
    with pytest.raises(ValueError, match="proposals must be two scores from 0 to 1"):
        decide((0.5, 0.5), scores)
    with pytest.raises(ValueError, match="validation must be two scores from 0 to 1"):
        decide((0.5, 0.5), (0.9, 0.9), scores, 5)
