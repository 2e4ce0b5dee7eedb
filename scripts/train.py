#!/usr/bin/env python
"""Train CT-SAM3D on folders of cases; run the same command again to go on after an interruption."""

import argparse
import dataclasses
import logging
from pathlib import Path

from ctsam3d import checkpoint
from ctsam3d.model import PRESETS
from ctsam3d.training.cases import load_sources
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, type=Path,
                        help="case folders, or folders of them; each argument is drawn from equally often")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="folder for model.safetensors, log.jsonl, state.pt")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--encoder", choices=("rest", "unet"), default="rest")
    parser.add_argument("--prompt", choices=("psap", "rff"), default="psap")
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs)
    parser.add_argument("--learning-rate", type=float, default=TrainingConfig.learning_rate)
    parser.add_argument("--schedule", choices=("step", "cosine"), default=TrainingConfig.schedule)
    parser.add_argument("--batch-size", type=int, default=TrainingConfig.batch_size)
    parser.add_argument("--structure-power", type=float, default=TrainingConfig.structure_power)
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save-every", type=int, default=50, help="batches between two checkpoints")
    parser.add_argument("--weights", type=Path, help="a .safetensors file to start from")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    config = TrainingConfig(**{k: v for k, v in vars(arguments).items() if k in names})
    path = train(
        load_sources(arguments.data),
        config,
        arguments.out,
        device=arguments.device,
        save_every=arguments.save_every,
        initial=checkpoint.load(arguments.weights) if arguments.weights else None,
        half=arguments.half,
    )
    print(f"weights: {path}")


if __name__ == "__main__":
    main()
