#!/usr/bin/env python
"""Let a simulated user click through a data set and report DSC, NSD and seconds after each number of clicks.

The same command takes up a run that was stopped. On several GPUs or machines with one shared --out:
``torchrun --nproc-per-node N scripts/evaluate.py ... --device cuda``.
"""

import argparse
import shlex
import sys
from pathlib import Path

from ctsam3d.evaluation import KINDS, MIN_VOXELS, SPLITS, TOLERANCE_MM, USERS, evaluate


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas, got {text!r}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of a data set as downloaded, or of cases")
    parser.add_argument("--dataset", choices=("auto", *KINDS), default="auto", help="what the data set is")
    parser.add_argument("--out", required=True, type=Path, help="folder for results.csv, the report, figures and parts")
    parser.add_argument("--cases", type=_names, help="names of cases: a,b,c; default all of the split")
    parser.add_argument("--case-list", type=Path, metavar="FILE", help="text file with the name of a case on each line")
    parser.add_argument("--split", choices=(*SPLITS, "all"),
                        help="cases of one part of the data set; default test of TotalSeg++, else all")  # fmt: skip
    parser.add_argument("--patients", type=Path, metavar="FILE",
                        help="CSV file, columns case and patient, where one has several cases")  # fmt: skip
    parser.add_argument("--structures", type=_names, help="names of structures: a,b,c; default all, or the tumour")
    parser.add_argument("--clicks", type=_counts,
                        help="score after so many clicks; default 1,3,5,7,9, and 10 for tumours")  # fmt: skip
    parser.add_argument("--user", choices=USERS, default=USERS[0], help="where later clicks go, and with which sign")
    parser.add_argument("--seeds", type=int, default=3, help="how many users click each structure")
    parser.add_argument("--min-voxels", type=int, default=MIN_VOXELS,
                        help="leave out structures with fewer voxels at the model's spacing")  # fmt: skip
    parser.add_argument("--tolerance-mm", type=float, default=TOLERANCE_MM, help="of NSD, which is also given at 2 mm")
    parser.add_argument("--weights", default="default", 
                        help="packaged name or a .safetensors file; region-growing for a baseline without")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda; under torchrun every process takes its own GPU")
    parser.add_argument("--no-expand", dest="expand", action="store_false", help="a click segments its own patch alone")
    parser.add_argument("--overlays", action="store_true", help="draw each structure, not best, median and worst")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    command = shlex.join(["scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        report = evaluate(**vars(arguments), command=command)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    if report is not None:
        print(f"report: {report}")


if __name__ == "__main__":
    main()
