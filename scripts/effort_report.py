#!/usr/bin/env python
"""Show what labelling has cost: clicks and minutes a structure, over time and by version of the weights."""

import argparse
from pathlib import Path

from ctsam3d.labelapp.effort_report import find_logs, report

APP = Path(__file__).resolve().parents[1] / "apps" / "ctsam3d"


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=APP, help="folder of the app; default: the one beside this script")
    parser.add_argument("--log", type=Path, nargs="+", help="logs, in the place of all those of the app")
    arguments = parser.parse_args(argv)
    try:
        text = report(arguments.log or find_logs(arguments.app))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(text)


if __name__ == "__main__":
    main()
