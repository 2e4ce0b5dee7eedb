"""All numbers of a training run in one frozen value; the defaults are the paper's (supplementary Table 1)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """What happens to a patch before the network sees it; every change has its own probability."""

    flip: float = 0.5  # probability per axis
    spatial: float = 0.6  # probability of a rotation with scaling
    rotation_degrees: float = 10.0  # at most, about a random axis
    scale: float = 0.1  # at most, either way
    intensity: float = 0.6  # probability of a shift and a factor
    shift_hu: float = 30.0
    factor: float = 0.1
    noise: float = 0.3
    noise_hu: float = 20.0  # at most, standard deviation
    blur: float = 0.2
    blur_voxels: float = 1.0  # at most, sigma
    contrast: float = 0.0  # probability that every labelled structure gets a brightness of its own, see `pairs.py`
    contrast_hu: float = 80.0  # at most, standard deviation
    lesion: float = 0.0  # probability that a random mass or tube takes the structure's place, see `lesions.py`


SCHEDULES = ("step", "cosine")
TRAINABLE = ("all", "decoder", "cross_patch", "segmentation")


@dataclass(frozen=True)
class TrainingConfig:
    """A run of Algorithm 1.

    Attributes:
        preset: of a fresh network, with `encoder`, `prompt` and `cross_patch_frame`; None to train the network of the
            initial weights, whatever it is.
        hu_window: HU that become 0 and 1.
        epochs: passes over the volumes; warm-up and decay are given as shares of it, so that a short run has the
            paper's schedule by proportion (100 of 1000 epochs, x0.1 at 800).
        cross_patch_frame: see `model.build`; None for the preset's.
        schedule: "step" (the paper's) or "cosine" (to zero, after the same warm-up).
        samples_per_volume: pairs drawn from a volume in an epoch.
        batch_size: pairs a process sees at once.
        accumulate: such batches a process sees before a step; a step learns from
            ``batch_size * accumulate * processes`` pairs.
        rounds: simulated clicks a patch, an optimiser step after each.
        structure_power: a structure is drawn with probability proportional to (voxels)^power.
        empty_share: pairs whose V lacks the structure.
        imprecise_clicks: share of later clicks that miss the deepest point. The paper has none; people do miss it.
        feedback: share of the rounds in which S sees its own answer as previous mask once more before it is graded, for
            weights whose sessions do the same (`Checkpoint.feedback`). The paper has none.
        carry: share of the later rounds in which V is seen as an expansion opens it: with what U's mask shows of it as
            previous mask, and one click where P should put it. The paper has none.
        coarse: share of the steps in which S is graded by its first four stages alone, at a quarter of the resolution
            and a third of the cost, through a head that training alone has (`step.CoarseHead`). The paper has none.
        trainable: "all"; "decoder": the decoder, P, and the encoder's norm layers; "cross_patch": P alone, from true
            masks and in one round, a cheap beginning as S does not run; "segmentation": S alone, P stays as it is.
        encoder_rate: factor of the learning rate for the encoder, which needs less where it was trained before.
        frozen_statistics: keep the stem's batch norm in eval mode, as retraining on few studies should. Needs
            initial weights: the statistics of a fresh network are 0 and 1, and hide what soft tissues differ in.
        mixed_precision: bfloat16 for the network's forward pass on a GPU that has it.
    """

    preset: str | None = "base"
    encoder: str = "rest"
    prompt: str = "psap"
    cross_patch_frame: str | None = None
    hu_window: tuple[float, float] = (-500.0, 800.0)
    epochs: int = 1000
    warmup_share: float = 0.1
    decay_share: float = 0.8
    decay_factor: float = 0.1
    schedule: str = "step"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    gradient_clip: float = 5.0
    samples_per_volume: int = 8
    batch_size: int = 4
    accumulate: int = 1
    rounds: int = 5
    structure_power: float = 0.7
    empty_share: float = 0.25
    imprecise_clicks: float = 0.0
    feedback: float = 0.0
    carry: float = 0.0
    coarse: float = 0.0
    trainable: str = "all"
    encoder_rate: float = 1.0
    frozen_statistics: bool = False
    mixed_precision: bool = True
    seed: int = 42
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self):
        for name in ("epochs", "samples_per_volume", "batch_size", "accumulate", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "encoder_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("empty_share", "imprecise_clicks", "feedback", "carry", "coarse"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name, known in {"schedule": SCHEDULES, "trainable": TRAINABLE}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at a share `progress` in [0, 1] of the run."""
        if progress < self.warmup_share:
            return self.learning_rate * progress / self.warmup_share
        if self.schedule == "step":
            return self.learning_rate * (self.decay_factor if progress >= self.decay_share else 1.0)
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (progress - self.warmup_share) / (1 - self.warmup_share)))
        )
