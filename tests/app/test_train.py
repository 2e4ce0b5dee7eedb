"""Retraining by its rules, on a real datastore and model folder; the network's training is a stand-in until the end."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from tests.app.labelling import NAMES, SHAPE, Team, patients, write_case

from ctsam3d import checkpoint
from ctsam3d.data.io import read_case
from ctsam3d.evaluation import validation
from ctsam3d.evaluation.validation import Scores
from ctsam3d.labelapp import retrain
from ctsam3d.labelapp.retrain import NEW_SHARE, REFERENCE, REPLAY
from ctsam3d.labelapp.status import DONE, FAILED, STOPPED, Status, only_training, read_status, training_runs
from ctsam3d.labelapp.train import ClickTrainTask
from ctsam3d.labelapp.versions import BASE, Versions
from ctsam3d.model.build import PRESETS
from ctsam3d.training import loop
from ctsam3d.training.loop import Progress
from ctsam3d.training.step import RoundResult

ROUNDS = [RoundResult(0.1, 0.5, 0.01, 0.4), RoundResult(0.05, 0.3, 0.01, 0.6)]


class Trainer:
    """Stands in for `train`: changes one parameter, and remembers what it was called with."""

    def __init__(self):
        self.calls, self.fail = [], None

    def __call__(self, sources, config, out, *, device, initial, save_every, observe):
        self.calls.append((sources, config, initial))
        self.resumed = (out / "state").exists()
        out.mkdir(parents=True, exist_ok=True)
        (out / "state").write_text("state")
        if self.fail:
            raise self.fail
        observe(Progress(1, 2, 1, config.epochs, ROUNDS, 30.0))
        observe(Progress(2, 2, config.epochs, config.epochs, ROUNDS, 0.0))
        with torch.no_grad():
            next(initial.network.decoder.parameters()).add_(0.01 * len(self.calls))
        notes = {"data": [volume.name for source in sources for volume in source.volumes]}
        trained = dataclasses.replace(initial, version="run", labels=("box",), notes=notes)
        checkpoint.save(out / "model.safetensors", trained)
        return out / "model.safetensors"


class Gauge:
    """Stands in for `validate`: scores by hand, of the reference set and of validation, before and then after."""

    def __init__(self):
        self.scores, self.asked = [0.5, 0.4, 0.5, 0.6], []

    def __call__(self, segmenter, cases, **options):
        names = [case.name for case in cases]
        phantoms = any(name.startswith("phantom") for name in names)
        score = self.scores[2 * (segmenter.info.version == "run") + (not phantoms)]
        self.asked.append((segmenter.info.version, names))
        return Scores((1, 3, 5), (score,) * 3, len(names), 4) if names else None


class App:
    """An app's model folder, a team's datastore, and the trainer."""

    def __init__(self, folder, monkeypatch):
        self.team, self.versions = Team(folder), Versions(folder / "model")
        self.task = ClickTrainTask(self.versions, NAMES, "cpu")
        self.trainer, self.gauge = Trainer(), Gauge()
        case = folder / "phantom"
        write_case(case, 99, {1: "spleen", 2: "liver"})
        monkeypatch.setattr(
            retrain, "phantom_case", lambda _, spec: dataclasses.replace(read_case(case), name=spec.name)
        )
        monkeypatch.setattr(retrain, "train", self.trainer)
        monkeypatch.setattr(retrain, "validate", self.gauge)

    def press(self, **request):
        return self.task({"model": "ctsam3d", **request}, self.team.fresh())

    @property
    def drawn(self):
        """Names and shares of the last training's sources."""
        return [([volume.name for volume in source.volumes], source.share) for source in self.trainer.calls[-1][0]]


@pytest.fixture
def app(tmp_path, monkeypatch):
    return App(tmp_path, monkeypatch)


@pytest.fixture
def labelled(app):
    """Two patients for training, three for validation."""
    for number, patient in enumerate((*patients(False, 2), *patients(True, 3))):
        app.team.label(f"study{number}", number, patient)
    return app


# ---- the whole way -------------------------------------------------------------------------------------------------


