#!/usr/bin/env python
"""The paper's ablations at a small budget: train variants of `tiny` from fresh weights, click through cases, compare.

Run the same command again to go on after an interruption; commands that share --out, each with variants or seeds of its
own, may run side by side, and the last one writes the whole table.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

from ctsam3d.evaluation.ablation import CONFIG, VARIANTS, ablate
from ctsam3d.training.cases import VolumeCache, load_groups


def _names(text: str) -> list[str]:
    return text.split(",")


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, type=Path, help="case folders to train on, or folders of them"
    )
    parser.add_argument("--shares", nargs="+", type=float, help="of each --data argument, instead of equal ones")
    parser.add_argument("--test", required=True, type=Path, help="folder of cases that are clicked through")
    parser.add_argument("--cases", type=_names, help="names in --test: a,b,c; default all")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--cache", type=Path, help="folder for the resampled volumes (default: OUT/volumes)")
    parser.add_argument("--variants", type=_names, default=[variant.name for variant in VARIANTS])
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--samples-per-volume", type=int, default=CONFIG.samples_per_volume, help="pairs drawn from each"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    variants = [variant for variant in VARIANTS if variant.name in arguments.variants]
    if len(variants) != len(arguments.variants):
        parser.error(f"--variants must be some of {','.join(v.name for v in VARIANTS)}, got {arguments.variants}")
    try:
        table = ablate(
            load_groups(arguments.data, VolumeCache(arguments.cache or arguments.out / "volumes")),
            arguments.test,
            arguments.out,
            arguments.shares,
            arguments.cases,
            arguments.seeds,
            variants,
            dataclasses.replace(CONFIG, samples_per_volume=arguments.samples_per_volume),
            arguments.device,
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(table.read_text())


if __name__ == "__main__":
    main()
