"""Retraining by its rules, on a real datastore and model folder; the network's training is a stand-in until the end."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.app.labelling import NAMES, SHAPE, patients
from tests.app.standin import Gauge

from ctsam3d import checkpoint
from ctsam3d.evaluation import validation
from ctsam3d.labelapp import retrain
from ctsam3d.labelapp.retrain import NEW_SHARE, REFERENCE, REPLAY
from ctsam3d.labelapp.status import DONE, FAILED
from ctsam3d.labelapp.versions import BASE
from ctsam3d.training import loop

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


def test_what_is_published_lies_halfway(labelled):
    """The stand-in adds 0.01 to one parameter."""
    labelled.press()
    base, published = (checkpoint.load(labelled.versions.base_path), checkpoint.load(labelled.versions.served_path()))
    first, second = (next(own.network.decoder.parameters()).detach() for own in (base, published))
    assert torch.allclose(second - first, torch.full_like(first, 0.005), atol=1e-3)  # stored in half precision
    assert (second - first).mean().item() == pytest.approx(0.005, abs=2e-4)
    others = [(a, b) for a, b in zip(base.network.parameters(), published.network.parameters())]
    assert sum(not torch.equal(a, b) for a, b in others) == 1


def test_weights_whose_p_got_worse_are_not_published(labelled, monkeypatch):
    scores = iter([0.9, 0.8])
    monkeypatch.setattr(retrain, "proposal_score", lambda segmenter, cases: next(scores))
    outcome = labelled.press()
    assert not outcome["published"] and "cross-patch prompts more than 0.02 worse" in outcome["reason"]
    assert labelled.task.stats()["proposals"] == {"before": 0.9, "after": 0.8}


def test_a_reference_set_without_a_structure_is_an_error(labelled, monkeypatch):
    monkeypatch.setattr(retrain, "validate", lambda segmenter, cases, **_: None)
    with pytest.raises(ValueError, match="reference set must hold a structure that is large enough, it has none"):
        labelled.press()


def test_where_a_training_starts_and_what_it_draws_from(labelled):
    labelled.press()
    (_, config, initial) = labelled.trainer.calls[0]
    (new, share), (others, rest) = labelled.drawn
    assert set(new) == {"study0", "study1"} and share == NEW_SHARE == 0.7
    assert (len(others), rest) == (len(REPLAY), pytest.approx(0.3))
    base = checkpoint.load(labelled.versions.base_path)
    assert initial.sha256 == base.sha256 and config.hu_window == base.hu_window
    assert (config.preset, config.trainable, config.frozen_statistics) == (None, "decoder", True)  # its own network
    assert (config.epochs, config.learning_rate, config.batch_size, config.schedule) == (10, 1e-4, 2, "cosine")


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


def test_labels_saved_meanwhile_do_not_change_the_comparison(labelled, monkeypatch):
    """One validation study gets another label while the training runs, one an empty one, and one goes away."""
    train, asked = labelled.trainer, []

    def meanwhile(*arguments, **options):
        studies = labelled.team.studies
        labelled.team.label("study2", 2, patients(True, 1)[0], values=(1,))
        labelled.team.label("study3", 3, patients(True, 2)[1], labels=np.zeros(SHAPE, np.uint8))
        (studies / "study4.nii.gz").unlink()
        return train(*arguments, **options)

    def sizes(segmenter, cases, **options):
        cases = list(cases)
        asked.append({case.name: [int(case.mask(name).sum()) for name in case.names] for case in cases})
        return labelled.gauge(segmenter, cases)

    monkeypatch.setattr(retrain, "train", meanwhile)
    monkeypatch.setattr(retrain, "validate", sizes)
    assert labelled.press()["published"]
    assert asked[1] == asked[3] and set(asked[1]) == {"study2", "study3", "study4"} and len(asked[1]["study2"]) == 2


def test_the_reference_set_does_not_erode(app):
    """Each version may be a point worse than the best of its ancestors, not than the last one."""
    app.team.label("one", 0, patients(False, 1)[0])
    app.gauge.scores = [0.5, 0.0, 0.492, 0.0]
    assert app.press()["published"]
    app.gauge.scores = [0.492, 0.0, 0.484, 0.0]
    outcome = app.press()
    assert not outcome["published"] and "more than 0.01 worse, 0.5000 -> 0.4840" in outcome["reason"]


def test_p_does_not_erode(labelled, monkeypatch):
    scores = iter([0.9, 0.885, 0.885, 0.87])
    monkeypatch.setattr(retrain, "proposal_score", lambda segmenter, cases: next(scores))
    assert labelled.press()["published"]
    outcome = labelled.press()
    assert not outcome["published"] and "more than 0.02 worse, 0.9000 -> 0.8700" in outcome["reason"]


def test_a_stray_file_in_the_cache_is_left_alone(labelled):
    stray = labelled.versions.folder / "cache" / ".DS_Store"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"")
    assert labelled.press()["published"] and stray.exists()


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


@pytest.mark.parametrize("error", [FloatingPointError("gradients must stay finite"), loop.RunError("no state")])
def test_a_run_that_would_fail_again_is_cleared(labelled, error):
    labelled.trainer.fail = error
    with pytest.raises(type(error)):
        labelled.press()
    labelled.trainer.fail = None
    assert labelled.press()["published"] and not labelled.trainer.resumed


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
