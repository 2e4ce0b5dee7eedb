"""How default weights are made: the data, the shares that pairs are drawn in, and the settings.

The packaged `tiny-0.3.1` is older than this recipe, see ``docs/training-the-default-weights.md``.

One call makes what is generated, derives the labels of the real cases, and trains; called again it goes on where it
was. All seeds are fixed. No case of `default_data.HELD_OUT` can get in.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ctsam3d.data.default_data import REAL, make_random_phantoms, make_real_cases, make_scenes, refuse_held_out
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.loop import Source, train


@dataclass(frozen=True)
class Recipe:
    """What one set of default weights is made of.

    Attributes:
        scenes, phantoms: how many of each are generated.
        shares: of the pairs that come from scenes, phantoms, and the groups of real cases in `default_data.REAL`.
    """

    config: TrainingConfig
    scenes: int
    phantoms: int
    shares: tuple[float, ...] = (0.30, 0.25, 0.20, 0.25)


_TINY = TrainingConfig(
    preset="tiny",
    epochs=3,
    schedule="cosine",
    learning_rate=1.2e-3,
    batch_size=2,
    rounds=5,
    structure_power=0.4,
    imprecise_clicks=0.5,
    carry=0.3,
    frozen_statistics=True,
    seed=60,
    augmentation=Augmentation(contrast=0.5, lesion=0.12),
)

RECIPES = {
    "tiny": Recipe(_TINY, scenes=300, phantoms=200),
    "small": Recipe(dataclasses.replace(_TINY, preset="small"), scenes=300, phantoms=200),
}
"""Of each preset."""

QUICK = Recipe(
    dataclasses.replace(
        _TINY,
        epochs=1,
        warmup_share=0.05,
        learning_rate=2e-3,
        samples_per_volume=30,
        batch_size=1,
        rounds=2,
        structure_power=1.0,
        empty_share=0.0,
        imprecise_clicks=0.0,
        feedback=0.0,
        carry=0.0,
        augmentation=Augmentation(spatial=0.0, intensity=0.0, noise=0.0, blur=0.0),
    ),
    scenes=2,
    phantoms=1,
)
"""A run of minutes, to try the whole way from data to weights; its weights are of no use."""


def train_default(
    real: str | os.PathLike | None,
    out: str | os.PathLike,
    recipe: Recipe = RECIPES["tiny"],
    *,
    makers: int = 1,
    **options,
) -> Path:
    """Make the data under ``out/data``, train, and write ``out/model.safetensors``.

    Args:
        real: folder with the real cases of `default_data.REAL`; None to train on generated data alone.
        makers: processes that generate.
        options: see `loop.train`.

    Returns:
        Path of the weights.

    Raises:
        ValueError: a case that cannot be used, or that is held out.
        FileNotFoundError: a real case is not there.
        RunError: `out` holds a run of another recipe.
    """
    volumes = VolumeCache(Path(out) / "volumes")
    folders = make_data(real, Path(out) / "data", recipe, makers)
    groups = [load_group(folder, volumes) for folder in folders]
    refuse_held_out(volume.name for group in groups for volume in group)
    sources = [Source(group, share) for group, share in zip(groups, recipe.shares)]
    return train(sources, recipe.config, out, **options)


def make_data(real: str | os.PathLike | None, out: Path, recipe: Recipe, makers: int = 1) -> list[Path]:
    """The folders of cases that pairs are drawn from, in the order of the shares; what is there stays."""
    make_scenes(out / "scenes", recipe.scenes, workers=makers)
    make_random_phantoms(out / "phantoms", recipe.phantoms, workers=makers)
    folders = [out / "scenes", out / "phantoms"]
    for group, names in REAL.items() if real is not None else ():
        make_real_cases(real, out / group, names)
        folders.append(out / group)
    return folders
