#!/usr/bin/env python
"""Let a simulated user click through cases and report DSC, NSD and seconds after each number of clicks."""

import argparse
import shlex
import sys
from pathlib import Path

from ctsam3d.evaluation import CLICK_COUNTS, MIN_VOXELS, TOLERANCE_MM, evaluate


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of case folders")
    parser.add_argument("--out", required=True, type=Path, help="folder for results.csv, report.md and figures")
    parser.add_argument("--cases", type=_names, help="names of cases: a,b,c; default all")
    parser.add_argument("--structures", type=_names, help="names of structures: a,b,c; default all")
    parser.add_argument("--clicks", type=_counts, default=CLICK_COUNTS, help="score after so many clicks: 1,3,5,7,9")
    parser.add_argument("--seeds", type=int, default=3, help="how many users click each structure")
    parser.add_argument("--min-voxels", type=int, default=MIN_VOXELS,
                        help="leave out structures with fewer voxels at the model's spacing")  # fmt: skip
    parser.add_argument("--tolerance-mm", type=float, default=TOLERANCE_MM, help="tolerance of NSD")
    parser.add_argument("--weights", default="default", help="packaged name or a .safetensors file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-expand", dest="expand", action="store_false", help="a click segments its own patch alone")
    parser.add_argument("--overlays", action="store_true", help="also draw a PNG for each structure")
    arguments = parser.parse_args(argv)
    command = shlex.join(["scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        print(f"report: {evaluate(**vars(arguments), command=command)}")
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
