#!/usr/bin/env python
"""Label phantoms in turn as two simulated annotators against the real server, train once, and report the efforts."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from ctsam3d.labelapp.label_in_turn import label_in_turn
from ctsam3d.labelapp.strategy import DEFAULT

APP = Path(__file__).resolve().parents[1] / "apps" / "ctsam3d"


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=APP)
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--phantoms", type=int, default=10)
    parser.add_argument("--structures", type=lambda text: text.split(","), default=["liver", "spleen"])
    parser.add_argument("--strategy", default=DEFAULT)
    parser.add_argument("--options", type=json.loads, default={}, help='of the training, e.g. {"max_epochs": 1}')
    parser.add_argument(
        "--quick", action="store_true", help="the training replays and is measured on one phantom in the place of nine"
    )
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        parser.error(f"--out must be a new folder, {arguments.out} exists")
    command = shlex.join(["scripts/label_in_turn.py", *(argv or sys.argv[1:])])
    print(f"report: {label_in_turn(**vars(arguments), command=command)}")


if __name__ == "__main__":
    main()
