#!/usr/bin/env python
"""Play active learning through: hidden labels, a simulated annotator, retraining; every strategy, paired by seed.

Without --pool it makes small phantoms. The same command goes on with a simulation that was stopped.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.evaluation import find_cases
from ctsam3d.labelapp.retrain import Options
from ctsam3d.labelapp.simulation import CHOICES, Plan, Simulation
from ctsam3d.labelapp.simulation_report import write_report

REGIONS = ("abdomen", "chest", "abdomen", "pelvis")
SPACING_MM = (2.5, 2.5, 3.0)


def _phantoms(folder: Path, count: int, seed: int, regions: tuple[str, ...]) -> list[Path]:
    made = []
    for number in range(count):
        case = folder / f"phantom_{seed + number}"
        if not (case / "labels.json").is_file():  # written last
            write_phantom_case(case, make_phantom(seed + number, SPACING_MM, regions[number % len(regions)]))
        made.append(case)
    return made


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(argv: list[str] | None = None) -> None:
    """Read the command line, play, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--pool", type=Path, help="folder of cases; default: phantoms")
    parser.add_argument("--test", type=Path, help="folder of cases, beside --pool")
    parser.add_argument("--pool-size", type=int, default=12, help="phantoms")
    parser.add_argument("--test-size", type=int, default=3, help="phantoms")
    parser.add_argument("--structures", type=_names, default=("liver", "spleen"))
    parser.add_argument("--strategies", type=_names, default=tuple(CHOICES))
    parser.add_argument("--weights", default="default", help="a packaged name or a .safetensors file")
    for name, value in {"seeds": 4, "rounds": 3, "k": 1, "epochs": 2, "samples": 4, "users": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="runs that are played at once, on a core each")
    a = parser.parse_args(argv)
    if (a.pool is None) != (a.test is None):
        parser.error("--pool and --test must be given together")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pool = find_cases(a.pool) if a.pool else _phantoms(a.out / "pool", a.pool_size, 20_000, REGIONS)
    test = find_cases(a.test) if a.test else _phantoms(a.out / "test", a.test_size, 30_000, REGIONS[:1])
    command = shlex.join(["scripts/simulate_active_learning.py", *(argv or sys.argv[1:])])
    try:
        options = Options(a.epochs, a.learning_rate, 2, a.samples, "decoder", 0, a.device)
        plan = Plan(a.structures, a.strategies, a.seeds, a.rounds, a.k, options, users=a.users)
        simulation = Simulation(a.out, pool, test, a.weights, plan)
        for played in simulation.run(a.processes):  # a report after every run: there is one however far it gets
            report = write_report(a.out, played, command)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"report: {report}")


if __name__ == "__main__":
    main()
