"""The log of efforts as tables: what a structure costs over time, and under each version of the weights."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ctsam3d.evaluation.timing import markdown
from ctsam3d.labelapp.effort import read_events

_COLUMNS = tuple("time image annotator structure version clicks negative undone seconds dsc nsd".split())


def saved_structures(events: Iterable[dict]) -> pd.DataFrame:
    """A row for each structure that was clicked and then saved, in the order of the saves.

    The annotator is the user who saved it; where nobody has a token, the client that clicked.
    """
    rows = []
    for event in events:
        if event["event"] == "saved":
            common = {"time": event["time"], "image": event["image"]}
            rows += [{**common, "annotator": event["user"] or row["client"], **row} for row in event["structures"]]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"dsc": float, "nsd": float})


def summary(frame: pd.DataFrame, by: Sequence[str]) -> list[dict]:
    """Rows by the columns `by`: structures saved, mean clicks and minutes of a structure, and mean DSC and NSD between
    the model's last mask and what was saved; an empty cell where none is known."""
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        means = part[["clicks", "negative", "undone", "dsc", "nsd"]].mean()
        row = dict(zip(by, key if isinstance(key, tuple) else (key,)))
        row |= {
            "saved": len(part),
            "clicks": round(means["clicks"], 2),
            "of these negative": round(means["negative"], 2),
        }
        row |= {"taken back": round(means["undone"], 2), "minutes": round(part["seconds"].mean() / 60, 2)}
        row |= {name: "" if np.isnan(means[name]) else round(means[name], 3) for name in ("dsc", "nsd")}
        rows.append(row)
    return rows


def report(logs: Sequence[str | os.PathLike]) -> str:
    """The tables of some logs as text.

    Raises:
        ValueError: nothing that was clicked has been saved.
    """
    events = sorted((event for log in logs for event in read_events(log)), key=lambda event: event["time"])
    frame = saved_structures(events)
    if frame.empty:
        clicks = sum(event["event"] == "click" for event in events)
        raise ValueError(f"log must hold a save after clicks, it holds {clicks} requests with clicks and no such save")
    days = [datetime.datetime.fromtimestamp(then, datetime.UTC).strftime("%Y-%m-%d") for then in frame["time"]]
    frame = frame.assign(day=days)
    parts = {
        "By version of the weights: does the model save work?": ("version",),
        "By structure and version": ("structure", "version"),
        "By structure and day (UTC)": ("structure", "day"),
        "By annotator": ("annotator",),
    }
    texts = [f"{len(frame)} structures of {frame['image'].nunique()} scans, saved from {days[0]} to {days[-1]}"]
    texts += [f"{title}\n\n{markdown(summary(frame, by))}" for title, by in parts.items()]
    return "\n\n".join(texts)


def find_logs(app: str | os.PathLike) -> list[Path]:
    """The logs in an app's folder, one for each studies folder that it has served.

    Raises:
        ValueError: none there.
    """
    logs = sorted(Path(app).glob("model/active/*/effort.jsonl"))
    if not logs:
        raise ValueError(f"app must be a folder whose server has answered a click, there is no log in {app}")
    return logs
