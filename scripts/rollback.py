#!/usr/bin/env python
"""List the versions of the weights that an app has trained, or go back to an older one; the server need not stop."""

import argparse
from pathlib import Path

from ctsam3d.labelapp.versions import PREVIOUS, Versions, describe

APP = Path(__file__).resolve().parents[1] / "apps" / "ctsam3d"


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", type=Path, default=APP, help="folder of the app; default: the one beside this script")
    parser.add_argument("--to", default=PREVIOUS, help="a version, 'base' (the weights that the server was started "
                        "with), or 'previous' (the default): what the current version was trained from")  # fmt: skip
    parser.add_argument("--weights", default="default", help="the server's --conf weights, if it has any")
    parser.add_argument("--list", action="store_true", help="change nothing, list the versions")
    arguments = parser.parse_args(argv)
    versions = Versions(arguments.app / "model" / "ctsam3d", arguments.weights)
    try:
        if not arguments.app.is_dir():
            raise ValueError(f"--app must be the folder of the app, got {arguments.app}")
        text = describe(versions) if arguments.list else f"current: {versions.roll_back(arguments.to)}"
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(text)


if __name__ == "__main__":
    main()
