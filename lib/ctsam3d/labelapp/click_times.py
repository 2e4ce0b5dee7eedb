"""What a click costs over HTTP on a large scan, beside what it costs in a sample app of MONAI Label."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.evaluation.timing import Row, median_row
from ctsam3d.labelapp.load import Answer, ask, rss_mb, until_quiet
from ctsam3d.labelapp.local_server import LocalServer, copy_app, local_server
from ctsam3d.labelapp.sample_app import sample_app_click
from ctsam3d.segmenter import Segmenter
from ctsam3d.segmenter import load as load_segmenter
from ctsam3d.volume import OUTSIDE_HU, Volume

IMAGE = "scan"
STRUCTURES = ("liver", "spleen", "kidney_left", "kidney_right", "stomach")
_COARSE_SHAPE = (128, 128, 150)
_COARSE_MM = (3.12, 3.12, 4.0)
_NOISE_HU = 20
_SETTLED_MB = 1.0  # growth in a second below which a server has finished starting

IJK = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class LargeScan:
    """A generated scan, and of each structure a voxel deep inside it and another one half as deep."""

    volume: Volume
    clicks_ijk: dict[str, tuple[IJK, IJK]]


def make_large_scan(zoom: int = 4, seed: int = 0) -> LargeScan:
    """A torso as int16, with `zoom` 4 of 512 x 512 x 600 voxels of 0.78 x 0.78 x 1.0 mm; the same for the same seed.

    A coarse phantom, each voxel repeated `zoom` times per axis, repeated along the body where it is too short, under
    noise that is fresh in each voxel, so that the file is about as hard to unpack as a real one.
    """
    phantom = make_phantom(seed, _COARSE_MM, "trunk")
    hu = _fitted(phantom.volume.array_ijk, OUTSIDE_HU)
    labels = _fitted(phantom.labels_ijk, 0)
    clicks = {name: _clicks(labels == VALUE_OF[name], zoom) for name in STRUCTURES}
    for axis in range(3):
        hu = hu.repeat(zoom, axis)
    hu = np.asfortranarray(hu)
    hu += np.random.default_rng(seed).integers(-_NOISE_HU, _NOISE_HU + 1, hu.shape[::-1], np.int16).T
    return LargeScan(Volume(hu, np.diag([*(mm / zoom for mm in _COARSE_MM), 1.0])), clicks)


def _fitted(array: np.ndarray, outside: float) -> np.ndarray:
    """The coarse array cut or filled to its shape: across the body with `outside`, along it with itself."""
    for axis, size in enumerate(_COARSE_SHAPE[:2]):
        low = (array.shape[axis] - size) // 2
        array = array.take(range(max(0, low), max(0, low) + min(size, array.shape[axis])), axis)
    across = [((n - m) // 2, n - m - (n - m) // 2) for n, m in zip(_COARSE_SHAPE, array.shape[:2])]
    array = np.pad(array, [*across, (0, 0)], constant_values=outside)
    return array.take(range(_COARSE_SHAPE[2]), axis=2, mode="wrap")


def _clicks(mask_ijk: np.ndarray, zoom: int) -> tuple[IJK, IJK]:
    """A voxel deepest in a coarse mask, and one half as deep, each in the middle of its block of the scan."""
    depth = ndimage.distance_transform_edt(np.pad(mask_ijk, 1))[1:-1, 1:-1, 1:-1]
    half = np.where(mask_ijk, np.abs(depth - depth.max() / 2), np.inf)
    places = (np.unravel_index(index, mask_ijk.shape) for index in (depth.argmax(), half.argmin()))
    return tuple(tuple(int(v) * zoom + zoom // 2 for v in place) for place in places)


def benchmark_http(
    app: str | os.PathLike, repeats: int, conf: Mapping[str, str] | None = None, zoom: int = 4, seed: int = 0
) -> dict[str, list[Row]]:
    """Clicks on a large scan through the plain server, with a fresh start per repeat, and in a sample app's way.

    Args:
        conf: settings of the app, such as ``weights`` and ``device``; the sample app's way uses the same.

    Returns:
        Tables ``http`` (median seconds of a click and its stages, size of the reply), ``memory`` (RSS of the server)
        and ``sample app`` (median seconds of its steps, and its total over that of a first and a next click).
    """
    conf = dict(conf or {})
    with tempfile.TemporaryDirectory(prefix="ctsam3d-clicks-") as name:
        folder = Path(name)
        scan = make_large_scan(zoom, seed)
        path = folder / "studies" / f"{IMAGE}.nii.gz"
        write_volume(path, scan.volume)
        copy_app(app, folder / "app")
        clicks: list[Row] = []
        memory: list[Row] = []
        for expand in tqdm([False, True] * repeats, desc="server starts"):
            with local_server(folder / "app", path.parent, folder / "server.log", conf) as server:
                _settle(server.pid)
                _ask_all(server, scan, expand, clicks, memory)
        segmenter = load_segmenter(conf.get("weights", "default"), conf.get("device", "cpu"))
        steps = [_sample_app_seconds(segmenter, path, scan.clicks_ijk["liver"][0]) for _ in range(repeats)]
    http = _medians(clicks, ("expand", "click", "reply"))
    rows = _medians(memory, ("expand", "structures"))
    return {"http": http, "memory": rows, "sample app": [_compared(median_row(steps), http)]}


def _settle(pid: int) -> None:
    """Waits until the server, which answers already, has loaded its weights in the background."""
    before = 0.0
    while (now := rss_mb(pid)) > before + _SETTLED_MB:
        before = now
        time.sleep(1)


def _ask_all(server: LocalServer, scan: LargeScan, expand: bool, clicks: list[Row], memory: list[Row]) -> None:
    """Adds rows: the first click after the start, first and next ones on the other structures; the memory between."""

    def click(kind: str, structure: str, positive: Sequence[IJK], extension: str = ".nrrd") -> None:
        lists = {structure: positive, "background": []}
        send = partial(ask, server.url, IMAGE, lists, "click times", expand=expand, result_extension=extension)
        start = time.perf_counter()
        answer = send()
        until_quiet(answer, send)
        complete = {"mask complete s": time.perf_counter() - start}  # what did not fit into the reply comes later
        clicks.append({"expand": expand, "click": kind, "reply": extension, **_figures(answer), **complete})

    def look(structures: int) -> None:
        memory.append({"expand": expand, "structures": structures, "RSS MB": rss_mb(server.pid)})

    look(0)
    for number, (name, (first, second)) in enumerate(scan.clicks_ijk.items(), start=1):
        click("first, image not read" if number == 1 else "first", name, [first])
        if number in (1, len(scan.clicks_ijk)):
            look(number)
        click("next", name, [first, second])
        click("no new click", name, [first, second], ".nii.gz")


def _figures(answer: Answer) -> Row:
    stages = {f"{stage} s": seconds for stage, seconds in answer.reply["latencies"].items() if stage != "total"}
    around = answer.seconds - answer.reply["latencies"]["total"]  # connection, form, transfer
    return {"click s": answer.seconds, **stages, "HTTP s": around, "reply MB": len(answer.file) / 1e6}


def _medians(samples: Sequence[Row], keys: tuple[str, ...]) -> list[Row]:
    """One row per combination of `keys`, with the medians of all else."""
    groups: dict[tuple, list[Row]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample[key] for key in keys), []).append(sample)
    rest = {group: [{k: v for k, v in row.items() if k not in keys} for row in rows] for group, rows in groups.items()}
    return [{**dict(zip(keys, group)), **median_row(rows)} for group, rows in rest.items()]


def _sample_app_seconds(segmenter: Segmenter, image: Path, click_ijk: IJK) -> dict[str, float]:
    file, seconds = sample_app_click(segmenter, image, click_ijk)
    file.unlink()
    return {f"{step} s": value for step, value in seconds.items()}


def _compared(row: Row, http: Sequence[Row]) -> Row:
    """The sample app's seconds, and over those of a warm click of each kind."""
    for other in http:
        if other["click"] in ("first", "next"):
            mode = "expanding" if other["expand"] else "one patch"
            row[f"over {other['click']} click, {mode} x"] = row["total s"] / other["click s"]
    return row
