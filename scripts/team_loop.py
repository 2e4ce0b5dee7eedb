#!/usr/bin/env python
"""Play the loop of a team against the real server: save labelled studies, press Train, measure before and after."""

import argparse
import json
from pathlib import Path

from ctsam3d.labelapp.team_loop import team_loop


def _set(text: str) -> tuple[str, tuple[Path, list[str] | None]]:
    name, _, rest = text.partition("=")
    folder, _, cases = rest.partition(":")
    return name, (Path(folder), cases.split(",") if cases else None)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=Path("apps/ctsam3d"))
    parser.add_argument("--data", required=True, type=Path, help="folder of case folders")
    parser.add_argument("--labelled", required=True, type=lambda text: text.split(","), help="cases to save")
    parser.add_argument("--measure", required=True, nargs="+", type=_set, metavar="NAME=FOLDER[:case,case]",
                        help="sets that are measured before and after")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--options", type=json.loads, default={}, help='of the training, e.g. {"max_epochs": 5}')
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        parser.error(f"--out must be a new folder, {arguments.out} exists")
    values = vars(arguments)
    sets = dict(values.pop("measure"))
    print(f"report: {team_loop(**values, sets=sets)}")


if __name__ == "__main__":
    main()
