#!/usr/bin/env python
"""Turn TotalSegmentator's data set (v1, v2, v3), or cases with one label map each, into a MONAI Label datastore."""

import argparse
import os
from pathlib import Path

from ctsam3d.data.convert.cases import TEST_SHARE
from ctsam3d.data.convert.totalseg import convert_totalseg


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in", dest="source", required=True, type=Path, help="folder of cases, or a case")
    parser.add_argument("--out", required=True, type=Path, help="folder of the datastore, the server's --studies")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--meta", type=Path, help="table with image_id, split, patient; default IN/meta.csv")
    parser.add_argument("--test-share", type=float, default=TEST_SHARE,
                        help="of the patients that are held out, where the table gives no split")  # fmt: skip
    parser.add_argument("--cases", dest="names", type=_names, help="names of cases: a,b,c; default all")
    try:
        result = convert_totalseg(**vars(parser.parse_args(argv)))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    for record in result.refused:
        print(f"refused {record.case}: {record.refused}")
    print(f"{len(result.records) - len(result.refused)} cases converted, {len(result.refused)} refused")
    print(f"report: {result.report}")


if __name__ == "__main__":
    main()
