"""Scoring of MONAI Label: how far what the model said is from what was saved, structure by structure, by version.

``POST /scoring/ctsam3d`` compares labels that are final with those of another tag, label by label through the names
that were saved with them. For masks that were clicked and saved, the log of efforts has the scores already, as the
server keeps no copy of them. All scores are appended to a history.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from ctsam3d.data.files import append_json, file_signature, read_json_lines
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
        self._said: tuple = (None, {})  # of the history: signature of the file, and what `by_version` made of it

    @property
    def _path(self) -> Path:
        return self._folder / "scores.jsonl"

    def info(self) -> dict:
        """With the scores of each version, which clients see under ``/info/``; they ask often."""
        signature = file_signature(self._path)
        if signature != self._said[0]:
            self._said = signature, by_version(self.history())
        return {**super().info(), "versions": self._said[1]}

    def __call__(self, request: Mapping, datastore: Datastore) -> dict:
        """Scores the studies whose labels the history does not have yet, and adds them to it.

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
        rows, skipped, known = [], {}, {_key(row) for row in self.history()}
        compared = {key[:-1] for key in known}
        for image in sorted(LocalDatastore.get_labeled_images(datastore)):
            if {y, y_pred} <= set(LocalDatastore.get_labels_by_image_id(datastore, image)):
                head = self._head(datastore, image, y, y_pred)
                if _key({**head, "structure": ""})[:-1] in compared:
                    continue
                try:
                    rows += [{**head, **row} for row in self._compared(datastore, image, y, y_pred)]
                except (OSError, ValueError) as error:
                    skipped[image] = str(error)
                    logger.warning("study %s is not scored: %s", image, error)
        rows += list(clicked_rows(read_events(self._folder / "effort.jsonl")))
        new = list({_key(row): row for row in rows if _key(row) not in known}.values())
        append_json(self._path, new)
        return {"scored": len(new), "skipped": skipped, "versions": by_version(self.history())}

    def history(self) -> list[dict]:
        """All scores so far, the oldest first."""
        return list(read_json_lines(self._path))

    def _compared(self, datastore: Datastore, image: str, y: str, y_pred: str) -> list[dict]:
        volume = read_volume(LocalDatastore.get_image_uri(datastore, image))
        maps, values = [], []
        for tag in (y, y_pred):
            info = LocalDatastore.get_label_info(datastore, image, tag) or {}
            maps.append(read_labels(LocalDatastore.get_label_uri(datastore, image, tag), volume))
            values.append(structure_values(info.get("label_info"), self._labels))
        return score_labels(maps[0], maps[1], values[0], values[1], volume)

    def _head(self, datastore: Datastore, image: str, y: str, y_pred: str) -> dict:
        """What is the same for all structures of two labels."""
        true, said = (LocalDatastore.get_label_info(datastore, image, tag) or {} for tag in (y, y_pred))
        head = {"time": round(self._clock(), 2), "image": image, "source": y_pred, "version": _version(said)}
        return head | {"label": true.get("version"), "scored_label": said.get("version")}


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
    present = [set(np.unique(labels_ijk).tolist()) for labels_ijk in (true_ijk, said_ijk)]
    for name in dict.fromkeys([*true_values, *said_values]):
        own = [there.intersection(values.get(name, ())) for there, values in zip(present, (true_values, said_values))]
        if any(own):
            true, said = (np.isin(array, list(found)) for array, found in zip((true_ijk, said_ijk), own))
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
    """What makes a score that of another comparison; the structure is the last part."""
    if row["source"] == CLICKED:
        return CLICKED, row["image"], row["session"], row["time"], row["structure"]
    return row["source"], row["image"], row["label"], row["scored_label"], row["version"], row["structure"]


def _version(info: Mapping) -> str:
    """Of the weights that made a label, as whoever saved it said."""
    params = info.get("params")
    said = info.get("model_version") or (params.get("version") if isinstance(params, Mapping) else None)
    return str(said or "unknown")
