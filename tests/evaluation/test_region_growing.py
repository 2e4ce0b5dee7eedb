"""The baseline: what grows from clicks in boxes of known HU, by the protocol of the network."""

import numpy as np
import pytest

from ctsam3d.data.scenes import make_scene, write_scene_case
from ctsam3d.evaluation import evaluate
from ctsam3d.evaluation.region_growing import NAME, RegionGrower
from ctsam3d.evaluation.simulate import simulate
from ctsam3d.volume import Volume


@pytest.fixture
def volume():
    """Two boxes of 100 and 200 HU that touch at i = 20, in fat, with noise; the axes differ in length."""
    rng = np.random.default_rng(0)
    hu = np.full((40, 30, 20), -100.0)
    hu[10:20, 8:20, 5:15] = 100
    hu[20:30, 8:20, 5:15] = 200
    return Volume((hu + rng.normal(0, 5, hu.shape)).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))


def test_a_click_takes_its_box_and_a_negative_one_gives_back_the_other(volume):
    session = RegionGrower().session(volume)
    session.click((15, 14, 10))
    box = np.zeros(volume.shape_ijk, bool)
    box[10:20, 8:20, 5:15] = True
    mask = session.mask().astype(bool)
    assert (mask & box).sum() > 0.9 * box.sum() and not (mask & ~box).any()
    session.click((25, 14, 10))
    assert session.mask()[25, 14, 10] and session.mask()[15, 14, 10]
    session.click((25, 14, 9), positive=False)
    assert not session.mask()[25, 14, 9] and session.mask()[15, 14, 10]


def test_without_spreading_it_stays_within_a_patch_around_the_clicks():
    hu = np.zeros((120, 20, 20), np.int16)
    hu += np.random.default_rng(0).normal(0, 5, hu.shape).astype(np.int16)
    volume = Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    session = RegionGrower().session(volume, expand=False)
    session.click((60, 10, 10))
    reached = np.flatnonzero(session.mask().any((1, 2)))
    assert (reached[0], reached[-1]) == (60 - 24, 60 + 24)  # 48 mm


def test_the_simulated_user_clicks_it(volume):
    target = np.zeros(volume.shape_ijk, bool)
    target[20:30, 8:20, 5:15] = True
    results = simulate(RegionGrower().session(volume), target, "case", "box", 0, clicks=(1, 3))
    assert [r.clicks for r in results] == [1, 3] and results[-1].dsc > 0.9 and results[0].patches == 0


def test_a_click_outside_is_refused(volume):
    with pytest.raises(ValueError, match="outside"):
        RegionGrower().session(volume).click((40, 0, 0))


def test_evaluate_takes_it_in_the_place_of_weights(tmp_path):
    write_scene_case(tmp_path / "data" / "scene", make_scene(3, (48, 48, 48)))
    report = evaluate(tmp_path / "data", tmp_path / "out", weights=NAME, clicks=[1], seeds=1, min_voxels=2000)
    assert "region-growing" in report.read_text()
