"""How default weights are made: the data, the shares that pairs are drawn in, and the settings of three stages.

First the encoder and its embeddings learn from many anchors at once (`pretrain`), then P from true masks, then S by
click rounds. One call makes what is generated, derives the labels of the real cases, and trains; called again it goes
on where it was. All seeds are fixed. No case of `default_data.HELD_OUT` can get in. How the packaged weights differ
from this is said in ``docs/training-the-default-weights.md``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ctsam3d import checkpoint
from ctsam3d.data.default_data import (
    REAL,
    make_random_phantoms,
    make_real_cases,
    make_scenes,
    make_trunk_phantoms,
    refuse_held_out,
)
from ctsam3d.training import processes
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.loop import Source, train
from ctsam3d.training.pretrain import PretrainingConfig, pretrain


@dataclass(frozen=True)
class Recipe:
    """What one set of default weights is made of.

    Attributes:
        config: of S, which comes last.
        pretraining: of the encoder.
        proposer: of P.
        scenes, phantoms, trunks: how many of each are generated.
        shares: of the pairs that come from scenes, phantoms, trunks, and the groups of real cases in
            `default_data.REAL`.
    """

    config: TrainingConfig
    pretraining: PretrainingConfig
    proposer: TrainingConfig
    scenes: int
    phantoms: int
    trunks: int
    shares: tuple[float, ...] = (0.15, 0.20, 0.17, 0.28, 0.20)


_TINY = TrainingConfig(
    preset="tiny",
    epochs=2,
    schedule="cosine",
    warmup_share=0.03,
    learning_rate=6e-4,
    encoder_rate=0.5,
    gradient_clip=1.0,
    batch_size=1,
    rounds=4,
    samples_per_volume=12,
    structure_power=0.3,  # small structures nearly as often as large ones
    empty_share=0.0,  # S learns nothing from a patch without the structure, as it is not clicked
    imprecise_clicks=0.3,
    feedback=0.6,
    carry=0.2,
    coarse=0.3,
    trainable="segmentation",
    seed=60,
    augmentation=Augmentation(rotation_degrees=15.0, scale=0.15, contrast=0.35, lesion=0.12),
)
_PLAIN = {"feedback": 0.0, "carry": 0.0, "coarse": 0.0}  # rounds as the paper has them
_PROPOSER = dataclasses.replace(
    _TINY,
    learning_rate=2e-3,
    batch_size=2,
    samples_per_volume=10,
    rounds=1,
    structure_power=0.4,
    empty_share=0.25,
    trainable="cross_patch",
    **_PLAIN,
)

RECIPES = {
    preset: Recipe(
        dataclasses.replace(_TINY, preset=preset),
        PretrainingConfig(steps=2400),
        dataclasses.replace(_PROPOSER, preset=preset),
        scenes=110,
        phantoms=76,
        trunks=48,
    )
    for preset in ("tiny", "small")
}
"""Of each preset."""

_STILL = Augmentation(spatial=0.0, intensity=0.0, noise=0.0, blur=0.0)
_QUICK = {"epochs": 1, "samples_per_volume": 30, "batch_size": 1, "structure_power": 1.0, "augmentation": _STILL}
QUICK = Recipe(
    dataclasses.replace(
        _TINY, rounds=2, learning_rate=1e-3, encoder_rate=1.0, imprecise_clicks=0.0, **_PLAIN, **_QUICK
    ),
    PretrainingConfig(steps=60, patches=4, warmup=10),
    dataclasses.replace(_PROPOSER, **{**_QUICK, "samples_per_volume": 10}),
    scenes=2,
    phantoms=1,
    trunks=1,
)
"""A run of minutes, to try the whole way from data to weights; its weights are of no use."""


def train_default(
    real: str | os.PathLike | None,
    out: str | os.PathLike,
    recipe: Recipe = RECIPES["tiny"],
    *,
    makers: int = 1,
    device: str = "cpu",
    **options,
) -> Path:
    """Make the data under ``out/data``, train in three stages, and write ``out/model.safetensors``.

    Args:
        real: folder with the real cases of `default_data.REAL`; None to train on generated data alone.
        makers: processes that generate.
        options: of the last two stages, see `loop.train`.

    Returns:
        Path of the weights.

    Raises:
        ValueError: a case that cannot be used, or that is held out.
        FileNotFoundError: a real case is not there.
        RunError: `out` holds a run of another recipe.
    """
    out = Path(out)

    def load() -> list:
        volumes = VolumeCache(out / "volumes")
        return [load_group(folder, volumes) for folder in make_data(real, out / "data", recipe, makers)]

    groups = load() if processes.rank() == 0 else None  # makes what is not there
    processes.gather(0)
    groups = groups or load()
    refuse_held_out(volume.name for group in groups for volume in group)
    sources = [Source(group, share) for group, share in zip(groups, recipe.shares)]
    weights = pretrain(sources, recipe.pretraining, recipe.config, out / "encoder", device=device)
    processes.gather(0)  # the first process has written them
    for config, folder in ((recipe.proposer, out / "proposer"), (recipe.config, out)):
        weights = train(sources, config, folder, initial=checkpoint.load(weights), device=device, **options)
        processes.gather(0)
    return weights


def make_data(real: str | os.PathLike | None, out: Path, recipe: Recipe, makers: int = 1) -> list[Path]:
    """The folders of cases that pairs are drawn from, in the order of the shares; what is there stays."""
    make_scenes(out / "scenes", recipe.scenes, workers=makers)
    make_random_phantoms(out / "phantoms", recipe.phantoms, workers=makers)
    make_trunk_phantoms(out / "trunks", recipe.trunks, workers=makers)
    folders = [out / "scenes", out / "phantoms", out / "trunks"]
    for group, names in REAL.items() if real is not None else ():
        make_real_cases(real, out / group, names)
        folders.append(out / group)
    return folders
