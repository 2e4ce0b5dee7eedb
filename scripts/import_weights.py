#!/usr/bin/env python
"""Turn the published params.pth into one .safetensors file with everything needed to use it."""

import argparse
import re
import sys
from pathlib import Path

from ctsam3d import checkpoint


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path, help="the published params.pth")
    parser.add_argument("--config", type=Path, help="the published config.py, for its HU window; default: beside it")
    parser.add_argument("--hu-window", metavar="LO,HI", help="HU that become 0 and 1, instead of the config's")
    parser.add_argument("--out", required=True, type=Path, help="the .safetensors file to write")
    argv = sys.argv[1:] if argv is None else argv
    # argparse takes "-125,225" for an option; with a space before it, for the value that it is.
    arguments = parser.parse_args([f" {a}" if re.match(r"-[0-9]", a) else a for a in argv])
    try:
        if arguments.out.suffix != ".safetensors":
            raise ValueError(f"--out must end with .safetensors, got {arguments.out}")
        window = arguments.hu_window and checkpoint.check_hu_window(arguments.hu_window.split(","))
        imported = checkpoint.import_published(arguments.params, window, arguments.config)
        digest = checkpoint.save(arguments.out, imported)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    low, high = imported.hu_window
    print(f"weights: {arguments.out}, version {imported.version}, SHA-256 {digest}")
    print(f"HU window: {low:g} to {high:g}, {imported.notes['hu_window']}")
    print(f"left out, as they take no part in the mask: {', '.join(imported.notes['left_out']) or 'none'}")


if __name__ == "__main__":
    main()
