"""Selection on small pools whose right answer is known, and scores by hand."""

import numpy as np
import pytest

from ctsam3d import acquisition
from ctsam3d.acquisition import Effort, Pick

NONE = np.zeros((0, 2))


def rng(seed=0):
    return np.random.default_rng(seed)


def indices(picks: list[Pick]) -> list[int]:
    return [pick.index for pick in picks]


def pool() -> np.ndarray:
    """Twenty scans around (0, 0) and, as numbers 20 to 22, three around (10, 10)."""
    points = rng(1).normal(0, 0.5, (23, 2))
    points[20:] = points[20:] * 0.1 + 10
    return points


# ---- random --------------------------------------------------------------------------------------------------------


def test_random_honours_k_and_seed():
    assert indices(acquisition.at_random(9, 4, rng(3))) == indices(acquisition.at_random(9, 4, rng(3)))
    assert len(set(indices(acquisition.at_random(9, 4, rng(3))))) == 4
    assert sorted(indices(acquisition.at_random(3, 7, rng()))) == [0, 1, 2]
    first = {indices(acquisition.at_random(9, 1, rng(seed)))[0] for seed in range(60)}
    assert first == set(range(9))


def test_foreground_random_takes_holders_first_then_the_unknown():
    holds = [False, None, True, False, True, None]
    picks = acquisition.foreground_random(holds, 6, rng())
    assert set(indices(picks)[:2]) == {2, 4} and set(indices(picks)[2:4]) == {1, 5}
    assert "from the 2 scans that hold a wanted structure" in picks[0].reason
    assert "is not known" in picks[2].reason and "no scan is left" in picks[5].reason
    assert {indices(acquisition.foreground_random(holds, 1, rng(seed)))[0] for seed in range(20)} == {2, 4}


# ---- coldstart -----------------------------------------------------------------------------------------------------


def test_coldstart_gets_the_odd_cluster_within_two_picks():
    first = indices(acquisition.coldstart(pool(), NONE, 2))
    assert first[0] < 20 <= first[1]  # the large group first
    one = acquisition.coldstart(pool(), NONE, 1)
    assert one[0].index < 20
    then = acquisition.coldstart(pool(), pool()[[one[0].index]], 1)
    assert then[0].index >= 20 and "a group of 3 alike, 0 of which were taken before" in then[0].reason


def test_coldstart_picks_the_most_typical():
    points = np.array([[0.0, 0], [1, 0], [2, 0], [1, 5]])
    # Mean distances to the others: 8.10/3, 7/3, 8.10/3, 15.2/3.
    assert acquisition.typicality(points).argmax() == 1
    assert indices(acquisition.coldstart(points, NONE, 1)) == [1]
    assert acquisition.typicality(points)[1] == pytest.approx(3 / 7)


def test_coldstart_never_takes_a_copy_twice():
    points = np.array([[0.0, 0], [0, 0], [0, 0], [5, 5]])
    assert sorted(indices(acquisition.coldstart(points, NONE, 4)))[-1] == 3
    assert len(acquisition.coldstart(points, NONE, 4)) == 2
    assert indices(acquisition.coldstart(points[:3], points[:1], 2)) == []
    assert acquisition.coldstart(np.zeros((0, 2)), NONE, 3) == []


def test_coldstart_shares_picks_in_proportion(monkeypatch):
    monkeypatch.setattr(acquisition, "MAX_CLUSTERS", 2)
    points = np.concatenate([rng(0).normal(0, 0.1, (30, 2)), rng(1).normal(9, 0.1, (10, 2))])
    chosen = np.array(indices(acquisition.coldstart(points, NONE, 8)))
    assert (np.sum(chosen < 30), np.sum(chosen >= 30)) == (6, 2)


def test_more_scans_than_can_be_compared_are_clustered_all_the_same(monkeypatch):
    monkeypatch.setattr(acquisition, "MAX_COMPARED", 12)
    chosen = indices(acquisition.coldstart(pool(), NONE, 2))
    assert (chosen[0] < 20) and (chosen[1] >= 20)


def test_large_pools_take_time_in_proportion(monkeypatch):
    compared = []
    cdist = acquisition.cdist
    monkeypatch.setattr(acquisition, "MAX_COMPARED", 40)
    monkeypatch.setattr(acquisition, "cdist", lambda a, b: compared.append(len(a) * len(b)) or cdist(a, b))
    points = rng(2).normal(size=(4000, 3))
    assert len(acquisition.coldstart(points, points[:2], 1)) == 1
    assert len(acquisition.diverse_uncertain(rng(3).random(4000), points, points[:2], 3, rng(4))) == 3
    assert sum(compared) <= 4002 * (40 + 40 + 2 + 1 + 2) + acquisition.BATCHES * 3 * 3


# ---- uncertainty ---------------------------------------------------------------------------------------------------


