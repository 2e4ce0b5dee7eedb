"""What labelling costs: a log that is only ever appended to, a line of JSON for each request with clicks and each save.

``click``: time, session, image, structure, client, model version, the new clicks ([i, j, k, positive]), how many were
taken back, seconds of the model, and the quality that the model predicts of the clicked patch. ``saved``: time, image,
who, and of each structure that was clicked since the last save its clicks, seconds, version, and DSC and NSD between
the last mask and what was saved; these are missing where the session is gone, or the label names no such structure.

In the dialect with one list of clicks a label, positive clicks on other labels are negative ones too; these cost nobody
anything and are left out. Negative clicks that several structures share count for each of them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ctsam3d.acquisition import predicted_quality
from ctsam3d.data.files import append_json, read_json_lines
from ctsam3d.data.io import read_labels
from ctsam3d.labelapp.datalist import structure_values
from ctsam3d.labelapp.requests import ClickRequest, Structure
from ctsam3d.labelapp.sessions import HeldSession
from ctsam3d.metrics import dice, normalised_surface_dice
from ctsam3d.volume import Box, Click

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0  # between two clicks; longer ones are no work
NSD_MM = 5.0
MAX_PENDING = 1000  # images with clicks and no save, such as uploads that are only looked at
MAX_EVENTS = 5000  # of one of them; where it has more, the oldest do not count
_LOCK_SECONDS = 30.0


class EffortLog:
    """The log in a file, and the sessions since the last save of each image.

    Args:
        path: of the file; made at the first click.
        clock: seconds since the epoch.
    """

    def __init__(self, path: str | os.PathLike, clock: Callable[[], float] = time.time):
        self.path, self._clock = Path(path), clock
        self._lock = threading.Lock()
        self._pending: dict[str, list[dict]] | None = None  # by image; read when first needed
        self._spent: list[tuple[float, float, int]] = []  # read with it
        self._sessions: dict[str, weakref.ref[HeldSession]] = {}

    def clicked(
        self, image: str, request: ClickRequest, structure: Structure, own: HeldSession, before: Sequence[Click]
    ) -> None:
        """Notes what a request has changed in a session.

        Args:
            image: id of the image, or what else it is called.
            before: the session's clicks before the request.
        """
        after, shared = own.session.clicks, _shared(own.session.clicks, before)
        free = {click for other in request.structures if other is not structure for click in other.positive}
        new = [[*click.ijk, click.positive] for click in after[shared:] if click.positive or click.ijk not in free]
        undone = sum(click.positive or click.ijk not in free for click in before[shared:])
        if not new and not undone:
            return
        self._sessions[own.log_id] = weakref.ref(own, lambda _, key=own.log_id: self._sessions.pop(key, None))
        patches = own.session.state.patches
        self._append(
            {
                "event": "click",
                "time": round(self._clock(), 2),
                "session": own.log_id,
                "image": image,
                "structure": structure.name,
                "client": _anonymous(request.client),
                "version": own.version,
                "clicks": new,
                "undone": undone,
                "seconds": round(sum(own.session.seconds.values()), 3),
                "quality": round(predicted_quality(patches[-1].probability), 4) if patches else None,
            }
        )

    def saved(self, image: str, label: str, label_info, labels: Sequence[str], user: str = "") -> dict | None:
        """Notes that a label was saved as final: what it cost, and how far it is from what the model had said.

        Args:
            image: id of the image.
            label: path of the label map.
            label_info, labels: see `datalist.structure_values`.
            user: who saved it.

        Returns:
            The event; None where nobody had clicked.
        """
        clicks = self._take(image)
        if not clicks:
            return None
        now = round(self._clock(), 2)
        values, found = structure_values(label_info, labels), []
        maps: dict[str, np.ndarray] = {}  # by content: the label map is read once
        for row in summaries(clicks, now):
            own = self._session(row["session"])
            row |= {"dsc": None, "nsd": None}
            if own is not None and row["structure"] in values:
                try:
                    if own.image.content not in maps:
                        maps[own.image.content] = read_labels(label, own.image.volume)
                    saved = np.isin(maps[own.image.content], values[row["structure"]])
                    row["dsc"], row["nsd"] = scores_of(own, saved)
                except (OSError, ValueError) as error:
                    logger.warning("image %s: %s cannot be compared with what was saved: %s", image, row, error)
            found.append(row)
        event = {"event": "saved", "time": now, "image": image, "user": user, "structures": found}
        self._append(event)
        return event

    def events(self) -> list[dict]:
        """All events, the oldest first."""
        return list(read_events(self.path))

    def spent(self) -> list[tuple[float, float, int]]:
        """Of each structure that was clicked and saved: quality predicted after the first click, DSC of that click's
        mask where it is known, else NaN, and the number of clicks."""
        with self._lock:
            self._known()
            return list(self._spent)

    def _session(self, key: str) -> HeldSession | None:
        reference = self._sessions.get(key)
        return reference() if reference else None

    def _append(self, event: dict) -> None:
        with self._lock:
            known = self._known()  # before: the file is read once, without this event
            append_json(self.path, [event])
            if event["event"] == "saved":
                self._spent += _spent(event)
                return
            events = known.setdefault(event["image"], [])
            events.append(event)
            del events[:-MAX_EVENTS]
            while len(known) > MAX_PENDING:
                del known[next(iter(known))]

    def _take(self, image: str) -> list[dict]:
        with self._lock:
            return self._known().pop(image, [])

    def _known(self) -> dict[str, list[dict]]:
        if self._pending is None:
            events = self.events()
            self._pending = pending(events)
            self._spent = [row for event in events if event["event"] == "saved" for row in _spent(event)]
        return self._pending


def read_events(path: str | os.PathLike) -> Iterator[dict]:
    """The events of a log, the oldest first; lines that a killed process has torn are left out."""
    return (event for event in read_json_lines(path) if event.get("event") in ("click", "saved"))


def pending(events: Iterable[dict]) -> dict[str, list[dict]]:
    """The clicks on each image since it was saved last; by their time, as a save is noted a moment after it."""
    found: dict[str, list[dict]] = {}
    for event in events:
        if event["event"] == "saved":
            later = [click for click in found.pop(event["image"], ()) if click["time"] > event["time"]]
            found |= {event["image"]: later} if later else {}
        else:
            found.setdefault(event["image"], []).append(event)
    return found


def summaries(clicks: Sequence[Mapping], saved: float) -> list[dict]:
    """What the clicks on one image cost, a row for each structure and client.

    Time between two clicks of a client counts for the structure of the second one, that after the last click for the
    structure of the last; pauses longer than `PAUSE_SECONDS` count as that long. A click counts once, however often it
    was taken back and set again, or run anew in another session.

    Args:
        clicks: events, in their order.
        saved: when the label was saved.

    Returns:
        Rows with structure, client, session and version (of the last click), clicks, positive, negative, undone,
        seconds, model_seconds, quality (predicted after the first click).
    """
    rows: dict[tuple[str, str], dict] = {}
    made: dict[tuple[str, str], set] = {}
    last: dict[str, tuple[float, dict]] = {}  # of each client
    for event in clicks:
        key = (event["structure"], event["client"])
        row = rows.setdefault(
            key,
            {"structure": key[0], "client": key[1], "undone": 0, "seconds": 0.0, "model_seconds": 0.0,
             "quality": event.get("quality")},
        )  # fmt: skip
        row |= {"session": event["session"], "version": event["version"]}
        row["undone"] += event["undone"]
        row["model_seconds"] += event["seconds"]
        made.setdefault(key, set()).update(tuple(click) for click in event["clicks"])
        gap = event["time"] - last[key[1]][0] if key[1] in last else event["seconds"]
        row["seconds"] += min(PAUSE_SECONDS, max(0.0, gap))
        last[key[1]] = (event["time"], row)
    for then, row in last.values():
        row["seconds"] += min(PAUSE_SECONDS, max(0.0, saved - then))
    for key, row in rows.items():
        positive = sum(1 for click in made[key] if click[3])
        row |= {"clicks": len(made[key]), "positive": positive, "negative": len(made[key]) - positive}
        row |= {"seconds": round(row["seconds"], 2), "model_seconds": round(row["model_seconds"], 3)}
    return list(rows.values())


def scores_of(own: HeldSession, saved_ijk: np.ndarray) -> tuple[float | None, float | None]:
    """DSC, and NSD at 5 mm, between a session's mask and a bool mask (I, J, K) of its scan; None where it is busy."""
    if not own.lock.acquire(timeout=_LOCK_SECONDS):
        return None, None
    try:
        mask = own.session.mask().view(bool)
    finally:
        own.lock.release()
    box_ijk = _box(mask).union(_box(saved_ijk))
    if box_ijk.empty:
        return 1.0, 1.0
    parts = [array[box_ijk.slices()] for array in (mask, saved_ijk)]
    nsd = normalised_surface_dice(*parts, own.session.volume.spacing_ijk_mm, NSD_MM)
    return round(dice(*parts), 4), round(nsd, 4)


def _box(mask_ijk: np.ndarray) -> Box:
    spans = [np.flatnonzero(mask_ijk.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not all(len(span) for span in spans):
        return Box((0, 0, 0), (0, 0, 0))
    return Box(tuple(int(span[0]) for span in spans), tuple(int(span[-1]) + 1 for span in spans))


def _shared(after: Sequence[Click], before: Sequence[Click]) -> int:
    """How many clicks both begin with."""
    count = 0
    for one, other in zip(after, before):
        if one != other:
            break
        count += 1
    return count


def _anonymous(client: str) -> str:
    """A client that named itself by that name; another by a hash of its token and address."""
    return client[3:] if client.startswith("id:") else hashlib.sha256(client.encode()).hexdigest()[:12]


def _spent(event: Mapping) -> list[tuple[float, float, int]]:
    """See `EffortLog.spent`. The DSC of the first click's mask is that of the last one where there was no other."""
    rows = [row for row in event["structures"] if row["clicks"]]
    return [(_number(r["quality"]), _number(r["dsc"]) if r["clicks"] == 1 else math.nan, r["clicks"]) for r in rows]


def _number(value) -> float:
    """A number of the log, NaN for none."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
