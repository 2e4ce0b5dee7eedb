#!/usr/bin/env python
"""Measure P, the cross-patch-prompt network: do its peaks lie in the structure, and is it quiet where there is none?"""

import argparse
import shlex
import sys
from pathlib import Path

from ctsam3d.evaluation.proposals import STRIDE, evaluate_proposals


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of case folders")
    parser.add_argument("--out", required=True, type=Path, help="folder for proposals.csv and proposals.md")
    parser.add_argument("--cases", type=_names, help="names of cases: a,b,c; default all")
    parser.add_argument("--structures", type=_names, help="names of structures: a,b,c; default all")
    parser.add_argument("--seeds", type=int, default=1, help="patches drawn for each structure")
    parser.add_argument("--clicks", type=int, default=0, help="clicks that make a patch's mask; 0 for the true one")
    parser.add_argument("--stride", type=int, default=STRIDE, help="model voxels between neighbours")
    parser.add_argument("--threshold", type=float, help="instead of the weights' own")
    parser.add_argument("--calibrated", type=Path, metavar="OUT.safetensors",
                        help="write the weights with the threshold that is best on these cases")  # fmt: skip
    parser.add_argument("--weights", default="default", help="packaged name or a .safetensors file")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    command = shlex.join(["scripts/evaluate_proposals.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        print(f"report: {evaluate_proposals(**vars(arguments), command=command)}")
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
