"""The datastore that is made: MONAI Label's layout on disk, and a record of each finished case beside it.

Below the folder: ``<case>.nii.gz``, ``labels/final/<case>.nii.gz``, ``datastore_v2.json`` (MONAI Label's own record),
``split.csv``, ``report.csv``, ``report.md``; and ``.conversion/`` with what the conversion needs to go on. Nothing
half-written ever has a name that the server would take for an image.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ctsam3d.data.files import atomic_path, clear_temporary
from ctsam3d.data.labels import VALUE_OF

SUFFIX = ".nii.gz"
FINAL = "final"  # MONAI Label's tag of a label that counts
CONFIG = "datastore_v2.json"


@dataclass(frozen=True)
class Record:
    """What became of a case.

    Attributes:
        case, part, source_part, patient: as in `SourceCase`.
        source: fingerprint of its files.
        refused: why it is not in the datastore; empty where it is.
        shape_ijk, spacing_ijk_mm: of the image, spacing in mm.
        direction_mended: the image's direction was not orthonormal.
        voxels: of each structure in the label map; empty where there is none, and then no label file either.
        empty, dropped, covered, overlap_voxels: see `Labels`.
        reoriented, header_mended, resampled: number of label files that were brought to the grid in this way.
        seconds: that it took.
        made: time of day, seconds since 1970.
    """

    case: str
    part: str
    source_part: str
    patient: str
    source: str
    refused: str = ""
    shape_ijk: tuple[int, ...] = ()
    spacing_ijk_mm: tuple[float, ...] = ()
    direction_mended: bool = False
    voxels: Mapping[str, int] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()
    overlap_voxels: int = 0
    reoriented: int = 0
    header_mended: int = 0
    resampled: int = 0
    seconds: float = 0.0
    made: int = 0

    def as_json(self) -> dict:
        """What `from_json` reads."""
        return {part.name: _plain(getattr(self, part.name)) for part in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping) -> Record:
        """The inverse of `as_json`, also after JSON has turned tuples into lists."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class Store:
    """The folder of a datastore; several processes may put different cases into it at once."""

    folder: Path

    def image_path(self, case: str) -> Path:
        return self.folder / f"{case}{SUFFIX}"

    def label_path(self, case: str) -> Path:
        return self.folder / "labels" / FINAL / f"{case}{SUFFIX}"

    def _record_path(self, case: str) -> Path:
        return self._private / "cases" / f"{case}.json"

    @property
    def _private(self) -> Path:
        return self.folder / ".conversion"

    @contextlib.contextmanager
    def only_one(self) -> Iterator[None]:
        """While one conversion writes here; what a killed one left half-written is cleared away first.

        Raises:
            ValueError: another one writes here.
        """
        self._private.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._private / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"out {self.folder} must have one conversion at a time, another is writing") from error
        try:
            shutil.rmtree(self._private / "work", ignore_errors=True)
            clear_temporary(self._private)
            for path in self.folder.glob(".writing-*"):  # not below it, where the labels of a team lie
                path.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def work(self, case: str) -> Iterator[Path]:
        """A folder for the files of a case until they are whole, on the disk of the datastore."""
        folder = self._private / "work" / f"{case}-{os.getpid()}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, record: Record, image: Path, label: Path | None) -> Record:
        """Moves the files of a case into place and records it, in this order: a record stands for whole files.

        Args:
            image, label: on the disk of the datastore.

        Returns:
            The record with its time.
        """
        target = self.label_path(record.case)
        if label is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(label, target)
        os.replace(image, self.image_path(record.case))
        record = dataclasses.replace(record, made=int(time.time()))
        _write_json(self._record_path(record.case), record.as_json())
        return record

    def records(self) -> dict[str, Record]:
        """The finished cases whose files are there, by name."""
        found = {}
        for path in sorted((self._private / "cases").glob("*.json")):
            record = Record.from_json(json.loads(path.read_text(encoding="utf-8")))
            label_there = not record.voxels or self.label_path(record.case).is_file()
            if label_there and self.image_path(record.case).is_file():
                found[record.case] = record
        return found

    def write_config(self, records: Sequence[Record]) -> Path:
        """Writes MONAI Label's record of all images and labels, in one step; what it says already is kept.

        So the labels that a team has saved since stay as they are recorded, and so do images of other origin.
        """
        path = self.folder / CONFIG
        for tag in (FINAL, "original"):
            (self.folder / "labels" / tag).mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # the server's
            config = {"name": self.folder.resolve().name, "description": "", "images_dir": ".", "labels_dir": "labels"}
            if path.is_file():
                config |= json.loads(path.read_text(encoding="utf-8"))
            objects = dict(config.get("objects", {}))
            for record in records:
                objects[record.case] = _merged(datastore_entry(record), objects.get(record.case, {}))
            _write_json(path, config | {"objects": objects})
        return path

    def write_split(self, records: Sequence[Record]) -> Path:
        """Writes ``split.csv``: image, patient, split (training or test) and what the download called it."""
        path = self.folder / "split.csv"
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "patient", "split", "source_split"))
            writer.writerows((r.case, r.patient, r.part, r.source_part) for r in records)
        return path


def datastore_entry(record: Record) -> dict:
    """The entry of a case in ``datastore_v2.json``; its names and values are what the app trains on."""
    name = f"{record.case}{SUFFIX}"
    info = {"ts": record.made, "name": name, "split": record.part}
    if record.patient:
        info["patient"] = record.patient
    entry = {"image": {"ext": SUFFIX, "info": info}, "labels": {}}
    if record.voxels:
        names = [{"name": structure, "idx": VALUE_OF[structure]} for structure in record.voxels]
        entry["labels"][FINAL] = {"ext": SUFFIX, "info": {"ts": record.made, "name": name, "label_info": names}}
    return entry


def _merged(ours: dict, theirs: Mapping) -> dict:
    """Our entry, under what the datastore has already; a label without names is one that it found by itself."""
    image = {**ours["image"], "info": {**ours["image"]["info"], **theirs.get("image", {}).get("info", {})}}
    named = {tag: label for tag, label in theirs.get("labels", {}).items() if label.get("info", {}).get("label_info")}
    return {"image": image, "labels": {**theirs.get("labels", {}), **ours["labels"], **named}}


def _write_json(path: Path, values: Mapping) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _plain(value):
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
