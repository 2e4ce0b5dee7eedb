"""Clicks in, label map out: the one implementation of `InferTask` behind both models.

`ClickEngine` owns what clicks share: weights, images, sessions, and the turns on the network, of which clicks take one
at a time. `ClickInferTask` is a model in MONAI Label's list: a dialect, its labels, and the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ctsam3d.data.io import read_volume
from ctsam3d.labelapp.background import BackgroundExpansion, told
from ctsam3d.labelapp.conf import EXPAND_SECONDS
from ctsam3d.labelapp.confidence import confidence
from ctsam3d.labelapp.memory import Trimmer
from ctsam3d.labelapp.reply import BoxedLabels, Segment, merge, result_box, write_reply
from ctsam3d.labelapp.requests import ClickRequest, ReplyOptions, RequestError, Structure, parse_request
from ctsam3d.labelapp.sessions import HeldSession, Image, ImageCache, SessionKey, SessionStore
from ctsam3d.labelapp.turns import Turns
from ctsam3d.labelapp.versions import Versions
from ctsam3d.segmenter import Segmenter, load

logger = logging.getLogger(__name__)

STAGES = ("crop", "features", "decode", "propose", "cut", "write")  # of `Session.seconds`
_UNUSABLE = (OSError, ValueError, RuntimeError)  # what loading weights raises


class Stopwatch:
    """Seconds per named stage, added up, and the total since it was made."""

    def __init__(self):
        self._begin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str | None = None) -> None:
        """Adds the time since the last lap to `stage`, or to none."""
        now = time.perf_counter()
        if stage:
            self.add(stage, now - self._last)
        self._last = now

    def add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def latencies(self) -> dict[str, float]:
        """Seconds per stage and in all, to a tenth of a millisecond."""
        seconds = {**self._seconds, "total": time.perf_counter() - self._begin}
        return {stage: round(value, 4) for stage, value in seconds.items()}


@contextlib.contextmanager
def rejected(path: str = "", name: str = "") -> Iterator[None]:
    """Turns the library's errors about what it was given into a `RequestError`; `path` is shown as image `name`."""
    try:
        yield
    except RequestError:
        raise
    except (FileNotFoundError, ValueError, TypeError) as error:
        text = str(error)
        if path:
            text = text.replace(f"path {path}", f"image {name!r}").replace(path, name)
        raise RequestError(text, status=404 if isinstance(error, FileNotFoundError) else 400) from error


class _Served(NamedTuple):
    """The weights in use, and the state of the model folder that they were chosen from."""

    signature: tuple
    segmenter: Segmenter


class Usage(NamedTuple):
    """What an engine holds: version of the newest weights (empty before they are loaded), sessions, bytes of voxels
    and of sessions, and why weights could not be loaded."""

    version: str
    sessions: int
    image_bytes: int
    session_bytes: int
    problem: str


