"""The engine behind both models, without a server: sessions forgotten in mid-use, and a network that fails."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctsam3d.data.io import write_volume
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask
from ctsam3d.labelapp.versions import Versions
from ctsam3d.volume import Volume

FIRST, SECOND, OUTSIDE = [20, 18, 9], [24, 20, 10], [3, 3, 3]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A bright ball in a darker box."""
    centred = np.indices((40, 36, 20)) - np.array([20, 18, 10])[:, None, None, None]
    inside = (centred * np.array([2.0, 2.0, 4.0])[:, None, None, None]) ** 2
    array = np.where(inside.sum(axis=0) < 24**2, 120, -80).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "ball.nii.gz"
    write_volume(path, Volume(array, np.diag([2.0, 2.0, 4.0, 1.0])))
    return str(path)


@pytest.fixture
def engine(tmp_path):
    made = ClickEngine(Versions(tmp_path), "cpu")
    yield made
    made.close()


def click(engine, scan, params, client):
    file, reply = ClickInferTask(engine, ("spleen", "liver"), "").segment(params, scan, "ball", client)
    labels = np.asanyarray(nib.load(file).dataobj).copy()
    Path(file).unlink()
    return labels, reply


def test_sessions_that_are_forgotten_in_mid_use_change_no_mask(engine, scan):
    engine._sessions._max_sessions = 1
    jobs = [({"liver": [FIRST]}, "a"), ({"liver": [FIRST, SECOND]}, "a"), ({"spleen": [SECOND], "liver": [FIRST]}, "b")]
    alone = [click(engine, scan, *job)[0] for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: click(engine, scan, *job)[0], jobs * 2))
    for expected, found in zip(alone * 2, together):
        assert np.array_equal(expected, found)
    assert len(engine._sessions) == 1


def test_a_click_on_which_the_network_fails_changes_nothing(engine, scan, monkeypatch):
    one, two = {"liver": [FIRST]}, {"liver": [FIRST, SECOND], "background": [OUTSIDE]}
    before, _ = click(engine, scan, one, "a")
    expected, _ = click(engine, scan, two, "fresh")
    with monkeypatch.context() as broken:
        broken.setattr(engine.segmenter(), "decode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            click(engine, scan, two, "a")
        again, reply = click(engine, scan, one, "a")  # needs no network
    assert np.array_equal(again, before)
    assert reply["latencies"]["decode"] == 0
    assert np.array_equal(click(engine, scan, two, "a")[0], expected)


def test_an_expansion_cut_short_ends_in_the_background_with_the_same_mask(tmp_path, engine):
    """A bright rod, longer than a patch."""
    i, j, _ = np.indices((40, 36, 60))
    rod = np.where((i - 20) ** 2 + (j - 18) ** 2 < 10**2, 120, -80).astype(np.int16)
    scan = str(tmp_path / "rod.nii.gz")
    write_volume(scan, Volume(rod, np.diag([2.0, 2.0, 4.0, 1.0])))
    engine._expand_seconds = 1000
    expected, reply = click(engine, scan, {"liver": [FIRST]}, "a")
    assert reply["expansion"]["liver"].keys() == {"proposed", "segmented", "rejected", "ended"}
    assert reply["expansion"]["liver"]["proposed"] > 0
    hasty = ClickEngine(Versions(tmp_path), "cpu", expand_seconds=0)
    click(hasty, scan, {"liver": [FIRST]}, "a")
    thread = hasty._background._thread
    if thread is not None:  # else it has ended already
        thread.join(120)
    found, again = click(hasty, scan, {"liver": [FIRST]}, "a")
    hasty.close()
    assert again["expansion"] == reply["expansion"]
    assert np.array_equal(found, expected)
