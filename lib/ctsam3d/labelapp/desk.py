"""Hands out scans: from the pool that is free, by a strategy, each to one client, with the reason for the choice."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from ctsam3d.acquisition import Effort, Pick, fit_effort
from ctsam3d.data.convert.cases import TEST
from ctsam3d.data.files import file_signature
from ctsam3d.evaluation.scan_scores import ScanScores
from ctsam3d.labelapp.conf import Conf
from ctsam3d.labelapp.effort import EffortLog
from ctsam3d.labelapp.infer import ClickEngine
from ctsam3d.labelapp.leases import Leases, LeaseTable
from ctsam3d.labelapp.names import FINAL
from ctsam3d.labelapp.requests import MAX_NAME, RequestError
from ctsam3d.labelapp.survey import Survey

logger = logging.getLogger(__name__)

MAX_K = 100
_SURVEY_SECONDS = 5.0  # a look through a large pool for what is new takes a core from the requests
_ATTEMPTS = 50  # scans that turn out to be unusable, in one request
_SHOWN = 20  # scans passed over that a reply names


@dataclass(frozen=True)
class Asked:
    """What a client wants.

    Attributes:
        client, name: key and name of the client.
        structures: wanted; empty: any.
        k: number of scans.
        seed: of what is random; None: another one each time.
    """

    client: str
    name: str = ""
    structures: tuple[str, ...] = ()
    k: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class Pool:
    """What a strategy may choose from, and what it may know.

    Attributes:
        images: free scans, in the order of the datastore.
        holds: of each, whether it holds a wanted structure; None: not known.
        scores: of those that were scored, by name; all under one version of the weights.
        taken: (M, D) embeddings of scans that are labelled or handed out.
        labelled: number of scans with a final label.
        effort: what the recorded sessions say.
    """

    images: Sequence[str]
    holds: Sequence[bool | None]
    scores: Mapping[str, ScanScores] = field(default_factory=dict)
    taken: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    labelled: int = 0
    effort: Effort = field(default_factory=Effort)


Choose = Callable[[Pool, Asked, np.random.Generator], list[Pick]]


def parse_asked(request: Mapping[str, Any]) -> Asked:
    """The checked request of a strategy.

    Args:
        request: ``client`` and ``client_name`` of the route, or ``client_id`` where nobody was checked; ``structures``
            (a list of names, or text with commas), ``k`` and ``seed``.

    Raises:
        ValueError: names key, rule and value.
    """
    names = request.get("structures")
    names = names.split(",") if isinstance(names, str) else names if names is not None else []
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"structures must be a list of names, got {str(names)[:80]!r}")
    client = str(request.get("client") or request.get("client_id") or "anybody")
    k, seed = request.get("k"), request.get("seed")
    return Asked(
        client,
        str(request.get("client_name") or request.get("client_id") or "anybody")[:MAX_NAME],
        tuple(dict.fromkeys(name.strip() for name in names if name.strip())),
        1 if k is None else _whole("k", k, 1, MAX_K),
        None if seed is None else _whole("seed", seed, 0, 2**63 - 1),
    )


def active_folder(app_dir: str | os.PathLike, studies: str) -> Path:
    """Where leases, scores and the log of efforts of one datastore lie in the app's folder."""
    where = studies if studies.startswith(("http://", "https://")) else os.path.realpath(studies)
    return Path(app_dir) / "model" / "active" / hashlib.sha256(where.encode()).hexdigest()[:12]


def make_desk(folder: Path, conf: Conf, engine: ClickEngine, effort: EffortLog) -> Desk:
    """The desk of an app, whose state lies in `folder`."""
    survey = Survey(folder, engine, conf.labels, conf.max_scan_bytes)
    return Desk(Leases(folder, conf.lease_seconds), survey, effort)


