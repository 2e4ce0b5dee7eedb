"""Scores between final labels and what the model said: by hand, by name, for any value; a history by version."""

import json

import numpy as np
import pytest
from tests.app.labelling import INFO
from tests.app.pool import AFFINE, ScanPool

from ctsam3d.data.io import write_mask
from ctsam3d.labelapp.requests import RequestError
from ctsam3d.labelapp.scoring import LabelScoring, by_version, score_labels
from ctsam3d.volume import Volume

GRID = Volume(np.zeros((8, 4, 4), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))


def test_structures_are_compared_by_name_whatever_their_values():
    true, said = np.zeros((8, 4, 4), np.uint8), np.zeros((8, 4, 4), np.uint8)
    true[:4], said[:4] = 2, 7  # a perfect match on a label that is not 1
    true[5], said[4:6] = 3, 2  # 16 of 32 voxels: DSC 2 * 16 / 48
    rows = score_labels(true, said, {"a": (2,), "b": (3,), "c": (9,)}, {"b": (2,), "a": (7,), "d": (5,)}, GRID)
    assert rows[0] == {"structure": "a", "dsc": 1.0, "nsd": 1.0}
    assert (rows[1]["structure"], rows[1]["dsc"]) == ("b", pytest.approx(2 / 3, abs=1e-4))
    assert rows[1]["nsd"] == 1.0 and len(rows) == 2  # 2 mm apart, at 5 mm of tolerance


def test_what_only_one_map_holds_scores_nothing():
    true, said = np.zeros((8, 4, 4), np.uint8), np.zeros((8, 4, 4), np.uint8)
    true[0, 0, 0], said[7] = 1, 2
    rows = score_labels(true, said, {"a": (1,)}, {"b": (2,)}, GRID)
    assert rows == [{"structure": name, "dsc": 0.0, "nsd": 0.0} for name in "ab"]


def test_versions_by_hand():
    history = [{"version": "v1", "dsc": 0.8, "nsd": 1.0}, {"version": "v1", "dsc": 0.6, "nsd": 0.5, "quality": 0.9}]
    assert by_version(history) == {"v1": {"structures": 2, "dsc": 0.7, "nsd": 0.75, "quality": 0.9}}


@pytest.fixture
def pool(tmp_path):
    pool = ScanPool(tmp_path, 3)
    for image in pool.images[:2]:
        pool.label(image)
    return pool


def test_studies_are_scored_once_for_each_label(pool, tmp_path):
    scoring = LabelScoring(tmp_path / "active", (), clock=lambda: 5.0)
    assert scoring({}, pool.store) == {"scored": 0, "skipped": {}, "versions": {}}
    swapped = [{"name": "bar", "idx": 1}, {"name": "box", "idx": 2}]
    pool.label("s0", "original", swapped)  # right masks, wrong names
    found = scoring({}, pool.store)
    assert found["scored"] == 2 and found["versions"]["unknown"]["dsc"] == 0.0
    pool.store.save_label("s0", pool.store.get_label_uri("s0", "final"), "original",
                          {"label_info": INFO, "params": {"version": "v9"}})  # fmt: skip
    assert scoring({}, pool.store)["versions"]["v9"] == {"structures": 2, "dsc": 1.0, "nsd": 1.0}
    again = scoring({}, pool.store)
    assert again["scored"] == 0 and len(scoring.history()) == 4
    assert scoring.info()["versions"]["v9"]["dsc"] == 1.0


def test_a_label_on_another_grid_is_skipped_with_the_reason(pool, tmp_path):
    grid = Volume(np.zeros((9, 9, 9), np.int16), AFFINE)
    write_mask(tmp_path / "odd.nii.gz", np.ones((9, 9, 9), np.uint8), grid)
    pool.store.save_label("s1", str(tmp_path / "odd.nii.gz"), "original", {"label_info": INFO})
    found = LabelScoring(tmp_path / "active", ())({}, pool.store)
    assert "must lie on the scan's grid" in found["skipped"]["s1"]


def test_clicked_masks_come_from_the_log(pool, tmp_path):
    (tmp_path / "active").mkdir(exist_ok=True)
    row = {"structure": "box", "session": "x", "version": "v2", "dsc": 0.5, "nsd": 0.6, "quality": 0.7, "clicks": 3}
    lost = {**row, "session": "y", "dsc": None, "nsd": None}
    event = {"event": "saved", "time": 9, "image": "s0", "user": "", "structures": [row, lost]}
    (tmp_path / "active" / "effort.jsonl").write_text(json.dumps(event) + "\n")
    found = LabelScoring(tmp_path / "active", ())({}, pool.store)
    assert found["versions"] == {"v2": {"structures": 1, "dsc": 0.5, "nsd": 0.6, "quality": 0.7}}


def test_a_torn_history_costs_one_score(pool, tmp_path):
    scoring = LabelScoring(tmp_path / "active", ())
    pool.store.save_label("s0", pool.store.get_label_uri("s0", "final"), "original", {"label_info": INFO})
    scoring({}, pool.store)
    path = tmp_path / "active" / "scores.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a scoring was stopped while it wrote
    assert len(scoring.history()) == 1
    pool.store.save_label("s1", pool.store.get_label_uri("s1", "final"), "original", {"label_info": INFO})
    assert scoring({}, pool.store)["scored"] == 2
    assert scoring.info()["versions"]["unknown"]["structures"] == len(scoring.history()) == 3


def test_labels_that_the_history_has_are_not_read_again(pool, tmp_path, monkeypatch):
    scoring = LabelScoring(tmp_path / "active", ())
    pool.store.save_label("s0", pool.store.get_label_uri("s0", "final"), "original", {"label_info": INFO})
    assert scoring({}, pool.store)["scored"] == 2
    monkeypatch.setattr(LabelScoring, "_compared", lambda *_: 1 / 0)
    assert scoring({}, pool.store)["scored"] == 0


def test_tags_are_checked(pool, tmp_path):
    with pytest.raises(RequestError, match="tag must be"):
        LabelScoring(tmp_path / "active", ())({"y_pred": "../x"}, pool.store)