class ClickEngine:
    """Segments clicked structures for many clients at once.

    A new session takes the weights that are current, a running one keeps its own; weights that no session uses any
    more are freed.

    Args:
        versions: of the weights; loaded at the first click, or by `preload`.
        device: "cpu" or "cuda", as PyTorch names it.
        expand_seconds: that the structures of a request share to expand into neighbouring patches before the reply;
            afterwards they go on in the background.
        sessions: the store of sessions, where its limits are to be others.
        max_scan_bytes: that the voxels of an image may take; None: any.
        observe: told of every structure's clicks: name of the image, request, structure, session, and the session's
            clicks before; see `EffortLog.clicked`.
        precision: of the network, see `Segmenter`.
    """

    def __init__(
        self,
        versions: Versions,
        device: str,
        expand_seconds: float = EXPAND_SECONDS,
        sessions: SessionStore | None = None,
        max_scan_bytes: int | None = None,
        observe: Callable[..., None] | None = None,
        precision: str = "auto",
    ):
        self._versions, self._expand_seconds = versions, expand_seconds
        self._load_weights = partial(load, device=device, precision=precision)
        self._observe = observe
        self._served: _Served | None = None
        self._problem = ""
        self._loading = threading.Lock()
        self._turns = Turns()
        self._images = ImageCache(partial(read_volume, max_bytes=max_scan_bytes))
        self._sessions = SessionStore() if sessions is None else sessions
        self._background = BackgroundExpansion(self._sessions, self._turns)
        self._memory = Trimmer()
        self._folder: tempfile.TemporaryDirectory | None = None
        self._making_folder = threading.Lock()

    def preload(self) -> None:
        """Loads the weights in the background, so that the first click does not wait for them."""
        threading.Thread(target=self._preload, name="ctsam3d-weights", daemon=True).start()

    def _preload(self) -> None:
        try:
            segmenter = self.segmenter()
            with self._turns.idle():
                segmenter.warm_up()
            logger.info("weights: %s", segmenter.info.version)
        except Exception:
            logger.exception("weights %s could not be loaded; every click will say so", self._versions.weights)

    def segmenter(self) -> Segmenter:
        """The segmenter of a new session; loads the weights where others are current than before.

        Raises:
            RequestError: status 503, the weights cannot be loaded, and none have been before.
        """
        signature = self._versions.signature()
        served = self._served
        if served is None or served.signature != signature:
            with self._loading:
                served = self._served
                if served is None or served.signature != signature:
                    served = self._served = _Served(signature, self._load())
        return served.segmenter

    def _load(self) -> Segmenter:
        """The current weights; where they cannot be used, those in use, or the ones that the app was started with."""
        versions = self._versions
        try:
            segmenter = self._load_weights(versions.served_path())
            logger.info("new sessions take the weights %s", segmenter.info.version)
            return segmenter
        except _UNUSABLE as error:
            if self._served is not None:
                kept = self._served.segmenter
                logger.error("current weights cannot be loaded, %s stay in use: %s", kept.info.version, error)
                return kept
            logger.error("current weights cannot be loaded, taking %s: %s", versions.weights, error)
        try:
            return self._load_weights(versions.base_path)
        except _UNUSABLE as error:
            self._problem = str(error)
            raise RequestError(f"weights {versions.weights} cannot be loaded: {error}", status=503) from error

    def image(self, path: str, name: str) -> Image:
        """The image at `path`, read at most once per content; errors call it `name`.

        Raises:
            RequestError: 404 where there is nothing, 400 where it is no scan.
        """
        with rejected(path, name):
            return self._images.get(path)

    def segment(self, request: ClickRequest, image: Image, watch: Stopwatch, name: str = "") -> tuple[str | None, dict]:
        """Runs the new clicks of every structure of image `name`, merges the masks, and writes the label map.

        Returns:
            The file, which the caller deletes (None where none was asked for), and the parameters of the reply.

        Raises:
            RequestError: a click that the session refuses, or weights that cannot be loaded.
        """
        keys = [SessionKey(image.content, s.name, request.client, request.expand) for s in request.structures]
        # Weights are loaded here rather than in `make`, which holds up every other session; running ones need none.
        newest = None if self._sessions.holds(keys) else self.segmenter()

        def make() -> HeldSession:
            segmenter = newest or self.segmenter()  # a session may have been forgotten in between
            return HeldSession(segmenter.session(image.volume, expand=request.expand), image, segmenter.info.version)

        held: list[HeldSession] = []
        try:
            with self._sessions.locked(keys, make) as held:
                watch.lap("wait")
                for structure, own in zip(request.structures, held):
                    before = own.session.clicks
                    self._click(own, structure, request, watch)
                    self._tell(name, request, structure, own, before)
                labels = merge([_segment(structure, own) for structure, own in zip(request.structures, held)])
                reply = _parameters(request, held)
                if request.suggest:
                    reply["confidence"] = {s.name: confidence(own.session) for s, own in zip(request.structures, held)}
        finally:  # also after a failure: what was expanding before goes on
            for key, own in zip(keys, held):
                if own.expanding:
                    self._background.add(key, own)
            self._memory.worked()
        watch.lap("merge")
        file = self._write(request.reply, labels, image) if request.reply.write_file else None
        watch.lap("reply")
        if request.reply.box_only:
            box_ijk = result_box(labels)
            reply["result_box"] = [list(box_ijk.start), list(box_ijk.stop)]
        return file, {**reply, "latencies": watch.latencies()}

    def idle(self) -> contextlib.AbstractContextManager[None]:
        """A turn on the network for work that no client waits for; to be short."""
        return self._turns.idle()

    def usage(self) -> Usage:
        """What it holds at this moment."""
        version = self._served.segmenter.info.version if self._served else ""
        problem = "" if version else self._problem
        return Usage(version, len(self._sessions), self._images.nbytes, self._sessions.nbytes, problem)

    def close(self) -> None:
        """Ends the work in the background."""
        self._background.close()

    def _click(self, own: HeldSession, structure: Structure, request: ClickRequest, watch: Stopwatch) -> None:
        seconds = self._expand_seconds / len(request.structures)
        elsewhere = [click for other in request.structures if other is not structure for click in other.positive]
        with self._turns.taken(request.client):
            watch.lap("wait")
            with rejected():
                own.session.set_clicks(structure.positive, structure.negative, seconds, elsewhere)
        own.expanding = own.session.expanding
        watch.lap()
        for stage in STAGES:
            watch.add(stage, own.session.seconds.get(stage, 0.0))

    def _tell(self, name: str, request: ClickRequest, structure: Structure, own: HeldSession, before) -> None:
        """A click is answered also where it cannot be noted."""
        if self._observe is None:
            return
        try:
            self._observe(name, request, structure, own, before)
        except OSError as error:
            logger.error("clicks on %s of image %s are not noted: %s", structure.name, name, error)

    def _write(self, options: ReplyOptions, labels: BoxedLabels, image: Image) -> str:
        """Into a folder of the server's own: a client on the same host saves under the same name, but elsewhere."""
        with self._making_folder:  # not before: a process that only trains would leave it behind when it is killed
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="ctsam3d-replies-", ignore_cleanup_errors=True)
        handle, path = tempfile.mkstemp(dir=self._folder.name, prefix="labels-", suffix=options.extension)
        os.close(handle)
        try:
            write_reply(Path(path), labels, image.volume, options)
        except BaseException:
            os.unlink(path)
            raise
        return path