class Desk:
    """Of one datastore.

    Args:
        leases, survey, effort: of the same datastore.
        clock: seconds.
    """

    def __init__(self, leases: Leases, survey: Survey, effort: EffortLog, clock: Callable[[], float] = time.monotonic):
        self.leases, self.survey, self.effort, self._clock = leases, survey, effort, clock
        self._surveyed = -math.inf
        self._fitted = Effort()

    def hand_out(self, asked: Asked, choose: Choose, datastore: Datastore, scored: bool = False) -> dict:
        """Scans for a client, leased to it; those that it had and did not submit count as skipped.

        Args:
            choose: the strategy.
            scored: whether it takes scores, which are then made in the background.

        Returns:
            ``samples`` (id and reason each), ``passed_over`` (image to reason, some of them), ``passed_over_count``,
            ``leased`` (number of scans that others have), ``lease_until``; and ``id`` and ``reason`` of the first
            sample, where there is one; else ``reason`` says why there is none.
        """
        if scored and self._clock() >= self._surveyed + _SURVEY_SECONDS:
            self._surveyed = self._clock()
            self.survey.start(datastore)
        rng = np.random.default_rng(asked.seed)
        view, samples = _View(self, datastore, asked), []
        self._put_down(datastore, asked)
        for _ in range(_ATTEMPTS):
            with self.leases.changing() as table:
                view.drop_submitted()
                picked = self._picked(view, table, asked, choose, asked.k - len(samples), rng)
                for image, _ in picked:
                    until = table.take(image, asked.client, asked.name, self.leases.seconds).until
            if not picked:
                break
            good = [(image, reason) for n, (image, reason) in enumerate(picked) if view.usable(image, picked[n + 1 :])]
            if len(good) < len(picked):
                bad = {image for image, _ in picked} - {image for image, _ in good}
                with self.leases.changing() as table:
                    table.give_back(bad)
            samples += [{"id": image, "reason": reason} for image, reason in good]
            if len(samples) == asked.k:
                break
        reply = {"samples": samples, **view.said()}
        return reply | ({**samples[0], "lease_until": until} if samples else {"reason": view.why_none()})

    def submitted(self, datastore: Datastore, labels: Sequence[str], image: str, user: str = "") -> None:
        """Notes what the final label of a scan cost, and ends its lease.

        Args:
            labels: of the app, for a label that was saved without names.
        """
        with self.leases.changing() as table:
            table.give_back([image])
        label = LocalDatastore.get_label_uri(datastore, image, FINAL)
        info = LocalDatastore.get_label_info(datastore, image, FINAL) or {}
        if label:
            self.effort.saved(image, label, info.get("label_info"), labels, user)

    def give_back(self, image: str, client: str | None) -> bool:
        """Ends a client's lease, or anybody's where `client` is None; whether there was one. The client skips it."""
        with self.leases.changing() as table:
            lease = table.held.get(image)
            if lease is None or client not in (None, lease.client):
                return False
            table.skip(image, lease.client)
            return True

    def close(self) -> None:
        """Ends the work in the background."""
        self.survey.close()

    def fitted(self) -> Effort:
        """What the recorded sessions say, fitted again when there are more."""
        spent = self.effort.spent()
        if len(spent) != self._fitted.sessions:
            self._fitted = fit_effort(*zip(*spent))
        return self._fitted

    def _put_down(self, datastore: Datastore, asked: Asked) -> None:
        """What the client had: submitted, or else skipped. Of the others', what was submitted another way."""
        with self.leases.changing() as table:
            unlabelled = set(datastore.get_unlabeled_images())  # not before: a scan may come, and be leased, meanwhile
            table.give_back([image for image in table.held if image not in unlabelled])
            for image in table.of(asked.client):
                table.skip(image, asked.client)

    def _picked(self, view: _View, table: LeaseTable, asked: Asked, choose: Choose, k: int, rng) -> list[tuple]:
        """Up to `k` free images with the reasons for them: new ones, else skipped ones, else copies of others."""
        for images in view.tiers(table):
            if images:
                picks = choose(view.pool(images, table), Asked(asked.client, asked.name, asked.structures, k), rng)
                if picks:
                    return [(images[pick.index], pick.reason) for pick in picks]
        return []


