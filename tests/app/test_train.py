"""The Train button's side of a training: its options checked, one at a time, and the status that it tells."""

import dataclasses
import json
import threading

import pytest
from tests.app.labelling import NAMES
from tests.app.standin import Trainer

from ctsam3d.labelapp import retrain
from ctsam3d.labelapp.status import DONE, STOPPED, Status, only_training, read_status, training_runs
from ctsam3d.labelapp.train import ClickTrainTask
from ctsam3d.labelapp.versions import Versions

# ---- status --------------------------------------------------------------------------------------------------------


def test_status_before_during_and_after(labelled, monkeypatch, caplog):
    assert labelled.task.stats() == {}
    seen = []

    def watched(*arguments, observe, **options):
        def look(progress):
            observe(progress)
            seen.append(labelled.task.stats())

        return Trainer()(*arguments, observe=look, **options)

    monkeypatch.setattr(retrain, "train", watched)
    monkeypatch.setattr("ctsam3d.labelapp.status._WRITE_SECONDS", 0.0)
    caplog.set_level("INFO")
    labelled.press(max_epochs=3)
    during, after = seen[0], labelled.task.stats()
    assert during["state"] == "training" and (during["epoch"], during["total_epochs"]) == (1, 3)
    assert (during["step"], during["steps"]) == (1, 2) and during["seconds_left"] >= 30
    assert during["rounds"][0] == {"focal": 0.1, "dice": 0.5, "heatmap": 0.01, "dsc": 0.4}
    assert during["validation"] == {"before": {"1": 0.4, "3": 0.4, "5": 0.4}} and "total_time" not in during
    assert set(during["studies"]["training"]) == {"study0", "study1"} and len(during["studies"]["validation"]) == 3
    assert after["state"] == DONE and after["total_time"] == "0:00:0" + after["total_time"][-1]
    assert after["validation"]["after"] == {"1": 0.6, "3": 0.6, "5": 0.6} and after["best_metric"] == 0.6
    assert "epoch 1 of 3, step 1 of 2" in caplog.text and "outcome: published" in caplog.text
    json.dumps(after)


def test_a_killed_training_is_told_as_stopped(tmp_path):
    status = Status(tmp_path / "status.json")
    status.update(state="training", epoch=3, seconds_left=9)
    stopped = read_status(status.path)
    assert (stopped["state"], stopped["epoch"]) == (STOPPED, 3) and "seconds_left" not in stopped
    assert stopped["total_time"]  # OHIF and Slicer take it for over
    with only_training(tmp_path):
        assert read_status(status.path)["state"] == "training"
    status.path.write_text("{half")
    assert read_status(status.path) == {}


def test_one_training_at_a_time(labelled, monkeypatch):
    monkeypatch.setattr("ctsam3d.labelapp.status._LOCK_SECONDS", 0.2)
    status = Status(labelled.versions.folder / "status.json")
    with only_training(labelled.versions.folder):
        status.update(state="training")
        with pytest.raises(
            RuntimeError, match="training must run once at a time in an app folder, another one runs in"
        ):
            labelled.press()
        assert labelled.task.stats()["state"] == "training"  # of the one that runs
    assert labelled.press()["published"]


def test_asking_whether_a_training_runs_hinders_none(tmp_path):
    assert not training_runs(tmp_path) and not (tmp_path / ".train.lock").exists()
    end = threading.Event()

    def ask():
        while not end.is_set():
            training_runs(tmp_path)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(50):
        with only_training(tmp_path):
            assert training_runs(tmp_path)
    end.set()
    thread.join()


def test_status_is_written_once_a_second_at_most(tmp_path):
    status = Status(tmp_path / "status.json")
    status.update(a=1)
    status.update(now=False, a=2)
    assert json.loads(status.path.read_text())["a"] == 1
    status.update(b=1)
    assert json.loads(status.path.read_text())["a"] == 2


# ---- options -------------------------------------------------------------------------------------------------------


def options(**request):
    return ClickTrainTask(Versions("nowhere"), NAMES, "cpu").options(request)


def test_defaults_are_what_clients_are_shown():
    task = ClickTrainTask(Versions("nowhere"), NAMES, "cpu")
    shown = task.info()["config"]
    assert shown["train"] == ["decoder", "full"] and shown["device"][0] == "cpu" and shown["max_epochs"] == 10
    plain = task.options({"model": "ctsam3d", "client_id": "x", "local_rank": 0, "gpus": "all"})
    assert plain == task.options(shown) == options(train="decoder", max_epochs="10", batch_size=2.0, seed="42")
    counts = {"max_epochs": 10, "batch_size": 2, "samples_per_volume": 8, "seed": 42}
    assert dataclasses.asdict(plain) == {**counts, "learning_rate": 1e-4, "train": "decoder", "device": "cpu"}
    assert task.options({"train": "full", "ctsam3d": {"max_epochs": 3}}).train == "full"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_epochs", 0, "a whole number from 1 to 10000, got '0'"),
        ("max_epochs", 1.5, "a whole number"),
        ("max_epochs", "ten", "got 'ten'"),
        ("max_epochs", True, "got 'True'"),
        ("max_epochs", None, "got 'None'"),
        ("learning_rate", 0, "a number above 0, at most 0.1, got '0'"),
        ("learning_rate", float("nan"), "got 'nan'"),
        ("learning_rate", -1e-4, "above 0"),
        ("learning_rate", [1e-4], "above 0"),
        ("batch_size", 1000, "from 1 to 256"),
        ("samples_per_volume", 0, "from 1 to 1000"),
        ("seed", -1, "from 0 to 2147483647"),
        ("train", "head", "one of decoder, full, got 'head'"),
        ("train", ["full"], "one of decoder, full"),
        ("device", "tpu", "one of cpu"),
    ],
)
def test_bad_options(name, value, rule):
    with pytest.raises(ValueError, match=f"^{name} must be") as caught:
        options(**{name: value})
    assert rule in str(caught.value)


def test_an_unknown_option():
    with pytest.raises(ValueError, match=r"option must be one of max_epochs, .* got 'epochs'"):
        options(epochs=3)