def test_better_weights_are_published(labelled):
    outcome = labelled.press()
    version = labelled.versions.current()
    assert outcome == labelled.task.stats()["outcome"]
    assert (outcome["published"], outcome["version"], outcome["candidate"]) == (True, version, version)
    assert version.startswith("v1-")
    assert "3 validation studies better, 0.4000 -> 0.6000" in outcome["reason"]
    base, published = (checkpoint.load(labelled.versions.base_path), checkpoint.load(labelled.versions.served_path()))
    notes = published.notes
    assert (notes["parent"], notes["lineage"]) == (base.version, [base.sha256])
    assert notes["gate"] == outcome["reason"] and len(notes["trained"]) == 2
    assert notes["scores"]["before"] == {"reference": {"1": 0.5, "3": 0.5, "5": 0.5},
                                         "validation": {"1": 0.4, "3": 0.4, "5": 0.4}}  # fmt: skip
    assert set(published.labels) == {*base.labels, "box"}
    assert {*base.notes["data"], "study0", "study1"} <= set(notes["data"])
    assert not (labelled.versions.folder / "run").exists()


def test_where_a_training_starts_and_what_it_draws_from(labelled):
    labelled.press()
    (_, config, initial) = labelled.trainer.calls[0]
    (new, share), (others, rest) = labelled.drawn
    assert (set(new), share) == ({"study0", "study1"}, NEW_SHARE == 0.7 and NEW_SHARE)
    assert (len(others), rest) == (len(REPLAY), pytest.approx(0.3))
    base = checkpoint.load(labelled.versions.base_path)
    assert initial.sha256 == base.sha256 and config.hu_window == base.hu_window
    assert (config.preset, config.trainable, config.frozen_statistics) == ("tiny", "decoder", True)
    assert (config.epochs, config.learning_rate, config.batch_size, config.schedule) == (10, 3e-4, 2, "cosine")


def test_validation_clicks_the_patients_who_are_never_trained_on(labelled):
    labelled.press()
    base = checkpoint.load(labelled.versions.base_path).version
    reference = [spec.name for spec in REFERENCE]
    assert [version for version, _ in labelled.gauge.asked] == [base, base, "run", "run"]
    assert labelled.gauge.asked[0][1] == labelled.gauge.asked[2][1] == reference
    assert set(labelled.gauge.asked[1][1]) == set(labelled.gauge.asked[3][1]) == {"study2", "study3", "study4"}


def test_worse_weights_are_not(labelled):
    labelled.gauge.scores = [0.5, 0.4, 0.48, 0.6]
    outcome = labelled.press()
    assert not outcome["published"] and "more than 0.01 worse" in outcome["reason"]
    assert labelled.versions.current() == BASE
    assert outcome["version"] == checkpoint.load(labelled.versions.served_path()).version != outcome["candidate"]
    assert checkpoint.load(labelled.versions.path(outcome["candidate"])).notes["accepted"] is False
    stats = labelled.task.stats()
    assert stats["state"] == DONE and stats["best_metric"] == pytest.approx(0.4)
    assert not (labelled.versions.folder / "run").exists()


def test_few_validation_studies_leave_it_to_the_reference_set(app):
    app.team.label("one", 0, patients(False, 1)[0])
    app.gauge.scores = [0.5, 0.0, 0.48, 0.0]
    assert not app.press()["published"]
    app.gauge.scores = [0.5, 0.0, 0.495, 0.0]
    outcome = app.press()
    assert outcome["published"] and "it decides alone, as there are 0 validation studies" in outcome["reason"]


def test_the_next_training_replays_what_was_learnt(labelled):
    labelled.press()
    labelled.team.label("study9", 9, patients(False, 3)[2])
    labelled.press()
    (new, _), (others, _) = labelled.drawn
    assert new == ["study9"] and {"study0", "study1"} <= set(others) and len(others) == len(REPLAY) + 2
    published = checkpoint.load(labelled.versions.served_path())
    assert len(published.notes["trained"]) == 3 and len(published.notes["lineage"]) == 2
    labelled.press()  # nothing is new: everything counts as new
    (new, _), (others, _) = labelled.drawn
    assert set(new) == {"study0", "study1", "study9"} and len(others) == len(REPLAY)


