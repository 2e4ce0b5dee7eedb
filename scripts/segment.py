#!/usr/bin/env python
"""Segment one structure of a CT by clicks: scripts/segment.py CT --click i,j,k --out mask.nii.gz --png overlay.png"""

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np

import ctsam3d
from ctsam3d.data.io import WRITABLE_SUFFIXES, write_mask
from ctsam3d.evaluation.overlay import draw_overlay


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


def _voxel(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(re.fullmatch(r"[+-]?[0-9]+", part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be three whole numbers i,j,k without spaces, got {text.strip()!r}")
    return tuple(map(int, parts))


def _file(*suffixes: str):
    def check(text: str) -> Path:
        if not text.lower().endswith(suffixes):
            raise argparse.ArgumentTypeError(f"must end with {' or '.join(suffixes)}, got {text!r}")
        return Path(text)

    return check


def parse(argv: list[str]) -> tuple[Parser, argparse.Namespace]:
    """The checked command line, and its parser for errors that are found later; exits with 2 where it is wrong."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("ct", metavar="CT", help="NIfTI, NRRD or MetaImage file, or a folder of DICOM slices")
    parser.add_argument("--click", dest="positive", type=_voxel, action="append", required=True, metavar="i,j,k",
                        help="a voxel of the structure, in the file's own array order; may be repeated")  # fmt: skip
    parser.add_argument("--not", dest="negative", type=_voxel, action="append", default=[], metavar="i,j,k",
                        help="a voxel that does not belong to it; may be repeated")  # fmt: skip
    parser.add_argument("--out", type=_file(*WRITABLE_SUFFIXES), help="file for the mask")
    parser.add_argument("--png", type=_file(".png"), help="file for a picture: three slices through the first click")
    parser.add_argument("--weights", default="default", help="packaged name or a .safetensors file")
    parser.add_argument("--device", default="cpu")
    # argparse takes "-1,2,3" for an option; with a space before it, for the value that it is.
    arguments = parser.parse_args([f" {a}" if re.match(r"-[0-9]", a) else a for a in argv])
    if arguments.out is None and arguments.png is None:
        parser.error("one of --out and --png must be given, got neither")
    return parser, arguments


def run(arguments: argparse.Namespace) -> None:
    """Run the clicks, write what was asked for, and say how much was segmented."""
    volume = ctsam3d.read_volume(arguments.ct)
    session = ctsam3d.load(arguments.weights, arguments.device).session(volume)
    start = time.perf_counter()
    session.set_clicks(arguments.positive, arguments.negative)
    seconds = time.perf_counter() - start
    mask = session.mask()
    voxels = int(np.count_nonzero(mask))
    millilitres = voxels * abs(np.linalg.det(volume.affine_ras_mm[:3, :3])) / 1000
    print(f"{voxels} voxels, {millilitres:.1f} ml, {len(session.clicks)} clicks in {seconds:.2f} s")
    if arguments.out is not None:
        write_mask(arguments.out, mask, volume)
        print(f"mask: {arguments.out}")
    if arguments.png is not None:
        draw_overlay(arguments.png, volume, mask, session.clicks, arguments.positive[0], f"{millilitres:.1f} ml")
        print(f"picture: {arguments.png}")


def main(argv: list[str] | None = None) -> None:
    parser, arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        run(arguments)
    except (ValueError, TypeError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
