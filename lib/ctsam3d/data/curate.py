"""From labelled cases to cases that hold muscle, visceral and subcutaneous fat too: TotalSeg to TotalSeg++.

Two layouts are read and written: a folder of case folders (see `ctsam3d.data.io.read_case`), and a MONAI Label
datastore whose label maps, with the values of `ctsam3d.data.labels`, lie in ``labels/final``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import WRITABLE_SUFFIXES, read_case, read_labels, read_volume, write_mask, write_volume
from ctsam3d.data.labels import NAMES, V1_FROM_V2, VALUE_OF
from ctsam3d.data.qa_sheet import draw_qa_sheet
from ctsam3d.data.tissues import OTHER, Tissues, find_body, find_tissues, labelled_share
from ctsam3d.volume import Volume

TISSUE_NAMES = NAMES[104:]
_TOTALSEG_FILES = {  # of TotalSegmentator's task tissue_types
    "skeletal_muscle": "skeletal_muscle.nii.gz",
    "visceral_fat": "torso_fat.nii.gz",
    "subcutaneous_fat": "subcutaneous_fat.nii.gz",
}
_TABLE, _SHEETS, _LABELS, _STORE = "tissues.csv", "qa", "labels/final", "datastore_v2.json"


@dataclass(frozen=True)
class Row:
    """One case in ``tissues.csv``.

    Attributes:
        source: "labels" (the case had the tissues), "tissue_types" (TotalSegmentator's files gave them) or "rule".
        share_before, share_after: of the body that carries a label, 0 to 1; before: without the three tissues.
    """

    case: str
    source: str
    share_before: float
    share_after: float
    skeletal_muscle_litres: float
    visceral_fat_litres: float
    subcutaneous_fat_litres: float


def curate(
    data: str | os.PathLike,
    out: str | os.PathLike,
    cases: Sequence[str] | None = None,
    workers: int = 1,
    tissues: str | os.PathLike | None = None,
) -> Path:
    """Adds the three tissues to every case, draws its QA sheet, and gathers shares and volumes in ``tissues.csv``.

    A case that the table has is not done again, so an interrupted run goes on where it was. One that cannot be used
    stops no other.

    Args:
        data: folder of case folders, or a datastore.
        out: another folder; receives the same layout, ``qa/<case>.png`` and the table.
        cases: names; default all.
        workers: processes.
        tissues: folder with TotalSegmentator's output of the task tissue_types as ``<case>/<name>.nii.gz``, for what
            does not hold it itself.

    Returns:
        Path of the table.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing to curate, an unknown case, `workers` below 1, `out` within `data` or the same; or, at the
            end, cases that could not be used, with their reasons.
    """
    data, out = Path(data), Path(out)
    jobs = _jobs(data, out, cases, None if tissues is None else Path(tissues))
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    rows = {row.case: row for row in _read_table(out / _TABLE)}
    waiting = [job for job in jobs if job.name not in rows]
    failed = {}
    with _finished(waiting, workers) as results:
        for job, result in tqdm(results, total=len(jobs), initial=len(jobs) - len(waiting), unit="case"):
            if isinstance(result, Row):
                rows[job.name] = result
                _write_table(out / _TABLE, rows.values())
            else:
                failed[job.name] = result
    if (data / _LABELS).is_dir():
        _write_store(data / _STORE, out / _STORE, set(rows))
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(failed.items()))
        raise ValueError(f"data must hold usable cases, {len(failed)} of {len(jobs)} are not: {reasons}")
    return out / _TABLE


# ---- what there is to do -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One case: of a datastore where `label` is given, else a case folder.

    Attributes:
        name: of the case.
        source: the case folder, or the image.
        label: its label map in the datastore.
        out: folder of the whole result.
        tissues: folders that may hold TotalSegmentator's tissue files.
    """

    name: str
    source: Path
    label: Path | None
    out: Path
    tissues: tuple[Path, ...]


def _jobs(data: Path, out: Path, cases: Sequence[str] | None, tissues: Path | None) -> list[Job]:
    for argument, folder in (("data", data), ("tissues", tissues)):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{argument} must be a folder, {folder} is not")
    if out.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"out must lie outside data, got {out} for data {data}")
    found = _store_jobs(data, out) if (data / _LABELS).is_dir() else _folder_jobs(data, out)
    if not found:
        raise ValueError(f"data must hold case folders or {_LABELS}/<case>.nii.gz, {data} does not")
    jobs = {job.name: job for job in found}
    unknown = sorted(set(cases or ()) - set(jobs))
    if unknown:
        raise ValueError(f"cases must be among {sorted(jobs)}, got {unknown}")
    chosen = [jobs[name] for name in (dict.fromkeys(cases) if cases is not None else sorted(jobs))]
    if tissues is None:
        return chosen
    return [Job(j.name, j.source, j.label, j.out, (*j.tissues, tissues / j.name)) for j in chosen]