def _segment(structure: Structure, own: HeldSession) -> Segment:
    box_ijk = own.session.mask_box_ijk
    return Segment(structure.value, own.session.mask(box_ijk).view(bool), box_ijk, own.session.probability)


def _parameters(request: ClickRequest, held: Sequence[HeldSession]) -> dict:
    """What the reply tells of the sessions."""
    return {
        "label_names": dict(request.label_names),
        "version": ", ".join(dict.fromkeys(own.version for own in held)),
        "patches": sum(own.session.patches for own in held),
        "expansion": {s.name: told(own.session.expansion) for s, own in zip(request.structures, held)},
    }


class ClickInferTask(InferTask):
    """A model of the app: clicks on the structures of `labels`, or, without labels, on a structure of any name.

    The type tells the viewers which dialect to speak: "deepedit" with labels, "deepgrow" without.
    """

    def __init__(self, engine: ClickEngine, labels: Sequence[str], description: str):
        super().__init__(
            type=InferType.DEEPEDIT if labels else InferType.DEEPGROW,
            labels=list(labels),
            dimension=3,
            description=description,
            config={"expand": True, "save": False},
        )
        self._engine = engine

    def is_valid(self) -> bool:
        """Always: a model whose weights are missing is listed, and its clicks say what is wrong."""
        return True

    def __call__(self, request: dict) -> tuple[str | None, dict]:
        """MONAI Label's own way in: ``request["image"]`` is the path of an image."""
        path = str(request["image"])
        return self.segment(request, path, Path(path).name, client="local")

    def segment(
        self, params: Mapping, path: str, name: str, client: str, file: bool | None = None
    ) -> tuple[str | None, dict]:
        """Answers the clicks in `params` on the image at `path`.

        Args:
            params: what the client sent; see `requests.py`.
            path: of the image, already found to be one that the client may see.
            name: of the image, for messages.
            client: token or address of the sender.
            file: whether the label map is wanted, beside the parameters of the reply; None: as `params` say.

        Returns:
            The label map's file, which the caller deletes, or None; and the parameters of the reply: ``label_names``,
            ``latencies`` (seconds: read, wait, crop, features, decode, propose, cut, write, merge, reply, total),
            ``version``, ``patches``, ``expansion`` (of each structure: proposed, segmented, rejected, ended; see
            `ctsam3d.expansion.Expansion`), and, where asked for, ``result_box`` ([start, stop] in the image's voxels)
            and ``confidence`` (of each structure, see `confidence.confidence`).

        Raises:
            RequestError: the request, the image, or (503) the weights cannot be used.
        """
        watch = Stopwatch()
        image = self._engine.image(path, name)
        watch.lap("read")
        with rejected():
            request = parse_request(params, self.labels, image.volume.shape_ijk, client)
        if file is not None:
            request = replace(request, reply=replace(request.reply, write_file=file))
        result_file, reply = self._engine.segment(request, image, watch, name)
        clicks = {s.name: (len(s.positive), len(s.negative)) for s in request.structures}
        logger.info(
            "image %s, (positive, negative) clicks %s: %d patches, expansion %s, seconds %s",
            name,
            clicks,
            reply["patches"],
            reply["expansion"],
            reply["latencies"],
        )
        return result_file, reply
