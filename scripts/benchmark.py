#!/usr/bin/env python
"""Measure how long things take here; medians of one run.

click: seconds of a first and a second click, by stage. training: seconds of a step of Algorithm 1, and where they go.
"""

import argparse

from ctsam3d.evaluation.benchmark import SHARES, STAGES, benchmark_clicks, benchmark_training


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def _clicks(arguments: argparse.Namespace) -> None:
    rows = benchmark_clicks(arguments.presets, arguments.repeats, arguments.device, arguments.feedback)
    table = [[row["preset"], row["click"], *(f"{row[stage]:.3f}" for stage in STAGES)] for row in rows]
    _print_table(["preset", "click", *(f"{stage} s" for stage in STAGES)], table)


def _training(arguments: argparse.Namespace) -> None:
    rows = benchmark_training(arguments.presets, arguments.repeats, arguments.device, arguments.batch_size)
    table = [
        [row["preset"], f"{row['step']:.2f}", f"{row['pair-round']:.3f}",
         *(f"{100 * row[name]:.1f} %" for name in SHARES), f"{row['memory']:.1f}"]
        for row in rows
    ]  # fmt: skip
    _print_table(["preset", "step s", "pair-round s", *SHARES, "peak memory GB"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("click", "training"))
    parser.add_argument("--presets", type=lambda text: text.split(","), help="tiny,small,base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--feedback", type=int, default=0, help="click: passes in which S sees its own answer again")
    parser.add_argument("--batch-size", type=int, default=4, help="training: pairs a step")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.presets = arguments.presets or {"click": ["tiny", "base"], "training": ["tiny", "small"]}[arguments.what]
    {"click": _clicks, "training": _training}[arguments.what](arguments)


if __name__ == "__main__":
    main()
