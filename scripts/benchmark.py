#!/usr/bin/env python
"""Measure here: tables on the screen, and with --out the same as JSON. Times are medians of one run.

click: first and next clicks against the dense path, the ring around a patch, and whole clicks over HTTP on a scan of
512 x 512 x 600 voxels beside those of a sample app of MONAI Label. training: a step of Algorithm 1, and where its
time goes. load: many clients at once against a server, which with --beside-training trains meanwhile; --compare:
whether each gets the mask that it gets alone, else status 1. soak: memory and open files of a server over many
clicks, and status 1 where one of them failed. evaluation: what the harness of scripts/evaluate.py adds to the
network's time. crash: kill -9 of a server at random moments while clients save labels, and what is left of them; it
ends with status 1 where anything is lost. next_sample: how long Next Sample takes in a large pool that is scored.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ctsam3d.evaluation import USERS, benchmark
from ctsam3d.evaluation.harness_benchmark import benchmark_evaluation
from ctsam3d.evaluation.ring_benchmark import benchmark_expansion
from ctsam3d.evaluation.timing import markdown, write_results
from ctsam3d.labelapp.click_times import benchmark_http
from ctsam3d.labelapp.crash import crash
from ctsam3d.labelapp.load import benchmark_load, benchmark_soak
from ctsam3d.labelapp.next_sample_times import benchmark_next_sample
from ctsam3d.segmenter import PRECISIONS

APP = Path(__file__).parents[1] / "apps" / "ctsam3d"
PARTS = ("session", "expansion", "http")


def _click(arguments: argparse.Namespace) -> dict:
    common = (arguments.presets, arguments.repeats, arguments.device, arguments.feedback)
    tables = {}
    if "session" in arguments.parts:
        tables["session"] = benchmark.benchmark_session(*common, precision=arguments.precision)
        tables["decode"] = benchmark.benchmark_decode(*common[:3])
    if "expansion" in arguments.parts:
        tables["expansion"] = benchmark_expansion(*common)
    if "http" in arguments.parts:
        tables |= benchmark_http(APP, arguments.repeats, _conf(arguments))
    return tables


def _training(arguments: argparse.Namespace) -> dict:
    a = arguments
    return {"training": benchmark.benchmark_training(a.presets, a.repeats, a.device, a.batch_size)}


def _load(arguments: argparse.Namespace) -> dict:
    a = arguments
    found = benchmark_load(APP, a.clients, a.clicks, _conf(a), a.beside_training, a.compare, a.expand)
    failures = [{"failure": reason} for reason in found.failures]
    return {"load": found.rows, "training": found.training, "failures": failures}


def _soak(arguments: argparse.Namespace) -> dict:
    found = benchmark_soak(APP, arguments.clicks, _conf(arguments), expand=arguments.expand)
    half = found.last_half()
    settled = {
        "clicks": half[-1].clicks,
        "growth beside sessions in the last half, MB per 1,000 clicks": found.slope,
        "RSS MB in it": f"{min(s.rss_mb for s in half):.0f} to {max(s.rss_mb for s in half):.0f}",
        "open files in it": f"{min(s.open_files for s in half)} to {max(s.open_files for s in half)}",
    }
    return {"soak": found.rows(), "settled": [settled], "failures": [{"failure": reason} for reason in found.failures]}


def _crash(arguments: argparse.Namespace) -> dict:
    found = crash(APP, arguments.kills, arguments.clients, arguments.seed, {"device": arguments.device})
    return {"crash": found.rows(), "failures": [{"failure": fault} for fault in found.faults]}


def _next_sample(arguments: argparse.Namespace) -> dict:
    return {"next_sample": benchmark_next_sample(APP, arguments.scans, arguments.repeats)}


def _evaluation(arguments: argparse.Namespace) -> dict:
    names = ("data", "weights", "device", "cases", "structures", "seeds", "expand", "user")
    return {"evaluation": benchmark_evaluation(**{name: getattr(arguments, name) for name in names})}


def _conf(arguments: argparse.Namespace) -> dict[str, str]:
    return {"device": arguments.device} | ({"weights": arguments.weights} if arguments.weights != "default" else {})


def _list(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"must be some of {','.join(known)}, got {text!r}")
        return names

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    names = ("click", "training", "load", "soak", "evaluation", "crash", "next_sample")
    click, training, load, soak, evaluation, crashes, sample = (commands.add_parser(name) for name in names)
    for command in (click, training):
        command.add_argument("--presets", type=_list(("tiny", "small", "base")))
        command.add_argument("--repeats", type=int, default=5)
    click.set_defaults(run=_click, presets=["tiny", "small", "base"])
    click.add_argument("--parts", type=_list(PARTS), default=list(PARTS), help="some of session,expansion,http")
    click.add_argument(
        "--feedback", type=int, help="passes in which S sees its own answer again; default: the weights'"
    )
    click.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the part session; default: auto")
    training.set_defaults(run=_training, presets=["tiny", "small"])
    training.add_argument("--batch-size", type=int, default=4, help="pairs a step")
    load.set_defaults(run=_load)
    load.add_argument("--clients", type=int, default=16)
    load.add_argument("--clicks", type=int, default=20, help="of each client")
    load.add_argument("--beside-training", action="store_true", help="a training runs on the server meanwhile")
    load.add_argument(
        "--compare", action="store_true", help="status 1 where a client's last mask is not the one that it gets alone"
    )
    soak.set_defaults(run=_soak)
    soak.add_argument("--clicks", type=int, default=2000)
    evaluation.set_defaults(run=_evaluation)
    evaluation.add_argument("--data", type=Path, help="folder of cases or of a data set; default: a phantom")
    evaluation.add_argument("--cases", type=lambda text: text.split(","), help="names of cases: a,b,c; default all")
    evaluation.add_argument("--structures", type=lambda text: text.split(","), help="names of structures; default all")
    evaluation.add_argument("--seeds", type=int, default=1, help="users who click each structure")
    evaluation.add_argument("--user", choices=USERS, default=USERS[0])
    crashes.set_defaults(run=_crash)
    crashes.add_argument("--kills", type=int, default=100)
    crashes.add_argument("--clients", type=int, default=3, help="that save labels, each of an image of its own")
    crashes.add_argument("--seed", type=int, default=0)
    sample.set_defaults(run=_next_sample)
    sample.add_argument("--scans", type=int, default=2000)
    sample.add_argument("--repeats", type=int, default=10, help="clients that ask, of each strategy")
    for command in (load, soak, evaluation):
        command.add_argument("--expand", action=argparse.BooleanOptionalAction, default=True)
    for command in (click, load, soak, evaluation):
        command.add_argument("--weights", default="default", help="of the server: default, or a .safetensors file")
    for command in (click, training, load, soak, evaluation, crashes, sample):
        command.add_argument("--device", default="cpu")
        command.add_argument("--out", type=Path, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the command line, measure, and print the tables."""
    arguments = _parser().parse_args(argv)
    tables = arguments.run(arguments)
    for name, rows in tables.items():
        if rows:
            print(f"\n{name}\n\n{markdown(rows)}")
    if arguments.out:
        about = {"device": arguments.device, "weights": getattr(arguments, "weights", "fresh")}
        write_results(arguments.out, tables, shlex.join(["scripts/benchmark.py", *(argv or sys.argv[1:])]), about)
    if (arguments.what in ("crash", "soak") or getattr(arguments, "compare", False)) and tables["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
