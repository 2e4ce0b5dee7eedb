"""``datastore_v2.json``, MONAI Label's record of images and labels, as a file that is always whole.

It is replaced, never written into; the one before stays beside it as ``.bak``. Whoever changes it holds a lock among
threads and processes and reads first what others have written. A file that cannot be read is set aside, never lost.
A change costs the writing of the file: of 8,000 images only the changed ones are turned into text again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import ImageLabelModel, LocalDatastoreModel

from ctsam3d.data.files import atomic_path, file_signature, sync_folder

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 120.0  # a change takes milliseconds; who holds the lock for longer has died in a way nobody foresaw
_POLL_SECONDS = 0.005
_UNREADABLE = (OSError, ValueError, RecursionError)
_HEAD = ("name", "description", "images_dir", "labels_dir")


@dataclass
class Records:
    """What the file holds.

    Attributes:
        head: name, description, and the two folders.
        objects: of the images that are there, by id. A record is never changed, only replaced: others may read it.
        removed: of images whose file has vanished, for when it comes back.
    """

    head: dict[str, str]
    objects: dict[str, ImageLabelModel] = field(default_factory=dict)
    removed: dict[str, ImageLabelModel] = field(default_factory=dict)

    def copy(self) -> Records:
        """Another one with the same records, to be changed."""
        return Records(dict(self.head), dict(self.objects), dict(self.removed))

    def model(self, base_path: str) -> LocalDatastoreModel:
        """MONAI Label's own view of the images that are there."""
        return LocalDatastoreModel.model_construct(**self.head, objects=self.objects, base_path=base_path)


class RecordFile:
    """The file, and the lock beside it; `read` and `write` belong inside `locked`."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.backup_path = self.path.with_name(self.path.name + ".bak")
        self._threads = threading.RLock()
        self._processes = FileLock(self.path.parent / ".lock", timeout=_LOCK_SECONDS)  # the lock of MONAI Label's own
        self._known: tuple | None = ()  # signature of the file as last read or written; None: there was none
        self._lines: dict[str, tuple[ImageLabelModel, str]] = {}  # of each image its record and that as text

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the file while the block runs; may be nested.

        Raises:
            filelock.Timeout: somebody holds the lock for two minutes.
        """
        with self._threads, self._processes.acquire(poll_interval=_POLL_SECONDS):
            yield

    def read(self) -> Records | None:
        """What others have written since the last call; None where there is nothing new.

        A file that cannot be read is set aside; at the first call the backup then takes its place.
        """
        first, signature = self._known == (), file_signature(self.path)
        if signature == self._known:
            return None
        self._known = signature
        if signature is not None:
            try:
                return _parse(self.path)
            except _UNREADABLE as error:
                aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
                os.replace(self.path, aside)
                self._known = None
                logger.error("%s cannot be read and is now %s: %s", self.path, aside.name, error)
        return self._restored() if first else None

    def _restored(self) -> Records | None:
        if not self.backup_path.exists():
            return None
        try:
            records = _parse(self.backup_path)
        except _UNREADABLE as error:
            logger.error(
                "%s cannot be read either, what is in the folders is recorded anew: %s", self.backup_path, error
            )
            return None
        logger.error("the last good record is taken: %s", self.backup_path)
        with atomic_path(self.path) as temporary:
            shutil.copyfile(self.backup_path, temporary)
        self._known = file_signature(self.path)
        return records

    def write(self, records: Records) -> None:
        """Replaces the file; it is on the disk when this returns."""
        text = self._text(records)
        if self._known is not None and self._known == file_signature(self.path):  # known to be good
            self._back_up()
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(text)
        self._known = file_signature(self.path)

    def clear(self) -> None:
        """Removes what killed processes have left half-written."""
        for path in self.path.parent.glob(f".writing-*{self.path.name}*"):
            path.unlink(missing_ok=True)

    def _back_up(self) -> None:
        """The backup becomes the file as it is: under a second name, since the first one's content never changes."""
        second_name(self.path, self.backup_path, f".writing-{os.getpid()}-")

    def _text(self, records: Records) -> bytes:
        """One image a line."""
        known, self._lines = self._lines, {}
        for image, record in records.objects.items():
            held = known.get(image)
            self._lines[image] = held if held is not None and held[0] is record else (record, _line(image, record))
        objects = ",\n".join(line for _, line in self._lines.values())
        removed = ",\n".join(_line(image, record) for image, record in records.removed.items())
        head = json.dumps(records.head)[:-1]
        return f'{head}, "objects": {{\n{objects}\n}}, "removed": {{\n{removed}\n}}}}\n'.encode()


def second_name(source: Path, target: Path, prefix: str) -> None:
    """`target` becomes the content of `source`, in one step.

    Args:
        prefix: of the temporary name beside `target`.
    """
    temporary = target.with_name(f"{prefix}{target.name}")
    temporary.unlink(missing_ok=True)
    link_or_copy(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # of two names of one file, renaming keeps both


def link_or_copy(source: Path, target: Path) -> None:
    """`target`, which is not there yet, gets the content of `source`; by a second name where the disk knows these."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with open(target, "rb") as copied:
            os.fsync(copied.fileno())
    sync_folder(target.parent)


def _line(image: str, record: ImageLabelModel) -> str:
    return f"{json.dumps(image)}: {json.dumps(record.model_dump(), default=str)}"


def _parse(path: Path) -> Records:
    """What a file holds, also one that MONAI Label wrote.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read.
    """
    values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)  # no reply may hold a NaN
    if not isinstance(values, Mapping):
        raise ValueError(f"it must hold a JSON object, got {type(values).__name__}")
    model = LocalDatastoreModel.model_validate(values)
    removed = LocalDatastoreModel.model_validate({**values, "objects": values.get("removed", {})})
    return Records({key: getattr(model, key) for key in _HEAD}, model.objects, removed.objects)