def _folder_jobs(data: Path, out: Path) -> list[Job]:
    holds = [f for f in data.iterdir() if f.is_dir() and ((f / "ct.nii.gz").exists() or any(f.glob("*.dcm")))]
    inner = {f: sorted(p for p in f.iterdir() if p.is_dir()) for f in holds}
    return [Job(f.name, f, None, out, (f, *inner[f])) for f in holds]


def _store_jobs(data: Path, out: Path) -> list[Job]:
    jobs = []
    for label in (data / _LABELS).iterdir():
        suffix = next((s for s in WRITABLE_SUFFIXES if label.name.endswith(s)), None)
        if suffix is None or label.name.startswith("."):
            continue
        name = label.name.removesuffix(suffix)
        images = [data / (name + s) for s in WRITABLE_SUFFIXES if (data / (name + s)).exists()]
        if images:
            jobs.append(Job(name, images[0], label, out, ()))
    return jobs


@contextlib.contextmanager
def _finished(jobs: Sequence[Job], workers: int) -> Iterator[Iterator[tuple[Job, Row | str]]]:
    """Jobs with their rows, or the reason why there is none, as they end."""
    if workers == 1:
        yield ((job, _attempt(job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(jobs))), mp_context=context) as pool:
        futures = {pool.submit(_attempt, job): job for job in jobs}
        try:
            yield ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(job: Job) -> Row | str:
    try:
        return curate_case(job)
    except (ValueError, TypeError, OSError) as error:
        return " ".join(str(error).split())


# ---- one case ----------------------------------------------------------------------------------------------------


def curate_case(job: Job) -> Row:
    """Reads one case, adds the tissues that it lacks, writes it with its QA sheet.

    Raises:
        OSError, ValueError: the case cannot be read.
    """
    volume, labels = _read(job)
    before = np.where(_is_tissue(labels), np.uint8(0), labels)
    source, tissues = _find(job, volume, labels, before)
    after = np.where(tissues.labels_ijk > 0, tissues.labels_ijk, before)
    shares = [labelled_share(labels_ijk, tissues.body_ijk) for labels_ijk in (before, after)]
    voxel_litres = abs(np.linalg.det(volume.affine_ras_mm[:3, :3])) / 1e6
    litres = [float(np.count_nonzero(after == VALUE_OF[name]) * voxel_litres) for name in TISSUE_NAMES]
    row = Row(job.name, source, *(round(value, 4) for value in (*shares, *litres)))
    _write(job, volume, after)
    parts = ", ".join(f"{name.replace('_', ' ')} {v:.2f} l" for name, v in zip(TISSUE_NAMES, litres))
    title = f"{job.name} · labelled {shares[0]:.1%} before, {shares[1]:.1%} after ({source}) · {parts}"
    draw_qa_sheet(job.out / _SHEETS / f"{job.name}.png", volume, after, tissues.body_ijk, title)
    return row


def _find(job: Job, volume: Volume, labels: np.ndarray, before: np.ndarray) -> tuple[str, Tissues]:
    """Where the tissues come from, and the tissues; nothing that `before` labels is in them."""
    present = [name for name in TISSUE_NAMES if (labels == VALUE_OF[name]).any()]
    if len(present) == len(TISSUE_NAMES):
        given, source = np.where(_is_tissue(labels), labels, np.uint8(0)), "labels"
    elif (folder := _tissue_folder(job.tissues)) is not None:
        given, source = np.zeros(volume.shape_ijk, np.uint8), "tissue_types"
        for name, file in _TOTALSEG_FILES.items():
            given[(read_labels(folder / file, volume) > 0) & (before == 0)] = VALUE_OF[name]
    else:
        return "rule", find_tissues(volume, before)
    return source, Tissues(given, find_body(volume, before | given))


def _is_tissue(labels: np.ndarray) -> np.ndarray:
    return (labels >= VALUE_OF[TISSUE_NAMES[0]]) & (labels <= VALUE_OF[TISSUE_NAMES[-1]])


def _tissue_folder(folders: Sequence[Path]) -> Path | None:
    return next((f for f in folders if all((f / file).exists() for file in _TOTALSEG_FILES.values())), None)


