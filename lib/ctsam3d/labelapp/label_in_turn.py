"""Annotators who label phantoms in turn against the real server, train once, and go on: what the log of efforts shows.

The annotators are simulated: they take what Next Sample gives them, click until the mask is good, mend the rest by hand
(what they submit is the truth), and take the next one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from monailabel.client import MONAILabelClient
from tqdm import tqdm

from ctsam3d.acquisition import TARGET_DSC
from ctsam3d.clicks import first_click, next_click
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, read_labels
from ctsam3d.data.phantom_sets import PhantomSpec, phantom_case
from ctsam3d.evaluation.simulate import user_rng
from ctsam3d.evaluation.timing import markdown
from ctsam3d.labelapp.effort import read_events
from ctsam3d.labelapp.effort_report import find_logs, report, saved_structures, summary
from ctsam3d.labelapp.local_server import copy_app, local_server
from ctsam3d.labelapp.strategy import DEFAULT
from ctsam3d.labelapp.team_loop import press_train, save_label
from ctsam3d.metrics import dice

ANNOTATORS = ("anna", "ben")
MODEL = "ctsam3d_points"
MAX_CLICKS = 6  # that an annotator spends on a structure
REGIONS = ("abdomen", "trunk")
SPACING_MM = (2.5, 2.5, 3.0)
_FIRST_SEED = 40_000  # of the phantoms; no other ones begin there
_SAVED_SECONDS = 120.0
_QUICK = """
from ctsam3d.labelapp import retrain
retrain.REPLAY, retrain.REFERENCE = retrain.REPLAY[1:2], retrain.REFERENCE[:1]
"""


def label_in_turn(
    app: str | os.PathLike,
    out: str | os.PathLike,
    phantoms: int = 10,
    structures: Sequence[str] = ("liver", "spleen"),
    strategy: str = DEFAULT,
    options: dict | None = None,
    quick: bool = False,
    command: str = "",
) -> Path:
    """Two annotators label one half of the phantoms in turn, press Train, and label the other half.

    Args:
        app: the app's folder; a copy of it is served.
        out: new folder.
        structures: that are clicked and submitted.
        strategy: of Next Sample.
        options: of the training, see `ClickTrainTask.config`.
        quick: whether the training replays, and is measured on, one phantom in the place of nine.
        command: for the report.

    Returns:
        Path of ``report.md``: the outcome of the training, `before_and_after` it, and the tables of
        `effort_report.report`.

    Raises:
        ValueError: fewer than two phantoms.
        RuntimeError: the server does not start, a scan is missing or given out twice, or the training fails.
    """
    if phantoms < 2:
        raise ValueError(f"phantoms must be at least 2, got {phantoms}")
    out = Path(out)
    served, studies = copy_app(app, out / "app"), out / "studies"
    if quick:
        with open(served / "main.py", "a", encoding="utf-8") as code:
            code.write(_QUICK)
    studies.mkdir()
    specs = [PhantomSpec(_FIRST_SEED + n, REGIONS[n % 2], SPACING_MM, tuple(structures)) for n in range(phantoms)]
    cases = {spec.name: phantom_case(out / "phantoms", spec) for spec in tqdm(specs, desc="phantoms")}
    with local_server(served, studies, out / "server.log") as server:
        clients = [MONAILabelClient(server.url, tmpdir=str(out), client_id=name) for name in ANNOTATORS]
        for name, case in cases.items():
            said = {"patient": name, "structures": list(case.names)}
            clients[0].upload_image(str(out / "phantoms" / name / "ct.nii.gz"), name, said)
        left, half = dict(cases), (phantoms + 1) // 2
        _label(clients, left, half, strategy, structures, out)
        _wait_for_saves(served, sum(len(case.names) for name, case in cases.items() if name not in left))
        trained = time.time()
        stats = press_train(clients[0], server.url, options or {})
        _label(clients, left, phantoms - half, strategy, structures, out)
        _wait_for_saves(served, sum(len(case.names) for case in cases.values()))
    logs = find_logs(served)
    text = "\n\n".join([before_and_after([e for log in logs for e in read_events(log)], trained), report(logs)])
    head = [f"# {phantoms} phantoms, labelled in turn by {' and '.join(ANNOTATORS)}", ""]
    head += [f"`{command}`", ""] if command else []
    head += [f"- training after {half}: {stats['outcome']['reason']}", f"- options: `{json.dumps(stats['options'])}`"]
    with atomic_path(out / "report.md") as path:
        path.write_text("\n".join([*head, "", text, ""]), encoding="utf-8")
    return out / "report.md"


def before_and_after(events: Iterable[dict], trained: float) -> str:
    """A table of what a structure cost before and after the training, `trained` in seconds since the epoch."""
    frame = saved_structures(events)
    when = np.where(frame["time"] < trained, "before", "after")
    rows = summary(frame.assign(training=when), ("structure", "training", "version"))
    return f"Before and after the training\n\n{markdown(rows)}"


def _label(clients, left: dict[str, Case], count: int, strategy: str, structures: Sequence[str], out: Path) -> None:
    """`count` scans, by one client after the other; they are taken out of `left`."""
    for number in tqdm(range(count), desc="scans"):
        client = clients[number % len(clients)]
        sample = client.next_sample(strategy, {"structures": list(structures)})
        case = left.pop(sample.get("id"), None)
        if case is None:
            raise RuntimeError(f"a scan must be given out once, {sample.get('id')!r} was: {sample.get('reason')}")
        for name in case.names:
            annotate(client, case, name, out)
        save_label(client, case, out)


def annotate(client: MONAILabelClient, case: Case, structure: str, folder: Path) -> int:
    """Clicks a structure of a scan until DSC is `TARGET_DSC` or `MAX_CLICKS` are spent; returns their number.

    Args:
        folder: of the client's replies.
    """
    target_ijk = case.mask(structure)
    first = [int(v) for v in first_click(target_ijk, user_rng(0, case.name, structure))]
    clicks = {"foreground": [first], "background": []}
    while True:
        asked = {**clicks, "label": structure, "expand": False}
        file, _ = client.infer(MODEL, case.name, {**asked, "result_extension": ".nii.gz"})
        mask_ijk = read_labels(file, case.volume) > 0
        os.unlink(file)
        found = next_click(mask_ijk, target_ijk, case.volume.spacing_ijk_mm)
        made = clicks["foreground"] + clicks["background"]
        if found is None or dice(mask_ijk, target_ijk) >= TARGET_DSC or len(made) == MAX_CLICKS:
            return len(made)
        voxel_ijk = [int(v) for v in found[0]]
        if voxel_ijk in made:  # the network does not follow a click that is there already
            return len(made)
        clicks["foreground" if found[1] else "background"].append(voxel_ijk)


def _wait_for_saves(served: Path, count: int) -> None:
    """The log is written after the reply to a save."""
    end = time.monotonic() + _SAVED_SECONDS
    while time.monotonic() < end:
        saved = sum(len(saved_structures(read_events(log))) for log in served.glob("model/active/*/effort.jsonl"))
        if saved >= count:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the log of efforts must hold {count} structures by now, it holds fewer")
