"""The simulated user on real sessions whose network is a stand-in with known answers."""

from dataclasses import astuple, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctsam3d.checkpoint import Checkpoint
from ctsam3d.clicks import USERS, next_click
from ctsam3d.evaluation.simulate import Target, bounding_box, simulate, user_rng
from ctsam3d.metrics import dice, normalised_surface_dice
from ctsam3d.model import build
from ctsam3d.segmenter import Segmenter
from ctsam3d.session import Session
from ctsam3d.volume import Box, Volume

SHAPE = (40, 36, 30)


class Threshold:
    """Stands in for a `Segmenter`: finds what is bright."""

    info = SimpleNamespace(spacing_mm=1.5, peak_threshold=0.5)
    batch = 1

    def features(self, volume, box_zyx, crop, mirrored):
        return torch.from_numpy((crop() > 0).astype(np.float32))

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        return np.zeros((len(neighbours_hu_zyx), 64, 64, 64), np.float32)

    def decode(self, features, prompts):
        return features.numpy()


class Nothing(Threshold):
    """Finds nothing; the session adds the clicked voxels."""

    def decode(self, features, prompts):
        return np.zeros_like(features.numpy())


class Refusing(Session):
    """Takes no more than two clicks."""

    def click(self, ijk, positive=True):
        if len(self.clicks) == 2:
            raise ValueError("no more")
        super().click(ijk, positive)


def scan(spacing_mm=(1.5, 1.5, 1.5), box=((10, 22), (8, 20), (9, 21))):
    """A bright block in air; world axes such that the model grid's voxels are the scan's at 1.5 mm."""
    target = np.zeros(SHAPE, bool)
    target[tuple(slice(*b) for b in box)] = True
    return Volume(np.where(target, 100, -900).astype(np.int16), np.diag([*spacing_mm, 1.0])), target


def test_a_right_mask_needs_one_click_and_counts_for_all():
    volume, target = scan()
    session = Session(Threshold(), volume)
    results = simulate(session, target, "c", "s", 0, (5, 1, 3))
    assert [r.clicks for r in results] == [1, 3, 5]
    assert all((r.case, r.structure, r.seed) == ("c", "s", 0) for r in results)
    assert all((r.dsc, r.nsd, r.patches) == (1.0, 1.0, 1) for r in results)
    assert results[0].seconds > 0 and [r.seconds for r in results[1:]] == [0.0, 0.0]
    assert len(session.clicks) == 1 and session.clicks[0].positive and target[session.clicks[0].ijk]


def test_scores_and_clicks_are_those_of_the_whole_scan():
    volume, target = scan(spacing_mm=(1.5, 1.5, 4.0))
    target = np.roll(target, 3, axis=0)  # the stand-in finds the block, the user wants it elsewhere
    session = Session(Threshold(), volume)
    results = simulate(session, target, "c", "s", 1, (1, 2, 3, 4), tolerance_mm=3.0)
    mask = session.mask().astype(bool)
    assert results[-1].dsc == dice(mask, target)
    assert results[-1].nsd == pytest.approx(normalised_surface_dice(mask, target, volume.spacing_ijk_mm, 3.0))
    assert all(c.positive == target[c.ijk] for c in session.clicks) and len(session.clicks) == 4
    assert all(r.seconds > 0 for r in results)
    # the first of the later clicks: the deepest point of the error that the first one left
    replay = Session(Threshold(), volume)
    replay.click(session.clicks[0].ijk, True)
    expected = next_click(replay.mask().astype(bool), target, spacing=volume.spacing_ijk_mm)
    assert (session.clicks[1].ijk, session.clicks[1].positive) == expected


def test_each_click_mends_a_voxel_where_the_network_finds_nothing():
    volume, target = scan()
    session = Session(Nothing(), volume)
    results = simulate(session, target, "c", "s", 0, (1, 2, 3))
    assert len({c.ijk for c in session.clicks}) == 3
    assert [r.dsc for r in results] == [pytest.approx(2 * n / (n + target.sum())) for n in (1, 2, 3)]


def test_a_structure_of_one_voxel_at_the_corner():
    volume, target = scan(box=((0, 1), (0, 1), (0, 1)))
    session = Session(Nothing(), volume)
    results = simulate(session, target, "c", "s", 0, (1, 3))
    assert [r.dsc for r in results] == [1.0, 1.0]
    assert [c.ijk for c in session.clicks] == [(0, 0, 0)]


def test_a_refused_click_carries_the_result_on():
    volume, target = scan()
    session = Refusing(Nothing(), volume)
    results = simulate(session, target, "c", "s", 0, (1, 2, 3, 9))
    assert len(session.clicks) == 2
    assert astuple(results[2])[4:6] == astuple(results[3])[4:6] == astuple(results[1])[4:6]
    assert results[1].seconds > 0 and results[2].seconds == results[3].seconds == 0.0


def test_the_same_seed_gives_the_same_clicks_and_another_seed_others():
    volume, target = scan()

    def clicks(seed, structure="s"):
        session = Session(Nothing(), volume)
        simulate(session, target, "c", structure, seed, (3,))
        return session.clicks

    assert clicks(0) == clicks(0)
    assert len({clicks(0)[0], clicks(1)[0], clicks(2)[0], clicks(0, "t")[0]}) == 4


