"""The paper's ablations at an equal, small budget: variants of `tiny`, trained from fresh weights and clicked through.

Paper: Table 4 (PSAP against random Fourier features, ResT against a UNet encoder), Table 5 (cross-patch prompting) and
CT-SAM3D*, which is trained without the three added tissues. As S alone is compared, every variant carries the P of the
packaged weights, and none has the project's `Appearance`: it would tell a decoder where prompts are that is not to know
it. What the encoder gives is centred in all of them, as in `tiny`. What twelve runs showed is in ``docs/ablations.md``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.datasets import find_dataset
from ctsam3d.data.files import atomic_path
from ctsam3d.data.labels import TISSUES
from ctsam3d.evaluation import MIN_VOXELS, evaluate
from ctsam3d.evaluation.timing import Row, markdown
from ctsam3d.model.build import PRESETS, build
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Source, train
from ctsam3d.training.pairs import TrainingVolume

CLICKS = (1, 3, 5)
LARGE = frozenset(
    ("liver", "stomach", "colon", "small_bowel", "aorta", "inferior_vena_cava", "autochthon_left", "autochthon_right",
     "iliopsoas_left", "iliopsoas_right", "gluteus_maximus_left", "gluteus_maximus_right", "hip_left", "hip_right",
     "pulmonary_artery")
)  # fmt: skip
"""A selection of structures that reach beyond a patch, which cross-patch prompting is for."""
SINGLE, SPREADING = "single", "spreading"
CONFIG = TrainingConfig(
    preset=None,
    epochs=1,
    schedule="cosine",
    warmup_share=0.05,
    learning_rate=1e-3,
    gradient_clip=1.0,
    batch_size=2,
    rounds=4,
    samples_per_volume=2,
    structure_power=0.4,
    empty_share=0.0,
    imprecise_clicks=0.2,
    trainable="segmentation",
)


@dataclass(frozen=True)
class Variant:
    """A network and what it is trained on.

    Attributes:
        name: of its folder and its row.
        encoder, prompt: see `build`.
        left_out: structures that no pair is drawn of.
    """

    name: str
    encoder: str = "rest"
    prompt: str = "psap"
    left_out: tuple[str, ...] = ()


VARIANTS = (
    Variant("psap-rest"),
    Variant("rff", prompt="rff"),
    Variant("unet", encoder="unet"),
    Variant("without-tissues", left_out=TISSUES),
)
"""The first is what the others are compared with."""


def ablate(
    groups: Sequence[Sequence[TrainingVolume]],
    test: str | os.PathLike,
    out: str | os.PathLike,
    shares: Sequence[float] | None = None,
    cases: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    variants: Sequence[Variant] = VARIANTS,
    config: TrainingConfig = CONFIG,
    device: str = "cpu",
    min_voxels: int = MIN_VOXELS,
) -> Path:
    """Train every variant with every seed, click through the test cases, and write ``out/ablation.md``.

    What is done is kept under ``out/<variant>/seed_<n>``: the same command goes on after an interruption, and several
    that share `out`, each with a variant or a seed of its own, can run side by side.

    Args:
        groups, shares: volumes, and each group's share of the pairs; equal ones where None.
        test: folder of cases that are none of these.
        cases: names in `test`; default all.
        seeds: of fresh weights and pairs; the simulated user is the same for all.
        config: without a preset.

    Returns:
        Path of the table, over all that is in `out` by now.

    Raises:
        ValueError: data that cannot be used, or a test case among them or among what P was trained on.
    """
    files = find_dataset(test).chosen(cases)
    packaged = checkpoint.load(checkpoint.packaged_path())
    used = {volume.name for group in groups for volume in group} | set(packaged.notes["data"])
    if shared := sorted(used & {case.name for case in files}):
        raise ValueError(f"test cases must be none of the training's, got {shared}")
    shares = shares or [1.0] * len(groups)
    if len(shares) != len(groups):
        raise ValueError(f"shares must have a number per group, {len(groups)}, got {len(shares)}")
    sources_of = {
        variant: [Source(without_structures(g, variant.left_out), s) for g, s in zip(groups, shares)]
        for variant in variants
    }
    for seed in seeds:
        for variant, sources in sources_of.items():
            folder = Path(out) / variant.name / f"seed_{seed}"
            own = dataclasses.replace(config, seed=seed)
            start = _start(variant, own, packaged, folder / "start.safetensors")
            weights = train(sources, own, folder, initial=start, save_every=20, device=device)
            names = [case.name for case in files]
            common = {"cases": names, "clicks": CLICKS, "seeds": 1, "min_voxels": min_voxels, "device": device}
            for way in (SINGLE, SPREADING):
                evaluate(test, folder / way, weights, expand=way == SPREADING, **common)
    return write_table(out)


def without_structures(volumes: Sequence[TrainingVolume], names: Sequence[str]) -> list[TrainingVolume]:
    """The volumes, as if the named structures were not labelled: no pair of them can be drawn.

    Raises:
        ValueError: a volume holds nothing else; a variant that went without it would train for fewer steps.
    """
    out = []
    for volume in volumes:
        kept = {v: name for v, name in zip(volume.sizes, volume.structures, strict=True) if name not in names}
        if not kept:
            raise ValueError(f"volume {volume.name} must hold another structure than {', '.join(volume.structures)}")
        anchors, sizes = ({v: values[v] for v in kept} for values in (volume.anchors, volume.sizes))
        out.append(dataclasses.replace(volume, anchors=anchors, sizes=sizes, structures=tuple(kept.values())))
    return out


def _start(variant: Variant, config: TrainingConfig, packaged: Checkpoint, path: Path) -> Checkpoint:
    """Fresh weights of S, the packaged ones of P; written once, so that a run that goes on finds the same."""
    if not path.is_file():
        torch.manual_seed(config.seed)
        paper = dataclasses.replace(PRESETS["tiny"], appearance=0, detail=0)
        network = build(paper, encoder=variant.encoder, prompt=variant.prompt)
        network.cross_patch.load_state_dict(packaged.network.cross_patch.state_dict())
        start = Checkpoint(
            network,
            config.hu_window,
            version=variant.name,
            peak_threshold=packaged.peak_threshold,
            notes={"data": packaged.notes["data"]},
        )
        checkpoint.save(path, start)
    return checkpoint.load(path)


# ---- the table -----------------------------------------------------------------------------------------------------


def write_table(out: str | os.PathLike) -> Path:
    """``out/ablation.md`` from the results that are there: over all structures and over large ones, a row a variant.

    The added tissues are left out, as one variant is not trained on them. DSC is the mean over structures, then over
    seeds, with the standard deviation over seeds behind it.

    Raises:
        ValueError: no results.
    """
    frames = []
    for path in sorted(Path(out).glob("*/seed_*/*/results.csv")):
        variant, run, way = path.parts[-4:-1]
        frames.append(pd.read_csv(path).assign(variant=variant, run=run, way=way))
    if not frames:
        raise ValueError(f"out {out} must hold results of a variant, it has none")
    results = pd.concat(frames)
    results = results[~results["structure"].isin(TISSUES)]
    variants = dict.fromkeys([*(variant.name for variant in VARIANTS), *results["variant"]])  # ours first
    rows = []
    for structures, chosen in (("all", results), ("large", results[results["structure"].isin(LARGE)])):
        for way in (SINGLE, SPREADING):
            for variant in variants:
                own = chosen[(chosen["variant"] == variant) & (chosen["way"] == way)]
                if len(own):
                    rows.append({"structures": structures, "clicks": way, "variant": variant, **_row(own)})
    path = Path(out) / "ablation.md"
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(rows) + "\n", encoding="utf-8")
    return path


def _row(results: pd.DataFrame) -> Row:
    means = results.groupby(["run", "clicks"])["dsc"].mean().unstack()  # a row a seed, a column a number of clicks
    cells = {f"DSC after {n}": f"{means[n].mean():.3f} ± {means[n].std(ddof=0):.3f}" for n in means}
    return {"of": results.groupby(["case", "structure"]).ngroups, "seeds": len(means), **cells}