def _read(job: Job) -> tuple[Volume, np.ndarray]:
    """The scan and its labels as uint8: values of the 107, `OTHER` for names that are none of them."""
    if job.label is not None:
        volume = read_volume(job.source)
        labels = read_labels(job.label, volume)
        if labels.max() > len(NAMES):
            raise ValueError(f"path {job.label} must hold values from 0 to {len(NAMES)}, got {labels.max()}")
        return volume, labels.astype(np.uint8)
    case = read_case(job.source)
    labels = np.zeros(case.volume.shape_ijk, np.uint8)
    values = {name: VALUE_OF.get(V1_FROM_V2.get(name, name) or "", OTHER) for name in case.names}
    # Of masks that overlap, one of the 107 counts more than another name, an organ more than a tissue.
    for name in sorted(case.names, key=lambda n: (_is_tissue(values[n]), values[n] == OTHER)):
        mask = case.mask(name)
        labels[mask & (labels == 0)] = values[name]
    return case.volume, labels


def _write(job: Job, volume: Volume, after: np.ndarray) -> None:
    """The case with its tissues, in the layout that it came in."""
    tissues = {name: after == VALUE_OF[name] for name in TISSUE_NAMES}
    if job.label is not None:
        _place(job.source, job.out / job.source.name)
        write_mask(job.out / _LABELS / job.label.name, after, volume)
        return
    folder = job.out / job.name
    for file in sorted(job.source.glob("*.txt")):  # origin and licence
        _place(file, folder / file.name)
    if (job.source / "ct.nii.gz").exists():
        _place(job.source / "ct.nii.gz", folder / "ct.nii.gz")
    else:
        write_volume(folder / "ct.nii.gz", volume)
    if (job.source / "seg.nii.gz").exists():
        _write_label_map(job.source, folder, volume, tissues)
        return
    for file in sorted((job.source / "segmentations").glob("*.nii.gz")):
        if file.name.removesuffix(".nii.gz") not in (*TISSUE_NAMES, "torso_fat"):
            _place(file, folder / "segmentations" / file.name)
    for name, mask in tissues.items():
        write_mask(folder / "segmentations" / f"{name}.nii.gz", mask, volume)


def _write_label_map(source: Path, folder: Path, volume: Volume, tissues: dict[str, np.ndarray]) -> None:
    """``seg.nii.gz`` and ``labels.json`` as they were, and the tissues at 105 to 107 or the next that are free."""
    names = {int(v): n for v, n in json.loads((source / "labels.json").read_text(encoding="utf-8")).items()}
    labels = read_labels(source / "seg.nii.gz", volume)
    for value in [value for value, name in names.items() if V1_FROM_V2.get(name, name) in tissues]:
        labels[labels == value] = 0
        del names[value]
    for name, mask in tissues.items():
        value = VALUE_OF[name] if VALUE_OF[name] not in names else max(*names, len(NAMES)) + 1
        names[value] = name
        labels[mask] = value
    write_mask(folder / "seg.nii.gz", labels, volume)
    with atomic_path(folder / "labels.json") as path:
        path.write_text(json.dumps({str(v): names[v] for v in sorted(names)}, indent=1) + "\n", encoding="utf-8")


def _place(source: Path, target: Path) -> None:
    """A copy of a file; not a link, since who changes the result must not change what it came from."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


# ---- the table, and what MONAI Label keeps -----------------------------------------------------------------------


def _read_table(path: Path) -> list[Row]:
    if not path.exists():
        return []
    table = pd.read_csv(path, dtype={"case": str})
    if list(table.columns) != [f.name for f in fields(Row)]:
        raise ValueError(f"path {path} must be a table that this wrote, got the columns {list(table.columns)}")
    return [Row(*values) for values in table.itertuples(index=False, name=None)]


def _write_table(path: Path, rows) -> None:
    table = pd.DataFrame([asdict(row) for row in sorted(rows, key=lambda row: row.case)])
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _write_store(source: Path, target: Path, cases: set[str]) -> None:
    """MONAI Label's record of the datastore, for the curated cases, with the names of the tissues."""
    if not source.exists():
        return
    store = json.loads(source.read_text(encoding="utf-8"))
    objects = {name: entry for name, entry in store.get("objects", {}).items() if name in cases}
    for entry in objects.values():
        info = entry.get("labels", {}).get("final", {}).get("info", {})
        if isinstance(info.get("label_info"), list):
            named = [e for e in info["label_info"] if e.get("name") not in TISSUE_NAMES]
            info["label_info"] = named + [{"name": name, "idx": VALUE_OF[name]} for name in TISSUE_NAMES]
    with atomic_path(target) as path:
        path.write_text(json.dumps({**store, "objects": objects}, indent=2) + "\n", encoding="utf-8")