def test_the_random_stream_is_the_same_on_every_machine():
    assert user_rng(0, "ts_example", "liver").integers(1_000_000) == 228879
    assert user_rng(0, "a", "b/c").integers(1_000_000) != user_rng(1, "a", "b/c").integers(1_000_000)


@pytest.mark.parametrize("clicks", [(), (0, 1), (-1,)])
def test_numbers_of_clicks_start_at_one(clicks):
    volume, target = scan()
    with pytest.raises(ValueError, match="clicks must be"):
        simulate(Session(Nothing(), volume), target, "c", "s", 0, clicks)


def test_a_target_of_another_shape_or_without_voxels_is_refused():
    volume, target = scan()
    with pytest.raises(ValueError, match=r"target_ijk .*\(40, 36, 30\), got \(40, 36, 29\)"):
        simulate(Session(Nothing(), volume), target[..., :-1], "c", "s", 0)
    with pytest.raises(ValueError, match="empty"):
        simulate(Session(Nothing(), volume), np.zeros_like(target), "c", "s", 0)


def test_bounding_box():
    _, target = scan()
    assert bounding_box(target) == Box((10, 8, 9), (22, 20, 21))
    assert bounding_box(np.zeros(SHAPE, bool)).empty


def test_an_untrained_network_is_clicked_to_the_end():
    torch.manual_seed(0)
    volume, target = scan()
    session = Segmenter(Checkpoint(build("tiny").eval(), (-500.0, 800.0))).session(volume)
    results = simulate(session, target, "c", "s", 0, (1, 2))
    assert [r.clicks for r in results] == [1, 2]
    assert all(0 <= r.dsc <= 1 and 0 <= r.nsd <= 1 and r.seconds > 0 and r.patches >= 1 for r in results)


def test_a_target_is_prepared_once_for_all_users():
    volume, mask = scan(spacing_mm=(1.5, 1.5, 4.0))
    target = Target.of(np.roll(mask, 3, axis=0), volume.spacing_ijk_mm)
    assert (target.box_ijk, target.voxels, target.shape_ijk) == (Box((13, 8, 9), (25, 20, 21)), 12**3, SHAPE)
    assert np.array_equal(target.on(volume.box_ijk), np.roll(mask, 3, axis=0))
    prepared, plain = (
        simulate(Session(Threshold(), volume), own, "c", "s", 1, (1, 3)) for own in (target, np.roll(mask, 3, axis=0))
    )
    assert [replace(r, seconds=0) for r in prepared] == [replace(r, seconds=0) for r in plain]


def test_nsd_at_both_tolerances_on_the_scans_own_grid():
    # The block 4.5 mm aside, slices of 4 mm: all of the surfaces is within 5 mm, the sides that moved are not in 2 mm.
    volume, target = scan(spacing_mm=(1.5, 1.5, 4.0))
    target = np.roll(target, 3, axis=0)
    (result,) = simulate(Session(Threshold(), volume), target, "c", "s", 1, (1,))
    assert result.dsc == pytest.approx(9 / 12, abs=0.001)  # the click mends one voxel
    assert result.nsd == 1.0
    assert 0.5 < result.nsd_2mm < 1.0


@pytest.mark.parametrize("user", USERS)
def test_every_user_clicks_to_the_end_and_as_the_seed_says(user):
    volume, target = scan()

    def clicks(seed):
        session = Session(Nothing(), volume)
        results = simulate(session, target, "c", "s", seed, (12,), user=user)
        assert len(session.clicks) == 12 and [r.clicks for r in results] == [12]
        return session.clicks

    assert clicks(0) == clicks(0) != clicks(1)
    assert clicks(0)[0] == simulated_first_click(target) and clicks(0)[0].positive


def simulated_first_click(target):
    """Of seed 0, the same for all users."""
    session = Session(Nothing(), scan()[0])
    simulate(session, target, "c", "s", 0, (1,))
    return session.clicks[0]


def test_a_wrong_click_does_not_stop_its_user(monkeypatch):
    # Every click is wrong: the deepest point is where the last one was, until it counts as clicked.
    monkeypatch.setattr("ctsam3d.clicks.WRONG_SIGN_SHARE", 1.0)
    volume, target = scan()
    session = Session(Nothing(), volume)
    results = simulate(session, target, "c", "s", 0, (1, 4), user="wrong-sign")
    assert [click.positive for click in session.clicks] == [True, False, False, False]
    assert len({click.ijk for click in session.clicks}) == 4 and all(target[click.ijk] for click in session.clicks)
    assert results[0].dsc == results[1].dsc  # they were not in the mask before either


def test_an_empty_mask_scores_nothing():
    volume, target = scan()

    class Silent(Session):
        def click(self, ijk, positive=True):
            """Takes the click and does nothing."""

    (result,) = simulate(Silent(Nothing(), volume), target, "c", "s", 0, (1,))
    assert (result.dsc, result.nsd, result.nsd_2mm) == (0.0, 0.0, 0.0)
