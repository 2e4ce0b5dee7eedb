"""A running server under load, and over a long time: what clients wait, whose mask they get, memory and open files."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import requests
from requests_toolbelt.multipart.decoder import MultipartDecoder

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.evaluation.timing import Row, percentiles_ms
from ctsam3d.expansion import TIME
from ctsam3d.labelapp.beside_training import training_beside
from ctsam3d.labelapp.local_server import LocalServer, copy_app, local_server

MODEL = "ctsam3d"
ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "stomach", "aorta")  # what is clicked
_VIEWERS = {"result_extension": ".nrrd", "result_dtype": "uint8"}  # what Slicer asks for
_INFO_SECONDS = 0.05  # between two looks at /info/
_SETTLE_SECONDS = 0.5  # between two looks at whether a mask still spreads; each takes time from the spreading
_SOAK_CLIENTS = 4  # at a time
_SAMPLE_CLICKS = 50  # between two looks at the memory
_TIMEOUT_SECONDS = 600

IJK = tuple[int, int, int]


# ---- one request ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answer:
    """The server's reply to one request.

    Attributes:
        seconds: from sending the request until the last byte of the reply.
        reply: its parameters.
        file: the label map as sent; empty where none was asked for.
    """

    seconds: float
    reply: dict
    file: bytes

    @property
    def expanding(self) -> bool:
        """Whether the server replied before a mask had spread as far as it goes."""
        return any(expansion["ended"] == TIME for expansion in self.reply.get("expansion", {}).values())

    def labels(self, shape_ijk: IJK) -> np.ndarray:
        """The label map (I, J, K) of a gzipped uint8 .nrrd of a whole image: an empty line ends its header."""
        voxels = gzip.decompress(self.file.partition(b"\n\n")[2])
        return np.frombuffer(voxels, np.uint8).reshape(shape_ijk, order="F")


def ask(url: str, image: str, clicks: Mapping[str, Sequence], client: str, **options) -> Answer:
    """One click request, on a connection of its own as the viewers' are.

    Args:
        clicks: voxel lists by label, and ``background``.
        options: further parameters, such as ``expand``.

    Raises:
        RuntimeError: any other status than 200; with the server's reason.
        requests.RequestException: no reply.
    """
    params = json.dumps({**_VIEWERS, **clicks, "client_id": client, **options})
    start = time.perf_counter()
    response = requests.post(
        f"{url}/infer/{MODEL}", params={"image": image}, data={"params": params}, timeout=_TIMEOUT_SECONDS
    )
    seconds = time.perf_counter() - start
    if response.status_code != 200:
        raise RuntimeError(f"status {response.status_code} to clicks on image {image}: {response.text[:500]}")
    if response.headers["content-type"].startswith("application/json"):  # no file was asked for
        return Answer(seconds, response.json(), b"")
    reply, file = (part.content for part in MultipartDecoder.from_response(response).parts)
    return Answer(seconds, json.loads(reply), file)


def until_quiet(answer: Answer, send: Callable[..., Answer]) -> Answer:
    """The answer to the same clicks when their masks have spread as far as they go; `answer` is the first one.

    Args:
        send: the same request, with further parameters.
    """
    if not answer.expanding:
        return answer
    while send(result_write_to_file=False).expanding:
        time.sleep(_SETTLE_SECONDS)
    return send()


# ---- what is clicked -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Study:
    """A phantom among the images of a server.

    Attributes:
        image: its id.
        voxels_ijk: (N, 3) of each structure.
    """

    image: str
    labels_ijk: np.ndarray
    voxels_ijk: dict[str, np.ndarray]

    def draw(self, structure: str, positive: bool, taken: Sequence[IJK], rng: np.random.Generator) -> IJK:
        """A voxel of the structure, or beside it, that is not among those `taken`."""
        voxels, shape = self.voxels_ijk[structure], np.array(self.labels_ijk.shape)
        while True:
            voxel = rng.choice(voxels)
            if not positive:
                voxel = np.clip(voxel + rng.integers(-8, 9, 3), 0, shape - 1)
            ijk = tuple(int(v) for v in voxel)
            if (self.labels_ijk[ijk] == VALUE_OF[structure]) == positive and ijk not in taken:
                return ijk


def write_studies(folder: str | os.PathLike, count: int, spacing_mm=(2.0, 2.0, 3.0), seed: int = 0) -> list[Study]:
    """Abdomen phantoms as images ``phantom_<seed>.nii.gz`` in `folder`."""
    studies = []
    for number in range(seed, seed + count):
        phantom = make_phantom(number, spacing_mm, "abdomen")
        write_volume(Path(folder) / f"phantom_{number}.nii.gz", phantom.volume)
        voxels = {name: np.argwhere(phantom.labels_ijk == VALUE_OF[name]) for name in ORGANS}
        present = {name: found for name, found in voxels.items() if len(found)}
        studies.append(Study(f"phantom_{number}", phantom.labels_ijk, present))
    return studies


@dataclass
class Clicking:
    """A client at work on one structure; its lists are resent whole at every click."""

    client: str
    study: Study
    structure: str
    positive: list[IJK] = field(default_factory=list)
    negative: list[IJK] = field(default_factory=list)

    def click(self, rng: np.random.Generator) -> None:
        """One more click: at first in the structure, then in two of three."""
        inside = not self.positive or rng.random() < 2 / 3
        clicks = self.positive if inside else self.negative
        clicks.append(self.study.draw(self.structure, inside, [*self.positive, *self.negative], rng))

    def undo(self) -> None:
        """Takes a click back, but for the first."""
        if self.negative:
            self.negative.pop()
        elif len(self.positive) > 1:
            self.positive.pop()

    def send(self, url: str, **options) -> Answer:
        clicks = {self.structure: self.positive, "background": self.negative}
        return ask(url, self.study.image, clicks, self.client, **options)

    def settle(self, url: str, answer: Answer, **options) -> Answer:
        """The answer to the same lists when their masks have spread as far as they go; `answer` is the first one."""
        return until_quiet(answer, lambda **more: self.send(url, **options, **more))


# ---- many clients at once ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Load:
    """What a load test found.

    Attributes:
        rows: of clicks and of ``/info/``: percentiles, failures, and how many a second.
        labels: the last label map (I, J, K) of each client, in their order; None where that request failed.
        failures: the reason of each request that was not answered.
        training: what a training did meanwhile.
    """

    rows: list[Row]
    labels: list[np.ndarray | None]
    failures: list[str]
    training: list[Row] = field(default_factory=list)


def load(
    url: str, studies: Sequence[Study], clients: int = 16, clicks: int = 20, at_once: int | None = None,
    name: str = "load", seed: int = 0, settle: bool = False, **options,
) -> Load:  # fmt: skip
    """Every client clicks `clicks` times on its own structure, each click after the reply to the one before.

    Meanwhile one thread asks for ``/info/`` every 50 ms. What is clicked depends on number and seed alone.

    Args:
        at_once: how many clients are at work at a time; None: all.
        name: begins the clients' ids, so that a second run finds no session of the first.
        settle: whether a client waits, after each click, until its mask has spread as far as it goes. What is there
            when the next click comes then depends on the clicks alone, not on how busy the server was.
        options: parameters of every request, such as ``expand``.
    """
    begin = time.perf_counter()
    with _asking_info(url) as (info_seconds, failures), ThreadPoolExecutor(at_once or clients) as pool:
        jobs = [
            pool.submit(_click_away, url, _client(studies, number, name), clicks, seed + number, settle, options)
            for number in range(clients)
        ]
        done = [job.result() for job in jobs]
    wall = time.perf_counter() - begin
    click_seconds = [seconds for times, _, _ in done for seconds in times]
    click_failures = [reason for _, _, reasons in done for reason in reasons]
    rows = [
        {"request": what, **percentiles_ms(times), "failures": len(failed), "per second": len(times) / wall}
        for what, times, failed in (("click", click_seconds, click_failures), ("/info/", info_seconds, failures))
    ]
    return Load(rows, [labels for _, labels, _ in done], [*click_failures, *failures])


def differences(together: Load, alone: Load) -> list[str]:
    """Whose last mask is not the one that it gets alone. Of a client without a mask the failure is told already."""
    pairs = enumerate(zip(together.labels, alone.labels, strict=True))
    counts = {n: int((one != other).sum()) for n, (one, other) in pairs if one is not None and other is not None}
    return [f"client {n}: {count} voxels are not as when it is alone" for n, count in counts.items() if count]


def _client(studies: Sequence[Study], number: int, name: str) -> Clicking:
    study = studies[number % len(studies)]
    structures = list(study.voxels_ijk)
    return Clicking(f"{name} {number}", study, structures[number // len(studies) % len(structures)])


def _click_away(url: str, work: Clicking, clicks: int, seed: int, settle: bool, options: Mapping):
    """Seconds of each click that was answered, the last label map, and why others failed."""
    rng = np.random.default_rng(seed)
    seconds, failures, labels = [], [], None
    for _ in range(clicks):
        work.click(rng)
        labels = None
        try:
            answer = work.send(url, **options)
            settled = work.settle(url, answer, **options) if settle else answer
        except (RuntimeError, requests.RequestException) as error:
            failures.append(f"{work.client}: {error}")
            continue
        seconds.append(answer.seconds)
        labels = settled.labels(work.study.labels_ijk.shape)
    return seconds, labels, failures


@contextmanager
def _asking_info(url: str) -> Iterator[tuple[list[float], list[str]]]:
    """Asks for ``/info/`` while the block runs; yields the seconds of each answer, and why others failed."""
    seconds, failures, stop = [], [], threading.Event()

    def run() -> None:
        while not stop.wait(_INFO_SECONDS):
            start = time.perf_counter()
            try:
                requests.get(f"{url}/info/", timeout=_TIMEOUT_SECONDS).raise_for_status()
                seconds.append(time.perf_counter() - start)
            except requests.RequestException as error:
                failures.append(f"/info/: {error}")

    thread = threading.Thread(target=run, name="info")
    thread.start()
    try:
        yield seconds, failures
    finally:
        stop.set()
        thread.join()


# ---- a long time ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A server at one moment of a soak test.

    Attributes:
        clicks: so far.
        rss_mb: resident memory, in MB of 10⁶ bytes.
        sessions_mb: what of it are sessions, by the server's own count.
        open_files: files, pipes and sockets.
    """

    clicks: int
    rss_mb: float
    sessions_mb: float
    open_files: int

    @classmethod
    def of(cls, server: LocalServer, clicks: int) -> Sample:
        text = requests.get(f"{server.url}/metrics", timeout=_TIMEOUT_SECONDS).text
        (line,) = (line for line in text.splitlines() if line.startswith('ctsam3d_cache_bytes{cache="sessions"}'))
        open_files = psutil.Process(server.pid).num_fds()
        return cls(clicks, rss_mb(server.pid), float(line.split()[1]) / 1e6, open_files)


