"""Scoring of MONAI Label: how far what the model said is from what was saved, structure by structure, by version.

``POST /scoring/ctsam3d`` compares labels that are final with those of another tag, label by label through the names
that were saved with them. For masks that were clicked and saved, the log of efforts has the scores already, as the
server keeps no copy of them. All scores are appended to a history.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from ctsam3d.data.io import read_labels, read_volume
from ctsam3d.labelapp.datalist import structure_values
from ctsam3d.labelapp.effort import NSD_MM, read_events
from ctsam3d.labelapp.names import FINAL, check_tag
from ctsam3d.metrics import dice, normalised_surface_dice
from ctsam3d.volume import Volume

logger = logging.getLogger(__name__)

MODEL_TAG = "original"  # MONAI Label's name for what a model said
CLICKED = "clicked"  # source of scores from the log of efforts


class LabelScoring(ScoringMethod):
    """DSC and NSD of each structure of each study with a final label.

    Args:
        folder: of the history, ``scores.jsonl``, and of the log of efforts, ``effort.jsonl``.
        labels: of the app, for labels that were saved without names.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: str | os.PathLike, labels: Sequence[str], clock: Callable[[], float] = time.time):
        super().__init__("DSC and NSD a structure, between final labels and what the model said; a history by version")
        self._folder, self._labels, self._clock = Path(folder), labels, clock

    def info(self) -> dict:
        """With the scores of each version, which clients see under ``/info/``."""
        return {**super().info(), "versions": by_version(self.history())}

    def __call__(self, request: Mapping, datastore: Datastore) -> dict:
        """Scores all studies and adds to the history what is not there yet.

        Args:
            request: ``y`` (tag of what is right, default final) and ``y_pred`` (tag of what is scored, default
                original).

        Returns:
            ``scored`` and ``skipped`` (number, and study to reason), and ``versions``: of each version of the weights
            in the history, number of structures, mean DSC and NSD, and mean predicted quality where it is known.

        Raises:
            RequestError: not a tag.
        """
        y, y_pred = check_tag(request.get("y") or FINAL), check_tag(request.get("y_pred") or MODEL_TAG)
        rows, skipped = [], {}
        for image in sorted(LocalDatastore.get_labeled_images(datastore)):
            if {y, y_pred} <= set(LocalDatastore.get_labels_by_image_id(datastore, image)):
                try:
                    rows += self._compared(datastore, image, y, y_pred)
                except (OSError, ValueError) as error:
                    skipped[image] = str(error)
                    logger.warning("study %s is not scored: %s", image, error)
        rows += list(clicked_rows(read_events(self._folder / "effort.jsonl")))
        known = {_key(row) for row in self.history()}
        new = list({_key(row): row for row in rows if _key(row) not in known}.values())
        self._append(new)
        return {"scored": len(new), "skipped": skipped, "versions": by_version(self.history())}

    def history(self) -> list[dict]:
        """All scores so far, the oldest first."""
        try:
            lines = (self._folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a torn line is no score

    def _compared(self, datastore: Datastore, image: str, y: str, y_pred: str) -> list[dict]:
        volume = read_volume(LocalDatastore.get_image_uri(datastore, image))
        maps, values, infos = [], [], []
        for tag in (y, y_pred):
            info = LocalDatastore.get_label_info(datastore, image, tag) or {}
            infos.append(info)
            maps.append(read_labels(LocalDatastore.get_label_uri(datastore, image, tag), volume))
            values.append(structure_values(info.get("label_info"), self._labels))
        head = {"time": round(self._clock(), 2), "image": image, "source": y_pred}
        head |= {"label": infos[0].get("version"), "scored_label": infos[1].get("version")}
        version = _version(infos[1])
        rows = score_labels(maps[0], maps[1], values[0], values[1], volume)
        return [{**head, "version": version, **row} for row in rows]

    def _append(self, rows: Sequence[dict]) -> None:
        if rows:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / "scores.jsonl", "a", encoding="utf-8") as lines:
                lines.write("".join(json.dumps(row) + "\n" for row in rows))


def score_labels(
    true_ijk: np.ndarray,
    said_ijk: np.ndarray,
    true_values: Mapping[str, Sequence[int]],
    said_values: Mapping[str, Sequence[int]],
    volume: Volume,
) -> list[dict]:
    """Structure, DSC, and NSD at 5 mm, of each structure that one of two label maps holds.

    A structure is compared by its name: its values in the two maps may differ.

    Args:
        true_ijk, said_ijk: (I, J, K) on the grid of `volume`.
        true_values, said_values: name to its values in each of the maps.
    """
    rows = []
    for name in dict.fromkeys([*true_values, *said_values]):
        true = np.isin(true_ijk, list(true_values.get(name, ())))
        said = np.isin(said_ijk, list(said_values.get(name, ())))
        if true.any() or said.any():
            nsd = normalised_surface_dice(said, true, volume.spacing_ijk_mm, NSD_MM)
            rows.append({"structure": name, "dsc": round(dice(said, true), 4), "nsd": round(nsd, 4)})
    return rows


def clicked_rows(events) -> list[dict]:
    """Rows of the history from the log of efforts."""
    rows = []
    for event in events:
        for row in event["structures"] if event["event"] == "saved" else ():
            if row["dsc"] is not None:
                kept = {name: row[name] for name in ("structure", "version", "dsc", "nsd", "quality", "clicks")}
                rows.append({"time": event["time"], "image": event["image"], "source": CLICKED, **kept,
                             "session": row["session"]})  # fmt: skip
    return rows


def by_version(history: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Of each version: number of structures, mean DSC and NSD, and mean predicted quality where any is known."""
    found: dict[str, list[Mapping]] = {}
    for row in history:
        found.setdefault(row["version"], []).append(row)
    out = {}
    for version, rows in found.items():
        means = {name: [row[name] for row in rows if row.get(name) is not None] for name in ("dsc", "nsd", "quality")}
        out[version] = {"structures": len(rows)}
        out[version] |= {name: round(float(np.mean(values)), 4) for name, values in means.items() if values}
    return out


def _key(row: Mapping) -> tuple:
    """What makes a score that of another comparison."""
    if row["source"] == CLICKED:
        return CLICKED, row["image"], row["structure"], row["session"], row["time"]
    return row["source"], row["image"], row["structure"], row["label"], row["scored_label"], row["version"]


def _version(info: Mapping) -> str:
    """Of the weights that made a label, as whoever saved it said."""
    params = info.get("params")
    said = info.get("model_version") or (params.get("version") if isinstance(params, Mapping) else None)
    return str(said or "unknown")