def test_a_corrected_label_is_new(labelled):
    labelled.press()
    labelled.team.label("study0", 0, patients(False, 1)[0], values=(1,))
    labelled.press()
    assert labelled.drawn[0][0] == ["study0"] and "study1" in labelled.drawn[1][0]
    cached = list((labelled.versions.folder / "cache").iterdir())
    assert len(cached) == 5 + 1  # the studies as they are by now, and the stand-in for every phantom


# ---- studies that cannot be used -----------------------------------------------------------------------------------


def test_bad_studies_are_skipped_with_a_reason(labelled, tmp_path):
    for number, name in enumerate(("broken image", "broken label", "empty", "small", "twin", "nameless")):
        labelled.team.label(name, 20 + number, patients(False, 1)[0])
    studies = labelled.team.studies
    (studies / "broken image.nii.gz").write_bytes(b"no image")
    (studies / "labels/final/broken label.nii.gz").write_bytes(b"no label")
    labelled.team.label("empty", 22, labels=np.zeros(SHAPE, np.uint8))
    labelled.team.label("small", 23, labels=np.pad(np.ones((2, 2, 2), np.uint8), [(4, n - 6) for n in SHAPE]))
    labelled.team.label("twin", 0, patients(False, 1)[0])
    labelled.team.label("nameless", 25, info=[{"name": "x", "idx": 9}])
    shutil.copyfile(studies / "labels/final/study1.nii.gz", studies / "labels/final/nameless.nii.gz")
    labelled.press()
    skipped = labelled.task.stats()["skipped"]
    assert set(skipped) == {"broken image", "broken label", "empty", "small", "twin", "nameless"}
    assert skipped["broken image"].startswith("image cannot be read")
    assert skipped["broken label"].startswith("label cannot be read")
    assert skipped["empty"] == "label must hold a structure, it is empty"
    assert "at least 50 model voxels" in skipped["small"]
    assert skipped["twin"] == "image and label are those of study0"
    assert "value with a name" in skipped["nameless"]
    assert set(labelled.drawn[0][0]) == {"study0", "study1"}
    assert str(tmp_path) not in json.dumps(skipped)


def test_partial_labels_and_names_of_ones_own(app):
    patient = patients(False, 1)[0]
    app.team.label("part", 0, patient, values=(2,))
    app.team.label("plain", 1, patient, info=())
    app.press()
    volumes = {volume.name: volume for volume in app.trainer.calls[0][0][0].volumes}
    assert volumes["part"].structures == ("bar",)
    assert volumes["plain"].structures == NAMES  # of the app