@dataclass(frozen=True, eq=False)
class Soak:
    """What a soak test found.

    Attributes:
        samples: every 50 clicks.
        failures: the reason of each request that was not answered.
    """

    samples: list[Sample]
    failures: list[str]

    @property
    def slope(self) -> float:
        """Growth beside sessions over the last half, MB per 1,000 clicks, by least squares; NaN below two samples."""
        half = self.last_half()
        other_mb = [sample.rss_mb - sample.sessions_mb for sample in half]
        return float(1000 * np.polyfit([s.clicks for s in half], other_mb, 1)[0]) if len(half) > 1 else float("nan")

    def last_half(self) -> list[Sample]:
        """Those after warming up."""
        return self.samples[len(self.samples) // 2 :]

    def rows(self, count: int = 10) -> list[Row]:
        """At most `count` of the samples, evenly over the time."""
        picked = np.unique(np.linspace(0, len(self.samples) - 1, count).round().astype(int))
        names = ("clicks", "RSS MB", "of these sessions MB", "open files")
        return [dict(zip(names, dataclasses.astuple(self.samples[n]))) for n in picked]


def soak(server: LocalServer, studies: Sequence[Study], clicks: int = 2000, seed: int = 0, **options) -> Soak:
    """Clicks over changing structures, clients and images, with undo (shorter lists), one after the other."""
    samples, failures = [Sample.of(server, 0)], []
    for number, work in enumerate(itertools.islice(_soak_steps(studies, np.random.default_rng(seed)), clicks), start=1):
        try:
            work.send(server.url, **options)
        except (RuntimeError, requests.RequestException) as error:
            failures.append(f"{work.client}: {error}")
        if number % _SAMPLE_CLICKS == 0:
            samples.append(Sample.of(server, number))
    return Soak(samples, failures)


def _soak_steps(studies: Sequence[Study], rng: np.random.Generator) -> Iterator[Clicking]:
    """Work that has just changed: a click more, a click less, or a structure begun.

    Of four clients each takes up a new structure after about eight clicks, and after about three structures leaves for
    another one, so that the server has sessions to forget.
    """
    names = (f"soak {number}" for number in itertools.count())
    clients = [next(names) for _ in range(_SOAK_CLIENTS)]
    at_work: dict[str, Clicking] = {}
    while True:
        place = int(rng.integers(_SOAK_CLIENTS))
        if rng.random() < 1 / 24:
            clients[place] = next(names)
        client = clients[place]
        if client not in at_work or rng.random() < 1 / 8:
            study = studies[rng.integers(len(studies))]
            at_work[client] = Clicking(client, study, str(rng.choice(list(study.voxels_ijk))))
        work = at_work[client]
        if len(work.positive) + len(work.negative) > 1 and rng.random() < 1 / 4:
            work.undo()
        else:
            work.click(rng)
        yield work


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB of 10⁶ bytes."""
    return psutil.Process(pid).memory_info().rss / 1e6


# ---- with a server of their own ------------------------------------------------------------------------------------


def benchmark_load(
    app: str | os.PathLike, clients: int, clicks: int, conf: Mapping[str, str],
    training: bool = False, compare: bool = False, expand: bool = True,
) -> Load:  # fmt: skip
    """`load` on a server that serves `app` over two phantoms.

    Args:
        training: whether a training runs meanwhile, on both of them.
        compare: whether each client's last mask is looked at against the one that the same clicks give it when nobody
            else is there; a difference counts as a failure. Masks that spread are then waited for.
    """

    def run(server: LocalServer, studies: Sequence[Study]) -> Load:
        size = {"clients": clients, "clicks": clicks, "expand": expand, "settle": compare and expand}
        truth = [(study.image, study.labels_ijk, VALUE_OF) for study in studies]
        with training_beside(server.url, truth) if training else nullcontext([]) as trained:
            found = load(server.url, studies, **size)
        if not compare:
            return replace(found, training=trained)
        alone = load(server.url, studies, name="alone", at_once=1, **size)
        rows = [{**row, "request": f"{row['request']}, alone"} for row in alone.rows]
        failures = [*found.failures, *alone.failures, *differences(found, alone)]
        return Load([*found.rows, *rows], found.labels, failures, trained)

    return _served(app, 2, conf, run)


def benchmark_soak(app: str | os.PathLike, clicks: int, conf: Mapping[str, str], **options) -> Soak:
    """`soak` on a server that serves `app` over three phantoms."""
    return _served(app, 3, conf, lambda server, studies: soak(server, studies, clicks, **options))


def _served(app: str | os.PathLike, images: int, conf: Mapping[str, str], run: Callable):
    with tempfile.TemporaryDirectory(prefix="ctsam3d-load-") as name:
        folder = Path(name)
        studies = write_studies(folder / "studies", images)
        with local_server(copy_app(app, folder / "app"), folder / "studies", folder / "server.log", conf) as server:
            return run(server, studies)
