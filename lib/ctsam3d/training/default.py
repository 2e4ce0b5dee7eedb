"""How the packaged default weights are made: the data, the shares that pairs are drawn in, and the settings.

One call makes what is generated, derives the labels of the real cases, and trains; called again it goes on where it
was. All seeds are fixed. No case of `default_data.HELD_OUT` can get in.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctsam3d.data.default_data import REAL, make_random_phantoms, make_real_cases, make_scenes, refuse_held_out
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.loop import Source, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What one set of default weights is made of.

    Attributes:
        scenes, phantoms: how many of each are generated.
        shares: of the pairs that come from real cases, phantoms and scenes.
    """

    config: TrainingConfig
    scenes: int
    phantoms: int
    shares: tuple[float, float, float] = (4.0, 3.0, 3.0)


_TINY = TrainingConfig(
    preset="tiny",
    epochs=8,
    schedule="cosine",
    warmup_share=0.03,
    learning_rate=1.5e-3,
    batch_size=4,
    rounds=5,
    structure_power=0.5,
    imprecise_clicks=0.5,
    feedback=0.3,
    carry=0.2,
    seed=2000,
    augmentation=Augmentation(contrast=0.3, lesion=0.2),
)

RECIPES = {
    "tiny": Recipe(_TINY, scenes=300, phantoms=300),
    "small": Recipe(dataclasses.replace(_TINY, preset="small", learning_rate=1e-3), scenes=300, phantoms=300),
}
"""Of each preset that is packaged."""

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
"""A run of minutes that shows the loss falling; its weights are of no use."""


def train_default(
    real: str | os.PathLike | None,
    out: str | os.PathLike,
    recipe: Recipe = RECIPES["tiny"],
    *,
    names: Sequence[str] = REAL,
    device: str = "cpu",
    workers: int | None = None,
    makers: int = 1,
    save_every: int = 100,
    **options,
) -> Path:
    """Make the data under ``out/data``, train, and write ``out/model.safetensors``.

    Args:
        real: folder with the real cases `names`; None to train on generated data alone.
        workers: processes that cut patches, see `loop.train`.
        makers: processes that generate.
        options: see `loop.train`.

    Returns:
        Path of the weights.

    Raises:
        ValueError: a held-out case among `names`, or a case that cannot be used.
        FileNotFoundError: a real case is not there.
        RunError: `out` holds a run of another recipe.
    """
    refuse_held_out(names)
    data, cache = Path(out) / "data", VolumeCache(Path(out) / "volumes")
    sources = []
    if real is not None:
        make_real_cases(real, data / "real", names)
    make_random_phantoms(data / "phantoms", recipe.phantoms, workers=makers)
    make_scenes(data / "scenes", recipe.scenes, workers=makers)
    for kind, share in zip(("real", "phantoms", "scenes"), recipe.shares):
        if kind != "real" or real is not None:
            volumes = load_group(data / kind, cache)
            refuse_held_out(volume.name for volume in volumes)
            sources.append(Source(volumes, share))
    log.info("%s", ", ".join(f"{len(source.volumes)} volumes at share {source.share:g}" for source in sources))
    return train(sources, recipe.config, out, device=device, workers=workers, save_every=save_every, **options)
