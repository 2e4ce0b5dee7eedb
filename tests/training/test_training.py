"""What is drawn, the schedule, the click rounds, and that a run can be interrupted."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.data.io import Case
from ctsam3d.model import build
from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.loop import Run, train
from ctsam3d.training.patches import Sample, draw_sample, training_volume
from ctsam3d.training.step import train_batch
from ctsam3d.volume import OUTSIDE_HU, Volume

STILL = Augmentation(flip=0, spatial=0, intensity=0, noise=0, blur=0)
QUICK = TrainingConfig(preset="tiny", epochs=1, samples_per_volume=4, batch_size=1, rounds=2, learning_rate=1e-3)


def case(shape=(40, 50, 60), spacing=1.5):
    """Two boxes, "big" and "small", in air; RAS, so that the model grid reverses i and j."""
    masks = {"big": np.zeros(shape, bool), "small": np.zeros(shape, bool)}
    masks["big"][5:25, 5:25, 5:25] = True
    masks["small"][30:36, 30:36, 40:46] = True
    hu = np.where(masks["big"], 100, np.where(masks["small"], 300, -1000)).astype(np.int16)
    volume = Volume(hu, np.diag([spacing, spacing, spacing, 1.0]))
    return Case("boxes", volume, {name: (lambda m=mask: m) for name, mask in masks.items()})


@pytest.fixture(scope="module")
def volume():
    return training_volume(case(), 1.5)


def test_training_volume(volume):
    assert volume.hu_zyx.shape == (60, 50, 40) and volume.sizes == {1: 8000, 2: 216}
    assert all((volume.labels_zyx[tuple(volume.anchors[v].T)] == v).all() for v in (1, 2))
    assert (volume.hu_zyx[volume.labels_zyx == 2] == 300).all()
    assert volume.labels_zyx[5, 44, 34] == 1 and volume.labels_zyx[5, 5, 5] == 0  # (z, y, x) = (k, 49 - j, 39 - i)


def test_no_structure_left():
    with pytest.raises(ValueError, match="boxes must hold a structure of at least 100000"):
        training_volume(case(), 1.5, min_voxels=100_000)


def test_sample_holds_the_structure_and_its_image(volume):
    rng = np.random.default_rng(0)
    for _ in range(50):
        sample = draw_sample(volume, 64, 0.7, STILL, rng)
        assert sample.hu.shape == sample.target.shape == (64, 64, 64) and sample.target.any()
        values = np.unique(sample.hu[sample.target])
        assert values.tolist() in ([100.0], [300.0])
        assert set(np.unique(sample.hu)) <= {100.0, 300.0, -1000.0, OUTSIDE_HU}


def test_structures_are_drawn_by_a_power_of_their_size(volume):
    rng = np.random.default_rng(0)
    drawn = [draw_sample(volume, 64, 0.7, STILL, rng) for _ in range(400)]
    small = np.mean([s.hu[s.target][0] == 300 for s in drawn])
    assert small == pytest.approx(216**0.7 / (216**0.7 + 8000**0.7), abs=0.04)


def test_anchor_stays_within_half_a_patch_of_the_centre():
    point = np.zeros((200, 200, 200), bool)
    point[100, 100, 100] = True
    lone = training_volume(Case("point", Volume(np.zeros_like(point, np.int16), np.eye(4) * [1.5, 1.5, 1.5, 1]),
                                {"point": lambda: point}), 1.5, min_voxels=1)  # fmt: skip
    rng = np.random.default_rng(0)
    places = np.array([np.argwhere(draw_sample(lone, 64, 0.7, STILL, rng).target)[0] for _ in range(300)])
    assert places.min() >= 1 and places.max() <= 63 and np.ptp(places, axis=0).min() > 50


def test_augmentation_moves_image_and_mask_together(volume):
    rng = np.random.default_rng(1)
    turned = dataclasses.replace(STILL, flip=0.5, spatial=1.0)
    for _ in range(20):
        sample = draw_sample(volume, 64, 0.7, turned, rng)
        value = 100 if np.median(sample.hu[sample.target]) <= 100 else 300
        bright = sample.hu > (value - 1000) / 2  # half-way to the air, where the mask is cut too
        assert (bright & sample.target).sum() / sample.target.sum() > 0.95


def test_same_seed_same_sample(volume):
    a, b = (draw_sample(volume, 64, 0.7, Augmentation(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a.hu, b.hu) and np.array_equal(a.target, b.target)


def test_schedule():
    step = TrainingConfig(learning_rate=1e-4)  # the paper: 100 epochs of warm-up, x0.1 at 800 of 1000
    assert [step.learning_rate_at(e / 1000) for e in (50, 100, 799, 800, 1000)] == pytest.approx(
        [0.5e-4, 1e-4, 1e-4, 1e-5, 1e-5]
    )
    cosine = TrainingConfig(learning_rate=1.0, schedule="cosine")
    assert [cosine.learning_rate_at(p) for p in (0.05, 0.1, 0.55, 1)] == pytest.approx([0.5, 1, 0.5, 0])


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("rounds", 0), ("learning_rate", 0), ("schedule", "x")])
def test_bad_configuration(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainingConfig(**{name: value})


def test_rounds_of_clicks(monkeypatch):
    """Round 1 has one positive click and no previous mask; later rounds have one more click and the probability."""
    seen, network = [], build("tiny")
    forward = network.decode
    monkeypatch.setattr(network, "decode", lambda f, prompts: seen.append(prompts.clone()) or forward(f, prompts))
    target = np.zeros((64, 64, 64), bool)
    target[20:40, 20:40, 20:40] = True
    sample = Sample(np.where(target, 100, -100).astype(np.float32), target)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    config = dataclasses.replace(QUICK, rounds=4)
    results = train_batch(network, optimiser, [sample, sample], config, np.random.default_rng(0))
    assert len(results) == len(seen) == 4
    assert (seen[0][:, 0] == 1).sum((1, 2, 3)).tolist() == [1, 1] and not seen[0][:, 1:].any()
    assert all(target[tuple(p)] for p in np.argwhere(seen[0][0, 0].numpy() == 1))
    for number, prompts in enumerate(seen[1:], start=2):
        assert all((prompts[b, :2] == 1).sum() <= number for b in range(2)) and prompts[:, 2].any()
        assert not prompts.requires_grad
        negative = np.argwhere(prompts[0, 1].numpy() == 1)
        assert not any(target[tuple(p)] for p in negative)


def weights(path):
    return checkpoint.load(path).network.state_dict()


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, volume):
    whole = train([[volume]], QUICK, tmp_path / "whole")
    part = Run([[volume]], QUICK, tmp_path / "part")
    part.resume()
    for _ in range(2):
        part.learn(part.draw(part.step))
    part.save()
    resumed = train([[volume]], QUICK, tmp_path / "part")
    a, b = weights(whole), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = [json.loads(line)["step"] for line in (tmp_path / "part" / "log.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_another_configuration_does_not_resume(tmp_path, volume):
    run = Run([[volume]], QUICK, tmp_path)
    run.save()
    with pytest.raises(ValueError, match="must be new or hold a run of this configuration"):
        Run([[volume]], dataclasses.replace(QUICK, learning_rate=2e-3), tmp_path).resume()


@pytest.mark.slow
def test_it_learns(tmp_path, volume):
    config = dataclasses.replace(QUICK, samples_per_volume=20, augmentation=STILL)
    train([[volume]], config, tmp_path)
    rounds = [json.loads(line)["rounds"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    dice = [np.mean([r["dice"] for r in line]) for line in rounds]
    assert np.mean(dice[-5:]) < np.mean(dice[:5]) - 0.1