class _View:
    """The datastore as one request sees it."""

    def __init__(self, desk: Desk, datastore: Datastore, asked: Asked):
        self.desk, self.store, self.asked = desk, datastore, asked
        self.unlabelled = list(datastore.get_unlabeled_images())
        self.labelled = list(datastore.get_labeled_images())
        self.passed_over: dict[str, str] = {}
        self.leased = 0
        self._copies: set[str] = set()
        self._holds: dict[str, bool | None] = {}
        for image in self.unlabelled:
            known = desk.survey.known(image)
            if _info(datastore, image).get("split") == TEST:
                self.passed_over[image] = "is held out for testing"
            elif known is not None and known.problem and not self._changed(image, known):
                self.passed_over[image] = known.problem

    def drop_submitted(self) -> None:
        """Leaves out what others have submitted since this view was made: their leases are over, but it is not free."""
        done = set(LocalDatastore.get_labeled_images(self.store))  # of an archive, what was saved through this server
        late = [image for image in self.unlabelled if image in done]
        if late:
            self.unlabelled = [image for image in self.unlabelled if image not in done]
            self.labelled += late

    def tiers(self, table: LeaseTable) -> list[list[str]]:
        """The free images: new to the client, skipped by it, copies of what is labelled or handed out."""
        skipped = table.skipped.get(self.asked.client, {})
        self.leased = sum(lease.client != self.asked.client for lease in table.held.values())
        used = {self._content(image) for image in (*self.labelled, *table.held)} - {None}
        tiers: list[list[str]] = [[], [], []]
        for image in self.unlabelled:
            if image not in table.held and image not in self.passed_over:
                copy = image in self._copies or self._content(image) in used
                tiers[2 if copy else 1 if image in skipped else 0].append(image)
        return tiers

    def pool(self, images: Sequence[str], table: LeaseTable) -> Pool:
        """What the strategy sees."""
        others = [*self.labelled, *table.held]
        _, scores = self.desk.survey.scores([*images, *others])
        taken = [scores[image].embedding for image in others if image in scores]
        free = {image: scores[image] for image in images if image in scores}
        holds = [self.holds(image) for image in images]
        array = np.array(taken, float) if taken else np.zeros((0, 0))
        return Pool(images, holds, free, array, len(self.labelled), self.desk.fitted())

    def holds(self, image: str) -> bool | None:
        """Whether an image holds a wanted structure, as far as records say: its info, or labels that are not final."""
        if image not in self._holds:
            self._holds[image] = known_to_hold(self.store, image, self.asked.structures)
        return self._holds[image]

    def usable(self, image: str, later: Sequence[tuple[str, str]] = ()) -> bool:
        """Whether a scan that was picked can be used; reads it where that was not done before.

        Args:
            later: picks whose turn comes after it; of two copies the first one is used.
        """
        try:
            path = self.store.get_image_uri(image)
            known = self.desk.survey.examine(image, path)
        except Exception as error:  # an archive, and the libraries in between, fail in many ways
            logger.warning("image %s cannot be fetched: %s", image, error)
            self.passed_over[image] = f"cannot be fetched: {error}"[:300]
            return False
        if known.problem:
            self.passed_over[image] = known.problem
            return False
        table = self.desk.leases.now()
        behind = {image, *(other for other, _ in later)}
        others = [other for other in (*self.labelled, *table.held) if other not in behind]
        twin = next((other for other in others if self._content(other) == known.content), None)
        if twin is not None and image not in self._copies:
            self._copies.add(image)  # handed out only when nothing else is left
            return False
        return True

    def said(self) -> dict:
        """What the reply tells of the scans that were not chosen."""
        some = dict(list(self.passed_over.items())[:_SHOWN])
        return {"passed_over": some, "passed_over_count": len(self.passed_over), "leased": self.leased}

    def why_none(self) -> str:
        """In words."""
        if not self.unlabelled:
            return "all scans have a final label" if self.labelled else "there are no scans"
        return (
            f"no scan is free: of {len(self.unlabelled)} without a final label, others have {self.leased}, "
            f"and {len(self.passed_over)} are passed over"
        )

    def _content(self, image: str) -> str | None:
        known = self.desk.survey.known(image)
        return (known.content or None) if known is not None else None

    def _changed(self, image: str, known) -> bool:
        """Whether a file in the studies folder was replaced since it was found unusable."""
        try:
            path = LocalDatastore.get_image_uri(self.store, image)
        except Exception:  # of an archive there may be no copy
            return False
        return file_signature(path) != known.signature


def known_to_hold(datastore: Datastore, image: str, structures: Sequence[str]) -> bool | None:
    """Whether records say that an image holds one of the structures, or any where none is given; None: they do not say.

    Records: ``structures`` in the image's info, a list of names; and the names of labels that are not final.
    """
    said = _info(datastore, image).get("structures")
    names = {str(name) for name in said} if isinstance(said, list) else None
    for tag in LocalDatastore.get_labels_by_image_id(datastore, image):
        info = LocalDatastore.get_label_info(datastore, image, tag) or {}
        entries = info.get("label_info")
        if tag != FINAL and isinstance(entries, list):
            named = {str(entry.get("name")) for entry in entries if isinstance(entry, Mapping)}
            names = (names or set()) | named
    if names is None:
        return None
    return bool(names.intersection(structures)) if structures else bool(names)


def _info(datastore: Datastore, image: str) -> dict:
    """What is said about an image; of an archive's series, what the local copy has."""
    record = datastore._datastore.objects.get(image)
    return record.image.info if record else {}


def _whole(name: str, value: Any, low: int, high: int) -> int:
    try:
        number = int(value) if not isinstance(value, bool) and float(value) == int(value) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not low <= number <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:80]!r}")
    return number
