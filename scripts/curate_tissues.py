#!/usr/bin/env python
"""Add skeletal muscle, visceral and subcutaneous fat to labelled cases; write a QA sheet a case, and tissues.csv."""

import argparse
from pathlib import Path

from ctsam3d.data.curate import curate


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of case folders, or a datastore")
    parser.add_argument("--out", required=True, type=Path, help="another folder, for the cases with their tissues")
    parser.add_argument("--cases", type=_names, help="names of cases: a,b,c; default all")
    parser.add_argument("--workers", type=int, default=1, help="processes; each needs about 2 GB at 400 x 400 x 400")
    parser.add_argument("--tissues", type=Path,
                        help="folder of TotalSegmentator's tissue_types: CASE/torso_fat.nii.gz ...")  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        print(f"table: {curate(**vars(arguments))}")
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
