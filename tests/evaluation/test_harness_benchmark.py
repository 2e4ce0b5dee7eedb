"""The benchmark of the harness counts all clicks and all of the time. No test here bounds a time."""

import pytest
import torch
from tests.data import miniatures

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.evaluation.harness_benchmark import benchmark_evaluation
from ctsam3d.model import build


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "w.safetensors", Checkpoint(build("tiny").eval(), (-500.0, 800.0)))
    return tmp_path / "w.safetensors"


def test_rows_tell_the_network_from_the_rest(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("ctsam3d.evaluation.harness_benchmark.MIN_VOXELS", 50)
    monkeypatch.setattr("ctsam3d.evaluation.harness_benchmark.CLICK_COUNTS", (1, 2))
    miniatures.cases(tmp_path / "data")
    a, b, both = benchmark_evaluation(tmp_path / "data", weights, structures=["liver"], expand=False)
    assert [row["case"] for row in (a, b, both)] == ["a", "b", "all"]
    for row in (a, b):
        assert (row["structures"], row["clicks"]) == (1, 2)  # an untrained network is never right
        assert all(row[name] > 0 for name in ("network s", "rest of clicks s", "reading s", "harness s"))
    for name in ("structures", "clicks", "network s", "rest of clicks s", "reading s", "harness s"):
        assert both[name] == pytest.approx(a[name] + b[name])
    added = both["harness s"] + both["reading s"]
    assert both["harness / network %"] == pytest.approx(100 * added / both["network s"])


def test_a_case_that_cannot_be_read_is_named(weights, tmp_path):
    miniatures.cases(tmp_path / "data", ("a",))
    (tmp_path / "data" / "a" / "labels.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cases must be usable, a is not: .*labels\.json"):
        benchmark_evaluation(tmp_path / "data", weights)
