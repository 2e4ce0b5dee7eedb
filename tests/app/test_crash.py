"""kill -9 of the real server while labels are saved; and that what is looked for would be found."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from tests.app.conftest import APP

from ctsam3d.data.io import write_mask
from ctsam3d.labelapp import crash
from ctsam3d.labelapp.crash import Saves, check, number_of, numbered
from ctsam3d.volume import Volume


@pytest.mark.slow
def test_no_acknowledged_label_is_lost():
    """``CTSAM3D_CRASHES=100`` is the full size; that takes an hour."""
    found = crash.crash(APP, kills=int(os.environ.get("CTSAM3D_CRASHES", 2)), seed=3)
    assert found.faults == []
    assert found.acknowledged > 0


def test_a_mask_says_its_number():
    for number in (1, 2, 77, 2**23):
        assert number_of(numbered(number)) == number
    assert numbered(0).any()


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """A folder with one label, of save 5, and a server that tells what it is told to."""
    said = {"number": 5}
    history = [{"number": n} for n in (1, 3, 5)]
    grid = Volume(np.zeros(numbered(5).shape, np.int16), np.eye(4))
    write_mask(tmp_path / "labels" / crash.TAG / "a.nii.gz", numbered(5), grid)
    write_mask(tmp_path / ".history" / crash.TAG / "a" / "0001.nii.gz", numbered(1), grid)
    (tmp_path / "datastore_v2.json").write_text("{}")

    def get(address, **_):
        return SimpleNamespace(
            ok=True, status_code=200, json=lambda: history if address.endswith("history") else dict(said)
        )

    monkeypatch.setattr(crash.requests, "get", get)
    monkeypatch.setattr(crash, "_LOOK_SECONDS", 0)
    return SimpleNamespace(path=tmp_path, said=said, history=history)


def faults(studies, *acknowledged: int) -> list[str]:
    return check("http://server", studies.path, [Saves("a", 9, list(acknowledged)), Saves("b")])


def test_nothing_is_wrong_where_all_is_there(studies):
    assert faults(studies, 1, 3) == []
    assert faults(studies, 1, 3, 5) == []


def test_what_is_wrong_is_found(studies):
    assert "save 6 was acknowledged, and 5 is there" in faults(studies, 6)[0]
    assert "saves [2, 4]" in faults(studies, 1, 2, 3, 4)[0]
    studies.said["number"] = 3
    assert "the label of save 5 has the names of save 3" in faults(studies, 1)[0]


def test_half_written_files_are_found(studies):
    (studies.path / ".writing-x").write_text("")
    assert faults(studies) == ["left half-written: .writing-x"]
    (studies.path / ".writing-x").unlink()
    (studies.path / ".history" / crash.TAG / "a" / "0001.nii.gz").write_bytes(b"half")
    assert "0001.nii.gz cannot be read" in faults(studies)[0]
    (studies.path / "datastore_v2.json").write_text("{")
    with pytest.raises(json.JSONDecodeError):
        faults(studies)
