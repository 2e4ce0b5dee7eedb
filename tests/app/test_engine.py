"""The engine behind both models, without a server: sessions forgotten in mid-use, and a network that fails."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctsam3d.data.io import write_volume
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask
from ctsam3d.labelapp.sessions import SessionStore
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
    return ClickEngine(Versions(tmp_path), "cpu")


def click(engine, scan, params, client):
    file, reply = ClickInferTask(engine, ("spleen", "liver"), "").segment(params, scan, "ball", client)
    labels = np.asanyarray(nib.load(file).dataobj).copy()
    Path(file).unlink()
    return labels, reply


def test_sessions_that_are_forgotten_in_mid_use_change_no_mask(engine, scan):
    engine._sessions = SessionStore(max_sessions=1)
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
