"""The loop of a team against the real server: save labelled studies, press Train, and compare before with after."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import requests
from monailabel.client import MONAILabelClient
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, read_case, write_volume
from ctsam3d.evaluation import evaluate, find_cases
from ctsam3d.labelapp.local_server import copy_app, local_server
from ctsam3d.volume import Volume

MODEL = "ctsam3d"
_POLL_SECONDS = 5


def team_loop(
    app: str | os.PathLike,
    data: str | os.PathLike,
    labelled: Sequence[str],
    sets: dict[str, tuple[str | os.PathLike, Sequence[str] | None]],
    out: str | os.PathLike,
    options: dict | None = None,
    clicks: Sequence[int] = (1, 3, 5),
    seeds: int = 3,
) -> Path:
    """Label, train and measure as a team would; writes ``report.md`` and the evaluations under `out`.

    Args:
        app: the app's folder; a copy of it is served, so that its versions stay as they are.
        data: folder of cases.
        labelled: cases whose labels the team saves as final.
        sets: what is measured before and after: name to a folder of cases and the cases in it (None: all).
        options: of the training, see `ClickTrainTask.config`.

    Returns:
        Path of the report.

    Raises:
        RuntimeError: the server does not start, or the training fails.
    """
    out = Path(out)
    served, studies = out / "app", out / "studies"
    copy_app(app, served)
    studies.mkdir(parents=True)
    cases = find_cases(data, labelled)
    for case in cases:
        shutil.copyfile(case / "ct.nii.gz", studies / f"{case.name}.nii.gz")
    before = _measure(sets, "default", out / "before", clicks, seeds)
    about = checkpoint.read_about(checkpoint.packaged_path())
    with local_server(served, studies, out / "server.log") as server:
        client = MONAILabelClient(server.url, tmpdir=str(out))
        for case in cases:
            save_label(client, read_case(case), out)
        stats = press_train(client, server.url, options or {})
    weights = served / "model" / MODEL / f"{stats['outcome']['candidate']}.safetensors"
    after = _measure(sets, weights, out / "after", clicks, seeds)
    return _write_report(out, about, stats, before, after, seeds)


def save_label(client: MONAILabelClient, case: Case, out: Path) -> None:
    """All structures of a case in one label map, as Slicer saves it: tag final, names in `label_info`.

    Args:
        out: folder for the file on its way.
    """
    labels_ijk = np.zeros(case.volume.shape_ijk, np.int16)
    for value, name in enumerate(case.names, start=1):
        labels_ijk[case.mask(name)] = value
    path = out / f"{case.name}_label.nii.gz"
    write_volume(path, Volume(labels_ijk, case.volume.affine_ras_mm))
    info = [{"name": name, "idx": value} for value, name in enumerate(case.names, start=1)]
    client.save_label(case.name, str(path), tag="final", params={"label_info": info})
    path.unlink()


def press_train(client: MONAILabelClient, url: str, options: dict) -> dict:
    """Press Train and wait; the status at the end.

    Raises:
        RuntimeError: the training fails.
    """
    client.train_start(MODEL, options)
    with tqdm(desc="training", unit="step") as bar:
        while True:
            time.sleep(_POLL_SECONDS)
            status = client.train_status()
            stats = requests.get(f"{url}/info/", timeout=60).json()["train_stats"].get(MODEL, {})
            bar.total, bar.n = stats.get("steps"), stats.get("step", 0)
            bar.set_postfix_str(str(stats.get("state", "")))
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                break
    if status["status"] != "DONE":
        raise RuntimeError(f"training ended as {status['status']}: {stats.get('error') or status.get('details')}")
    return stats


def _measure(sets, weights, out: Path, clicks: Sequence[int], seeds: int) -> pd.DataFrame:
    frames = []
    for name, (folder, cases) in sets.items():
        evaluate(folder, out / name, weights, cases, clicks=clicks, seeds=seeds, expand=False)
        frames.append(pd.read_csv(out / name / "results.csv").assign(set=name))
    return pd.concat(frames)


def _write_report(
    out: Path, about: checkpoint.About, stats: dict, before: pd.DataFrame, after: pd.DataFrame, seeds: int
) -> Path:
    def table(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.groupby(["set", "case", "clicks"], sort=False)["dsc"].mean().unstack("clicks")

    then, now = table(before), table(after)
    counts = list(then.columns)
    lines = ["# The loop of a team", ""]
    lines += [f"- {part}: {', '.join(names) or 'none'}" for part, names in stats["studies"].items()]
    lines += [f"- before: {about.version}, SHA-256 {about.sha256}, which had seen {', '.join(about.notes['data'])}"]
    lines += [f"- outcome: {stats['outcome']['reason']}", f"- options: `{json.dumps(stats['options'])}`"]
    lines += [f"- DSC of single patches, mean over structures and {seeds} seeds; before -> after", ""]
    lines += ["| set | case | " + " | ".join(f"{n} clicks" for n in counts) + " |", "|---|---|" + "---|" * len(counts)]
    for (group, case), row in then.iterrows():
        cells = (f"{row[n]:.3f} -> {now.loc[(group, case), n]:.3f}" for n in counts)
        lines.append(f"| {group} | {case} | " + " | ".join(cells) + " |")
    for group in then.index.unique("set"):
        cells = (f"**{then.loc[group, n].mean():.3f} -> {now.loc[group, n].mean():.3f}**" for n in counts)
        lines.append(f"| **{group}** | **mean over cases** | " + " | ".join(cells) + " |")
    with atomic_path(out / "report.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / "report.md"
