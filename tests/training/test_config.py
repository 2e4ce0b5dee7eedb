"""The schedule against hand-computed values, and what a configuration refuses."""

import dataclasses

import pytest

from ctsam3d.training.config import TrainingConfig


def test_the_defaults_are_the_papers():
    config = TrainingConfig()
    assert (config.preset, config.epochs, config.rounds, config.samples_per_volume, config.batch_size) == (
        "base", 1000, 5, 8, 4)  # fmt: skip
    assert (config.learning_rate, config.betas, config.weight_decay) == (1e-4, (0.9, 0.999), 1e-2)
    assert (config.gradient_clip, config.structure_power, config.empty_share) == (5.0, 0.7, 0.25)


def test_step_schedule():
    config = TrainingConfig(learning_rate=1e-4)  # 100 epochs of warm-up, x0.1 at 800 of 1000
    rates = [config.learning_rate_at(epoch / 1000) for epoch in (50, 100, 799, 800, 1000)]
    assert rates == pytest.approx([0.5e-4, 1e-4, 1e-4, 1e-5, 1e-5])


def test_cosine_schedule():
    config = TrainingConfig(learning_rate=1.0, schedule="cosine")
    assert [config.learning_rate_at(p) for p in (0.05, 0.1, 0.55, 1)] == pytest.approx([0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("rounds", 0), ("accumulate", 0), ("learning_rate", 0), ("schedule", "x"), ("trainable", "head"),
     ("empty_share", 1.5), ("imprecise_clicks", -0.1)],
)  # fmt: skip
def test_bad_values(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        TrainingConfig(**{name: value})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().epochs = 3
