#!/usr/bin/env python
"""Compare two evaluations (B with A) by paired statistics, from the results.csv of each."""

import argparse
import shlex
import sys
from pathlib import Path

from ctsam3d.evaluation.compare import compare


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", type=Path, help="folder of an evaluation, or its results.csv")
    parser.add_argument("b", type=Path, help="the other one")
    parser.add_argument("--out", type=Path, default=Path("comparison"),
                        help="folder for comparison.md, comparison.html and figures; default comparison")  # fmt: skip
    parser.add_argument("--patients", type=Path, help="CSV file, columns case and patient, where one has several cases")
    arguments = parser.parse_args(argv)
    command = shlex.join(["scripts/compare.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        print(f"report: {compare(**vars(arguments), command=command)}")
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
