#!/usr/bin/env python
"""Measure how long things take here. `benchmark.py click`: seconds of a first and a second click, by stage."""

import argparse

from ctsam3d.evaluation.benchmark import STAGES, benchmark_clicks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("click",))
    parser.add_argument("--presets", default="tiny,base", help="tiny,small,base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print("| preset | click | " + " | ".join(f"{stage} s" for stage in STAGES) + " |\n|" + "---|" * (2 + len(STAGES)))
    for row in benchmark_clicks(arguments.presets.split(","), arguments.repeats, arguments.device):
        print(f"| {row['preset']} | {row['click']} | " + " | ".join(f"{row[stage]:.3f}" for stage in STAGES) + " |")


if __name__ == "__main__":
    main()
