#!/usr/bin/env python
"""Put trained networks beside each other in one file: their logits are averaged. P is the first one's."""

import argparse
from pathlib import Path

from ctsam3d import checkpoint


def main(argv: list[str] | None = None) -> None:
    """Read the command line and make one library call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+", help="two or more, .safetensors files or packaged weights by name")
    parser.add_argument("--out", required=True, type=Path, help="the .safetensors file to write")
    parser.add_argument("--version", default="combined", help="a name for the new weights")
    arguments = parser.parse_args(argv)
    try:
        content = checkpoint.combined(
            [checkpoint.load(checkpoint.path_of(own)) for own in arguments.weights], arguments.version
        )
        digest = checkpoint.save(arguments.out, content, half=True)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"weights: {arguments.out} (SHA-256 {digest})")


if __name__ == "__main__":
    main()