def test_disagreement_by_hand():
    masks = np.zeros((2, 4, 1, 1), bool)
    masks[0, :2] = masks[1, 1:3] = True  # the voxels 0, 1, 2 have the shares 1/2, 1, 1/2; 3 is border
    assert acquisition.disagreement(masks) == pytest.approx(2 / 4)
    assert acquisition.disagreement(masks[:1]) == 0.0
    assert acquisition.disagreement(np.zeros((3, 4, 4, 4))) == 0.0


def test_disagreement_looks_at_the_border_and_no_further():
    masks = np.zeros((2, 41, 1, 1), bool)
    masks[:, 20] = True
    masks[0, 21] = True  # region: 18 to 23, of which one voxel is in dispute
    assert acquisition.disagreement(masks) == pytest.approx(1 / 6)


def test_predicted_quality_by_hand():
    # The mask is {0.8, 0.6}: 2 * 1.4 / (2 + 1.8).
    assert acquisition.predicted_quality(np.array([0.8, 0.6, 0.4, 0.0])) == pytest.approx(2.8 / 3.8)
    assert acquisition.predicted_quality(np.ones(5)) == 1.0
    assert acquisition.predicted_quality(np.zeros(5)) == 1.0
    assert acquisition.predicted_quality(np.full(5, 0.4)) == 0.0


def test_power_noise_decays_as_labels_come_in():
    scores = np.array([0.1, 0.4, 0.2, 0.3])
    few = [acquisition.most_uncertain(scores, 1, rng(seed), 0)[0].index for seed in range(2000)]
    # With beta = 1 a scan is drawn in proportion to its score.
    assert np.bincount(few, minlength=4) / 2000 == pytest.approx(scores, abs=0.04)
    many = [acquisition.most_uncertain(scores, 4, rng(seed), 5000) for seed in range(20)]
    assert all(indices(picks) == [1, 3, 2, 0] for picks in many)
    assert "disagree by 0.400, rank 1 of 4" in many[0][0].reason


# ---- clicks --------------------------------------------------------------------------------------------------------


def test_expected_clicks_by_hand():
    effort = Effort(rate=0.5)
    assert effort.clicks(0.95) == 1.0
    assert effort.clicks(0.6) == pytest.approx(3.0)  # errors 0.4, 0.2, 0.1
    assert effort.clicks(0.2) == pytest.approx(4.0)
    assert Effort(slope=0.5, intercept=0.1).dsc(0.6) == pytest.approx(0.4)


def test_effort_is_fitted_to_the_sessions():
    none = acquisition.fit_effort([], [], [])
    assert (none.dsc(0.3), none.rate) == (pytest.approx(0.3), pytest.approx(0.7))
    quality = np.linspace(0.2, 1, 400)
    # In truth the model is worth half of what it says, and each click leaves a half of the error.
    dsc = 0.5 * quality
    clicks = 1 + np.log(0.1 / (1 - dsc)) / np.log(0.5)
    found = acquisition.fit_effort(quality, dsc, clicks)
    assert found.dsc(0.8) == pytest.approx(0.4, abs=0.05)
    assert found.rate == pytest.approx(0.5, abs=0.03) and found.sessions == 400
    unknown = acquisition.fit_effort([0.5, np.nan], [np.nan, 0.3], [3, 4])
    assert (unknown.slope, unknown.intercept) == (pytest.approx(1), pytest.approx(0))
    # 0.5 to 0.1 in two clicks: 0.447 each, once, beside the assumption five times.
    assert unknown.rate == pytest.approx((0.2**0.5 * 0.7**5) ** (1 / 6))


def test_click_effort_takes_what_lacks_most_a_click():
    picks = acquisition.click_effort(np.array([0.95, 0.3, 0.7]), Effort(rate=0.5), 2)
    assert indices(picks) == [1, 2]  # 0.05 / 1; 0.7 / 3.8; 0.3 / 2.6
    assert "DSC 0.30 expected after a click, and 3.8 clicks to 0.9" in picks[0].reason


# ---- batches -------------------------------------------------------------------------------------------------------


def test_batches_are_spread_and_uncertain():
    points = np.array([[0.0, 0], [0, 0], [9, 9], [4, 4]])
    scores = np.array([1.0, 0.99, 0.9, 0.0])
    for seed in range(5):
        assert set(indices(acquisition.diverse_uncertain(scores, points, NONE, 2, rng(seed)))) <= {0, 1, 2}
        assert 2 in indices(acquisition.diverse_uncertain(scores, points, NONE, 2, rng(seed)))
    # The scans at (0, 0) are labelled already.
    assert indices(acquisition.diverse_uncertain(scores, points, points[:1], 1, rng())) == [2]
    same = [indices(acquisition.diverse_uncertain(scores, points, NONE, 3, rng(7))) for _ in range(2)]
    assert same[0] == same[1] and len(set(same[0])) == 3
    assert acquisition.diverse_uncertain(np.zeros(0), np.zeros((0, 2)), NONE, 3, rng()) == []
