#!/usr/bin/env python
"""Make default weights: data from fixed seeds, labels derived from real cases, training.

Run the same command again to go on after an interruption. The cases that test the weights are refused.
"""

import argparse
import logging
from pathlib import Path

from ctsam3d.evaluation.proposals import evaluate_proposals
from ctsam3d.training import processes
from ctsam3d.training.default import QUICK, RECIPES, train_default
from ctsam3d.training.processes import process_group

CALIBRATED_ON = 2  # phantoms of the trunk, some four thousand neighbours


def main(argv: list[str] | None = None) -> None:
    """Read the command line, train, and set the threshold of P's peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path,
                        help="folder with the real cases of data/default_data.py (default: none)")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="folder for data, volumes, weights, log and states")
    parser.add_argument("--preset", choices=sorted(RECIPES), default="tiny", help="network (default: tiny)")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours, to try the whole way; tiny")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, help="processes that cut patches (default: 0 on a CPU, else 8)")
    parser.add_argument("--makers", type=int, default=1, help="processes that generate")
    parser.add_argument("--save-every", type=int, default=100, help="steps between two states")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.preset != "tiny":
        parser.error(f"--preset must be tiny with --quick, got {arguments.preset}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with process_group(arguments.device) as device:
            weights = train_default(
                arguments.real,
                arguments.out,
                QUICK if arguments.quick else RECIPES[arguments.preset],
                device=device,
                workers=arguments.workers,
                makers=arguments.makers,
                save_every=arguments.save_every,
                half=True,
            )
            if processes.rank() == 0:
                _calibrate(arguments.out, weights, device)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


def _calibrate(out: Path, weights: Path, device: str) -> None:
    """From what height on a peak of P counts, which a loss does not say; writes ``out/default.safetensors``."""
    trunks, path = out / "data" / "trunks", out / "default.safetensors"
    names = sorted(folder.name for folder in trunks.iterdir())[:CALIBRATED_ON]
    evaluate_proposals(trunks, out / "proposals", weights, names, calibrated=path, device=device)
    print(f"weights: {path}")


if __name__ == "__main__":
    main()
