"""What is known of the scans of the pool: whether they can be used, and what the model says. Made in the background.

Findings are appended to one file and kept by the content of the image, scores also by the version of the weights, so
that nothing is computed twice and a restart loses nothing. At a restart the file is written anew where more than half
of it is out of date. Nobody waits for it: who chooses takes what is there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from ctsam3d.data.files import append_json, atomic_path, file_signature, read_json_lines
from ctsam3d.data.io import read_labels, read_volume
from ctsam3d.evaluation.scan_scores import ScanScores, mean_prototypes, prototypes_of, scan_scores
from ctsam3d.labelapp.datalist import structure_values
from ctsam3d.labelapp.infer import ClickEngine
from ctsam3d.labelapp.names import FINAL
from ctsam3d.labelapp.requests import RequestError
from ctsam3d.labelapp.sessions import Image, ImageCache
from ctsam3d.segmenter import Segmenter
from ctsam3d.volume import Volume

logger = logging.getLogger(__name__)

MAX_PROTOTYPES = 12  # structures of a labelled scan that are looked at
KEPT_VERSIONS = 2  # the newest ones, whose scores are kept; and those of the one that scored most scans
_SPARE_LINES = 1000  # of the file, that may be out of date before it is written anew
_LEAST_CONTRAST = 100  # between the lowest and the highest value; a label map or an empty image has less


@dataclass(frozen=True)
class Known:
    """Of an image: the state of its file when it was read, SHA-256, and why it cannot be used (empty where it can)."""

    signature: tuple[int, ...]
    content: str
    problem: str = ""


class Survey:
    """The findings of one datastore.

    Args:
        folder: of the file, ``survey.jsonl``.
        engine: reads images and holds the weights.
        labels: of the app.
        max_scan_bytes: that the voxels of a scan may take.
    """

    def __init__(self, folder: str | os.PathLike, engine: ClickEngine, labels: Sequence[str] = (), max_scan_bytes=None):
        self.path, self._engine, self._labels = Path(folder) / "survey.jsonl", engine, labels
        self._read = partial(read_volume, max_bytes=max_scan_bytes)
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        self._scores: dict[str, dict[str, ScanScores]] = {}  # by version, by content
        self._looked: set[tuple[str, str]] = set()  # labelled ones, also where the label could not be read
        self._loaded = self._closed = False
        self._thread: threading.Thread | None = None

    # ---- what is known --------------------------------------------------------------------------------------------

    def known(self, image: str) -> Known | None:
        """What was found when the image was read last."""
        self._load()
        return self._known.get(image)

    def scores(self, images: Iterable[str]) -> tuple[str, dict[str, ScanScores]]:
        """A version of the weights, and the scores that it gave to the images: the version that scored most of them.

        Among equals the newest.
        """
        self._load()
        with self._lock:
            contents = {image: self._known[image].content for image in images if image in self._known}
            versions = Counter()
            for version, found in self._scores.items():
                versions[version] = sum(content in found for content in contents.values())
            newest = list(self._scores)
            best = max(newest, key=lambda version: (versions[version], newest.index(version)), default="")
            found = self._scores.get(best, {})
            return best, {image: found[content] for image, content in contents.items() if content in found}

    def examine(self, image: str, path: str) -> Known:
        """What is known of an image as its file is now; read where it was not, and then kept for the first click."""
        known = self.known(image)
        if known is not None and known.signature == file_signature(path):
            return known
        return self._examined(image, path, partial(self._engine.image, path, image))[0]

    def _examined(self, image: str, path: str, read) -> tuple[Known, Image | None]:
        signature, found = file_signature(path) or (), None
        try:
            found = read()
            known = Known(signature, found.content, scan_problem(found.volume))
        except (RequestError, OSError, ValueError) as error:
            known = Known(signature, "", str(error).replace(str(path), image)[:300])
        if known != self._known.get(image):
            with self._lock:
                self._known[image] = known
                if known.content:  # else it may read another time
                    append_json(self.path, [{"image": image, **dataclasses.asdict(known)}])
        if known.problem:
            logger.info("image %s is passed over: %s", image, known.problem)
        return known, found

    # ---- in the background ----------------------------------------------------------------------------------------

    def start(self, datastore: Datastore) -> None:
        """Looks at what is new in the background; nothing where that is done, or under way."""
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            # Not a daemon: the interpreter waits for the scan in hand, rather than ending under PyTorch.
            self._thread = threading.Thread(target=self._run, args=(datastore,), name="ctsam3d-survey")
            self._thread.start()

    def wait(self) -> None:
        """Returns when what was started is done."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Ends after the scan in hand."""
        with self._lock:
            self._closed = True
        self.wait()

    def _run(self, datastore: Datastore) -> None:
        try:
            cache = ImageCache(self._read, max_bytes=1)  # the newest alone
            labelled = set(datastore.get_labeled_images())
            images = sorted(datastore.list_images(), key=lambda image: (image not in labelled, image))
            for image in images:
                if self._closed or not threading.main_thread().is_alive():
                    return
                segmenter = self._engine.segmenter()  # others may be published meanwhile
                try:
                    self._look(datastore, image, image in labelled, segmenter, cache)
                except Exception:
                    logger.exception("image %s could not be looked at", image)
        except Exception:
            logger.exception("the pool could not be looked at")

    def _look(self, datastore: Datastore, image: str, labelled: bool, segmenter: Segmenter, cache: ImageCache) -> None:
        """One image: read, and scored where it can be and is not yet under this version."""
        version = segmenter.info.version
        path = LocalDatastore.get_image_uri(datastore, image)
        if not path or not os.path.exists(path):
            return  # a series of an archive: none is fetched for this alone
        known = self.known(image)
        fresh = known is not None and known.signature == file_signature(path)
        if fresh and (known.problem or self._is_scored(known.content, version, labelled)):
            return
        known, found = self._examined(image, path, partial(cache.get, path))
        if found is None or known.problem or self._is_scored(known.content, version, labelled):
            return
        self._score(found, segmenter, self._masks(datastore, image, found.volume) if labelled else {})
        if labelled:
            self._looked.add((known.content, version))

    def _is_scored(self, content: str, version: str, labelled: bool) -> bool:
        found = self._scores.get(version, {}).get(content)
        done = not labelled or (content, version) in self._looked
        return found is not None and bool(found.prototypes or done)

    def _score(self, image: Image, segmenter: Segmenter, masks: Mapping) -> None:
        version = segmenter.info.version
        with self._lock:
            labelled = [scores.prototypes for scores in self._scores.get(version, {}).values() if scores.prototypes]
        rng = np.random.default_rng(zlib.crc32(image.content.encode()))
        found = scan_scores(segmenter, image.volume, mean_prototypes(labelled), rng, self._engine.idle)
        if masks:
            own = prototypes_of(segmenter, image.volume, masks, self._engine.idle)
            found = dataclasses.replace(found, prototypes=own)
        with self._lock:
            self._scores.setdefault(version, {})[image.content] = found
            self._forget_old()
            append_json(self.path, [_line(version, image.content, found)])

    def _masks(self, datastore: Datastore, image: str, volume: Volume) -> Mapping:
        """Of the structures of a final label; none where it cannot be read."""
        info = LocalDatastore.get_label_info(datastore, image, FINAL) or {}
        values = structure_values(info.get("label_info"), self._labels)
        try:
            labels_ijk = read_labels(LocalDatastore.get_label_uri(datastore, image, FINAL), volume)
        except (OSError, ValueError) as error:
            logger.warning("label of %s is not looked at: %s", image, error)
            return {}
        there = set(map(int, np.unique(labels_ijk)))
        present = {name: [v for v in own if v in there] for name, own in values.items()}
        chosen = [(name, own) for name, own in present.items() if own][:MAX_PROTOTYPES]
        return {name: partial(_mask, labels_ijk, own) for name, own in chosen}

    # ---- the file -------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self._loaded, there = True, 0
            for values in read_json_lines(self.path):
                self._take(values)
                there += 1
            self._forget_old()
            if there > 2 * (len(self._known) + sum(map(len, self._scores.values()))) + _SPARE_LINES:
                self._write_anew()

    def _take(self, values: dict) -> None:
        """A line of the file; one that is not as it should be is left out, and made anew some time."""
        try:
            if "image" in values:
                known = Known(tuple(values["signature"]), values["content"], values["problem"])
                self._known[values["image"]] = known
            else:
                prototypes = {name: tuple(vector) for name, vector in values["prototypes"].items()}
                found = ScanScores(tuple(values["embedding"]), values["disagreement"], values["quality"], prototypes)
                self._scores.setdefault(values["version"], {})[values["content"]] = found
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("a line of %s cannot be read", self.path)

    def _write_anew(self) -> None:
        """The file with what is known, and nothing else."""
        lines = [{"image": image, **dataclasses.asdict(known)} for image, known in self._known.items()]
        lines += [_line(version, *entry) for version, found in self._scores.items() for entry in found.items()]
        with atomic_path(self.path) as temporary:
            append_json(temporary, lines)

    def _forget_old(self) -> None:
        """Drops the scores of versions that nobody will ask for; the caller holds the lock."""
        versions = list(self._scores)
        fullest = max(versions, key=lambda version: (len(self._scores[version]), versions.index(version)), default="")
        for version in versions[:-KEPT_VERSIONS]:
            if version != fullest:
                del self._scores[version]


def scan_problem(volume: Volume) -> str:
    """Why a scan that can be read is no CT; empty where it may be one.

    CT is in HU, where air is -1000 and fat -100: an image without any value below 0 is another modality, a label map,
    or not in HU.
    """
    low, high = float(volume.array_ijk.min()), float(volume.array_ijk.max())
    if low >= 0:
        return f"is no CT in HU: its lowest value is {low:g}, where fat is -100 and air -1000"
    if high - low < _LEAST_CONTRAST:
        return f"shows nothing: its values are {low:g} to {high:g}"
    return ""


def _line(version: str, content: str, scores: ScanScores) -> dict:
    return {"content": content, "version": version, **dataclasses.asdict(scores)}


def _mask(labels_ijk, values):
    return np.isin(labels_ijk, values)
