#!/usr/bin/env python
"""Train CT-SAM3D on folders of cases; run the same command again to go on after an interruption.

On several GPUs: ``torchrun --nproc-per-node N scripts/train.py ... --device cuda``.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

from ctsam3d import checkpoint
from ctsam3d.model import PRESETS
from ctsam3d.training.cases import VolumeCache, load_groups
from ctsam3d.training.config import TRAINABLE, Augmentation, TrainingConfig
from ctsam3d.training.loop import Source, train
from ctsam3d.training.processes import process_group


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, type=Path,
                        help="case folders, or folders of them; each argument is drawn from equally often")  # fmt: skip
    parser.add_argument("--shares", nargs="+", type=float, help="of each --data argument, instead of equal ones")
    parser.add_argument("--out", required=True, type=Path,
                        help="folder for model.safetensors, log.jsonl, tensorboard/ and the states")  # fmt: skip
    parser.add_argument("--cache", type=Path, help="folder for the resampled volumes (default: OUT/volumes)")
    parser.add_argument("--preset", choices=sorted(PRESETS),
                        help=f"default: {TrainingConfig.preset}, or the network of --weights")  # fmt: skip
    parser.add_argument("--encoder", choices=("rest", "unet"), default=TrainingConfig.encoder)
    parser.add_argument("--prompt", choices=("psap", "rff"), default=TrainingConfig.prompt)
    parser.add_argument("--cross-patch-frame", choices=("own", "neighbour"),
                        help="in which P sees a patch and its mask (default: the preset's)")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs)
    parser.add_argument("--samples-per-volume", type=int, default=TrainingConfig.samples_per_volume,
                        help="pairs drawn from a volume in an epoch")  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=TrainingConfig.learning_rate)
    parser.add_argument("--schedule", choices=("step", "cosine"), default=TrainingConfig.schedule)
    parser.add_argument("--batch-size", type=int, default=TrainingConfig.batch_size, help="pairs seen at once")
    parser.add_argument("--accumulate", type=int, default=TrainingConfig.accumulate, help="batches seen before a step")
    parser.add_argument("--rounds", type=int, default=TrainingConfig.rounds, help="simulated clicks a patch")
    parser.add_argument("--structure-power", type=float, default=TrainingConfig.structure_power)
    parser.add_argument("--imprecise-clicks", type=float, default=TrainingConfig.imprecise_clicks,
                        help="share of the later clicks that miss the deepest point of the error")  # fmt: skip
    parser.add_argument("--feedback", type=float, default=TrainingConfig.feedback,
                        help="share of the rounds in which S sees its own answer once more")  # fmt: skip
    parser.add_argument("--carry", type=float, default=TrainingConfig.carry,
                        help="share of the later rounds in which V is seen as an expansion opens it")  # fmt: skip
    parser.add_argument("--coarse", type=float, default=TrainingConfig.coarse,
                        help="share of the steps that are graded at a quarter of the resolution")  # fmt: skip
    parser.add_argument("--contrast", type=float, default=Augmentation.contrast,
                        help="share of the pairs whose structures each get a brightness of their own")  # fmt: skip
    parser.add_argument("--lesion", type=float, default=Augmentation.lesion,
                        help="share of the pairs with a random mass or tube in place of the structure")  # fmt: skip
    parser.add_argument("--encoder-rate", type=float, default=TrainingConfig.encoder_rate,
                        help="factor of the learning rate for the encoder")  # fmt: skip
    parser.add_argument("--trainable", choices=TRAINABLE, default=TrainingConfig.trainable)
    parser.add_argument("--frozen-statistics", action="store_true", help="batch norm in eval mode, for retraining")
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; under torchrun every process takes its own GPU")
    parser.add_argument("--workers", type=int, help="processes that cut patches (default: 0 on a CPU, else 8)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two states")
    parser.add_argument("--weights", help="a .safetensors file, or packaged weights by name, to start from")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shares = arguments.shares or [1.0] * len(arguments.data)
    if len(shares) != len(arguments.data):
        parser.error(f"--shares must have a number per --data argument, {len(arguments.data)}, got {len(shares)}")
    if arguments.preset is None and arguments.weights is None:
        arguments.preset = TrainingConfig.preset
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    try:
        augmentation = Augmentation(contrast=arguments.contrast, lesion=arguments.lesion)
        config = TrainingConfig(**{k: v for k, v in vars(arguments).items() if k in names}, augmentation=augmentation)
        groups = load_groups(arguments.data, VolumeCache(arguments.cache or arguments.out / "volumes"))
        with process_group(arguments.device) as device:
            path = train(
                [Source(group, share) for group, share in zip(groups, shares)],
                config,
                arguments.out,
                device=device,
                workers=arguments.workers,
                save_every=arguments.save_every,
                initial=checkpoint.load(checkpoint.path_of(arguments.weights)) if arguments.weights else None,
                half=arguments.half,
            )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"weights: {path}")


if __name__ == "__main__":
    main()