@pytest.mark.parametrize("labelled_as", ["nothing", "broken", "validation"])
def test_no_usable_study_is_an_error_that_says_so(app, labelled_as):
    if labelled_as != "nothing":
        app.team.label("s", 0, patients(labelled_as == "validation", 1)[0])
    if labelled_as == "broken":
        (app.team.studies / "s.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="no usable study") as caught:
        app.press()
    words = {"nothing": "save a label as final", "broken": "s: image", "validation": "held out for validation"}
    assert words[labelled_as] in str(caught.value)
    stats = app.task.stats()
    assert stats["state"] == FAILED and stats["error"] == f"ValueError: {caught.value}"
    assert app.trainer.calls == [] and app.versions.current() == BASE


def test_a_patient_stays_in_validation_when_the_entry_changes(labelled):
    labelled.press()
    free, held = patients(False, 4)[3], patients(True, 3)[0]
    labelled.team.label("study2", 2, free)  # the same image, by now of somebody else
    labelled.team.label("another", 7, free)  # and another image of that patient
    labelled.press()
    assert {"study2", "another"} <= set(labelled.gauge.asked[-1][1])
    labelled.team.label("study0", 0, held)  # was trained on, and turns out to be of a patient in validation
    labelled.press()
    drawn = {name for names, _ in labelled.drawn for name in names}
    assert not drawn & {"study0", "study2", "another", "study3", "study4"}
    assert labelled.task.stats()["skipped"]["study0"] == "was trained on before its patient came into validation"


# ---- stopped and failed runs ---------------------------------------------------------------------------------------


def test_a_stopped_training_goes_on(labelled):
    labelled.trainer.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        labelled.press()
    assert not labelled.trainer.resumed
    labelled.trainer.fail = None
    left = labelled.versions.folder / "run" / "state" / ".writing-x-state.pt"
    left.write_bytes(b"half")
    assert labelled.press()["published"]
    assert labelled.trainer.resumed and not left.exists()
    assert len(labelled.gauge.asked) == 4  # the scores before the training were kept


@pytest.mark.parametrize("change", ["option", "study", "base"])
def test_with_other_studies_options_or_weights_it_starts_anew(labelled, change):
    if change == "base":
        labelled.press()
    labelled.trainer.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        labelled.press()
    labelled.trainer.fail = None
    if change == "study":
        labelled.team.label("more", 11, patients(False, 1)[0])
    if change == "base":
        labelled.versions.roll_back()
    assert labelled.press(**({"seed": 1} if change == "option" else {}))["published"]
    assert not labelled.trainer.resumed


@pytest.mark.parametrize("moment", range(4))
def test_a_failing_validation_leaves_the_old_version(labelled, monkeypatch, moment):
    assert labelled.press()["published"]
    old, gauge = labelled.versions.current(), labelled.gauge
    gauge.asked.clear()

    def failing(segmenter, cases, **options):
        scores = gauge(segmenter, cases)
        return 1 / 0 if len(gauge.asked) == moment + 1 else scores

    monkeypatch.setattr(retrain, "validate", failing)
    with pytest.raises(ZeroDivisionError):
        labelled.press()
    assert labelled.versions.current() == old and len(labelled.versions.list()) == 1
    assert labelled.task.stats()["error"] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(retrain, "validate", Gauge())
    assert labelled.press()["published"]


def test_a_rollback_during_a_training_stands(labelled, monkeypatch):
    labelled.press()
    first, train = labelled.versions.current(), labelled.trainer

    def interrupted(*arguments, **options):
        labelled.versions.roll_back("base")
        return train(*arguments, **options)

    monkeypatch.setattr(retrain, "train", interrupted)
    outcome = labelled.press()
    assert (outcome["published"], outcome["version"]) == (False, BASE)
    assert f"switched from {first} to base" in outcome["reason"]
    assert labelled.versions.current() == BASE


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
    with only_training(tmp_path):
        assert read_status(status.path)["state"] == "training"
    status.path.write_text("{half")
    assert read_status(status.path) == {}


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
    assert dataclasses.asdict(plain) == {**counts, "learning_rate": 3e-4, "train": "decoder", "device": "cpu"}
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


def test_only_networks_of_presets(app):
    base = checkpoint.load(app.versions.base_path)
    for name, preset in PRESETS.items():
        for encoder in ("rest", "unet"):
            assert retrain._preset(dataclasses.replace(preset, encoder=encoder)) == name
    with pytest.raises(ValueError, match=r"weights must have the network of a preset \(base, small, tiny\)"):
        retrain._preset(dataclasses.replace(base.network.config, decoder_width=48))


# ---- the real training ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_loop_stopped_and_started_again(labelled, monkeypatch):
    """Two steps of the real training, a stop after the first, and the real validation."""

    def stopping(*arguments, observe, **more):
        def stop(progress):
            observe(progress)
            if progress.step == 2 and len(stops) == 0:
                stops.append(progress.step)
                raise KeyboardInterrupt

        return loop.train(*arguments, observe=stop, **{**more, "save_every": 1})

    stops = []
    monkeypatch.setattr(retrain, "train", stopping)
    monkeypatch.setattr(retrain, "validate", lambda s, c, **_: validation.validate(s, c, seeds=1, max_structures=1))
    monkeypatch.setattr(retrain, "REPLAY", REPLAY[:1])
    monkeypatch.setattr(retrain, "REFERENCE", REFERENCE[:1])
    request = {"max_epochs": 1, "batch_size": 1, "samples_per_volume": 1, "learning_rate": 1e-4}
    with pytest.raises(KeyboardInterrupt):
        labelled.press(**request)
    outcome = labelled.press(**request)
    stats = labelled.task.stats()
    assert (stats["step"], stats["steps"]) == (3, 3) and len(stats["rounds"]) == 5
    assert set(stats["validation"]) == {"before", "after"} and stats["validation"]["before"]["5"] > 0
    assert outcome["published"] == (labelled.versions.current() != BASE)
