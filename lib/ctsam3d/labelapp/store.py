"""The studies folder as MONAI Label's datastore, made to be shared: nothing is torn, lost, or overwritten for good.

What MONAI Label's own does in memory and then writes, this does the other way round: under the lock, on what the file
says now, written before anybody is told. Labels and images that are saved again stay in ``.history``. Reading takes no
lock: a record is replaced, never changed.
"""

from __future__ import annotations

import contextlib
import copy
import filecmp
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from ctsam3d.data.files import sync_folder
from ctsam3d.labelapp.history import PUBLISHED, History, SavedVersion
from ctsam3d.labelapp.names import STORED_SUFFIXES
from ctsam3d.labelapp.records import RecordFile, Records

logger = logging.getLogger(__name__)

IMAGES = ".images"  # kind of history; labels have their tag, which begins with a letter or a digit
_CHANGES = ("created", "deleted", "modified", "moved")
_QUIET_SECONDS = 0.3  # after a change in the folder, before it is looked through: files are copied in many at a time


class StudyStore(LocalDatastore):
    """MONAI Label's local datastore: safe among threads and processes, through crashes, and with a history.

    Args:
        datastore_path: the studies folder.
        extensions: patterns of files that are images; of those, only what can be read as a scan counts.
    """

    def __init__(
        self,
        datastore_path: str,
        images_dir: str = ".",
        labels_dir: str = "labels",
        datastore_config: str = "datastore_v2.json",
        extensions: tuple[str, ...] = ("*.nii.gz", "*.nii"),
        auto_reload: bool = False,
        read_only: bool = False,
    ):
        os.makedirs(datastore_path, exist_ok=True)
        self._file = RecordFile(os.path.join(datastore_path, datastore_config))
        self._history = History(os.path.join(datastore_path, ".history"))
        self._removed: dict[str, ImageLabelModel] = {}
        self._seen = threading.Event()  # something has changed in the folder
        patterns = [extensions] if isinstance(extensions, str) else extensions
        readable = tuple(pattern for pattern in patterns if pattern.lstrip("*") in STORED_SUFFIXES)
        with self._file.locked():
            super().__init__(datastore_path, images_dir, labels_dir, datastore_config, readable, read_only=True)
            if not read_only:
                self._clear_left_over()
                self._finish_saves()
                self._reconcile_datastore()
        if auto_reload:
            self._watch()

    # ---- the record -----------------------------------------------------------------------------------------------

    def _init_from_datastore_file(self, throw_exception=False):
        """Takes over what others have written."""
        with self._file.locked():
            records = self._file.read()
            if records is not None:
                self._take(records)

    def _update_datastore_file(self, lock=True):
        with self._file.locked():
            self._file.write(self._records())

    def _records(self) -> Records:
        store = self._datastore
        head = {key: getattr(store, key) for key in ("name", "description", "images_dir", "labels_dir")}
        return Records(head, store.objects, self._removed)

    def _take(self, records: Records) -> None:
        self._datastore, self._removed = records.model(self._datastore_path), records.removed

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Records]:
        """The records as they are now, to be changed; written when the block ends well, then seen by others."""
        with self._file.locked():
            self._init_from_datastore_file()
            before = self._records()
            after = before.copy()
            yield after
            if after != before:
                self._file.write(after)
                self._take(after)

    def set_name(self, name: str):
        with self._changing() as records:
            records.head["name"] = name

    def set_description(self, description: str):
        with self._changing() as records:
            records.head["description"] = description

    # ---- images ---------------------------------------------------------------------------------------------------

    def _to_id(self, file: str) -> tuple[str, str]:
        suffix = next((s for s in STORED_SUFFIXES if file.endswith(s)), None)
        return (file.removesuffix(suffix), suffix) if suffix else super()._to_id(file)

    def image_path(self, name: str) -> Path:
        """Where a file of the images lies."""
        return Path(self._datastore.image_path(), name)

    def label_path(self, tag: str, name: str) -> Path:
        """Where a file of the labels with a tag lies."""
        return Path(self._datastore.label_path(tag), name)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Stores an image; one that is there already keeps its labels, and the file before stays in the history."""
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        staged = self._history.stage(image_filename, ext)
        try:
            with self._changing() as records:
                known = records.objects.get(image_id) or records.removed.pop(image_id, None)
                target, before = self.image_path(image_id + ext), known.image if known else DataModel(ext=ext)
                replaced = self.image_path(image_id + before.ext)
                if replaced.is_file() and not filecmp.cmp(replaced, staged, shallow=False):
                    self._history.keep(IMAGES, image_id, replaced, before.ext, before.info)
                os.replace(staged, target)
                sync_folder(target.parent)
                info = {**before.info, **copy.deepcopy(image_info or {}), **_said(target.name)}
                labels = known.labels if known else {}
                records.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ext), labels=labels)
            if before.ext != ext:
                replaced.unlink(missing_ok=True)
        finally:
            staged.unlink(missing_ok=True)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Removes an image with its labels and all that the history has of it.

        Raises:
            ImageNotFoundException: no such image.
        """
        with self._changing() as records:
            found = _found(records, image_id)
            for tag, label in found.labels.items():
                self.label_path(tag, image_id + label.ext).unlink(missing_ok=True)
            self.image_path(image_id + found.image.ext).unlink(missing_ok=True)
            self._history.forget(image_id)
            del records.objects[image_id]

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Adds to what is said about an image.

        Raises:
            ImageNotFoundException: no such image.
        """
        with self._changing() as records:
            found = _found(records, image_id)
            image = DataModel(ext=found.image.ext, info={**found.image.info, **copy.deepcopy(info)})
            records.objects[image_id] = ImageLabelModel(image=image, labels=found.labels)

    # ---- labels ---------------------------------------------------------------------------------------------------

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Stores a label; one that is saved again stays in the history with what was said about it.

        Raises:
            ImageNotFoundException: no such image.
        """
        _, ext = self._to_id(os.path.basename(label_filename))
        staged = self._history.stage(label_filename, ext)
        try:
            with self._changing() as records:
                found = _found(records, image_id)
                known = found.labels.get(label_tag)
                if known:
                    self._history.adopt(
                        label_tag, image_id, self.label_path(label_tag, image_id + known.ext), known.ext, known.info
                    )
                info = {**copy.deepcopy(label_info or {}), **_said(image_id + ext)}
                saved = self._history.add(label_tag, image_id, staged, ext, info)
                self._history.publish(saved, self.label_path(label_tag, image_id + ext))
                records.objects[image_id] = _labelled(found, label_tag, DataModel(info=saved.info, ext=ext))
            if known and known.ext != ext:
                self.label_path(label_tag, image_id + known.ext).unlink(missing_ok=True)
        finally:
            staged.unlink(missing_ok=True)
        logger.info("label %s of image %s saved, version %d", label_tag, image_id, saved.number)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Takes a label out of use; the history keeps it.

        Raises:
            LabelNotFoundException: no such label.
        """
        with self._changing() as records:
            found, label = _found_label(records, label_id, label_tag)
            path = self.label_path(label_tag, label_id + label.ext)
            self._history.adopt(label_tag, label_id, path, label.ext, label.info)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
            records.objects[label_id] = _labelled(found, label_tag, None)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Adds to what is said about a label.

        Raises:
            LabelNotFoundException: no such label.
        """
        with self._changing() as records:
            found, label = _found_label(records, label_id, label_tag)
            said = DataModel(ext=label.ext, info={**label.info, **copy.deepcopy(info)})
            records.objects[label_id] = _labelled(found, label_tag, said)

    def label_versions(self, label_id: str, label_tag: str) -> list[SavedVersion]:
        """Every version of a label that the history has, the oldest first."""
        return self._history.all(label_tag, label_id)

    # ---- what the folders hold ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Follows what others do to the folder, but for the history, which has a folder for every label."""
        observer = PollingObserver() if self._is_on_mount(self._datastore_path) else Observer()
        handler = FileSystemEventHandler()
        handler.on_any_event = self._on_any_event
        try:
            for folder in {os.path.realpath(path) for path in (self._datastore_path, self._datastore.image_path())}:
                observer.schedule(handler, folder)
            observer.schedule(handler, os.path.realpath(self._datastore.label_path(None)), recursive=True)
            observer.start()
        except OSError as error:
            logger.error("the studies folder cannot be watched, what others put there is seen at a restart: %s", error)
            return
        threading.Thread(target=self._look_again, name="ctsam3d-studies", daemon=True).start()

    def _on_any_event(self, event):
        names = [os.path.basename(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]
        if event.event_type in _CHANGES and not all(name.startswith(".") for name in names):
            self._seen.set()

    def _look_again(self) -> None:
        """Looks through the folder a moment after something has changed there."""
        while True:
            self._seen.wait()
            time.sleep(_QUIET_SECONDS)
            self._seen.clear()
            try:
                self.refresh()
            except Exception:
                logger.exception("the studies folder could not be looked through")

    def _reconcile_datastore(self):
        """Brings the record in line with the files: what has come is added, what has gone is set aside."""
        with self._changing() as records:
            images = set(os.listdir(self._datastore.image_path()))
            root = self._datastore.label_path(None)
            folders = [entry for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
            labels = {folder.name: set(os.listdir(folder.path)) for folder in folders}
            for image_id, record in list(records.objects.items()):
                if not self._is_there(image_id + record.image.ext, images):
                    logger.warning("image %s is gone, its record is set aside", image_id)
                    records.removed[image_id] = records.objects.pop(image_id)
            for name in sorted(images):
                image_id, ext = self._to_id(name)
                if self._counts(name) and image_id not in records.objects:
                    back = records.removed.pop(image_id, None)
                    logger.info("image %s is %s", image_id, "back" if back else "new")
                    image = DataModel(info=_said(name), ext=ext)
                    records.objects[image_id] = back or ImageLabelModel(image=image)
            for image_id, record in list(records.objects.items()):
                kept = {tag: v for tag, v in record.labels.items() if image_id + v.ext in labels.get(tag, ())}
                if len(kept) < len(record.labels):
                    logger.warning("image %s: labels %s are gone", image_id, sorted(set(record.labels) - set(kept)))
                    records.objects[image_id] = ImageLabelModel(image=record.image, labels=kept)
            for tag, names in labels.items():
                for name in filter(self._counts, names):
                    image_id, ext = self._to_id(name)
                    record = records.objects.get(image_id)
                    if record and tag not in record.labels:
                        logger.info("image %s: label %s is new", image_id, tag)
                        records.objects[image_id] = _labelled(record, tag, self._label_of_file(tag, image_id, ext))

    def _counts(self, name: str) -> bool:
        return not name.startswith(".") and any(name.endswith(pattern.lstrip("*")) for pattern in self._extensions)

    def _is_there(self, name: str, names: set[str]) -> bool:
        """Whether a record's file exists; a record by hand may name one in a folder below."""
        return name in names or (os.sep in name and self.image_path(name).is_file())

    def _label_of_file(self, tag: str, image_id: str, ext: str) -> DataModel:
        """What to say about a label that no record knows: what the history knows of that very file."""
        name = image_id + ext
        saved = self._history.get(tag, image_id, self._history.newest(tag, image_id))
        if saved and saved.ext == ext and saved.path.stat().st_size == self.label_path(tag, name).stat().st_size:
            return DataModel(info=saved.info, ext=ext)
        return DataModel(info=_said(name), ext=ext)

    def _clear_left_over(self) -> None:
        """Removes what killed processes have left half done; nobody else is at it while the lock is held."""
        self._history.clear()
        self._file.clear()
        root = Path(self._datastore.label_path(None))
        for path in (*Path(self._datastore.image_path()).glob(f"{PUBLISHED}*"), *root.glob(f"*/{PUBLISHED}*")):
            path.unlink(missing_ok=True)

    def _finish_saves(self) -> None:
        """A process that died between storing a version and recording it has left a newer one than the record says."""
        with self._changing() as records:
            for image_id, record in list(records.objects.items()):
                for tag, label in record.labels.items():
                    number = label.info.get("version")
                    if not self._history.has(tag, image_id, number + 1 if isinstance(number, int) else 2):
                        continue
                    saved = self._history.get(tag, image_id, self._history.newest(tag, image_id))
                    if saved:
                        logger.warning("label %s of image %s: version %d is taken over", tag, image_id, saved.number)
                        self._history.publish(saved, self.label_path(tag, image_id + saved.ext))
                        record = _labelled(record, tag, DataModel(info=saved.info, ext=saved.ext))
                records.objects[image_id] = record


def _said(name: str) -> dict[str, Any]:
    """What MONAI Label says of every file."""
    return {"ts": int(time.time()), "name": name}


def _found(records: Records, image_id: str) -> ImageLabelModel:
    found = records.objects.get(image_id)
    if found is None:
        raise ImageNotFoundException(f"Image {image_id} not found")
    return found


def _found_label(records: Records, image_id: str, tag: str) -> tuple[ImageLabelModel, DataModel]:
    """The record of an image, and of one of its labels."""
    found = records.objects.get(image_id)
    if found is None or tag not in found.labels:
        raise LabelNotFoundException(f"Label: {image_id} Tag: {tag} not found")
    return found, found.labels[tag]


def _labelled(record: ImageLabelModel, tag: str, label: DataModel | None) -> ImageLabelModel:
    """The record with another label, or without it."""
    labels = {key: value for key, value in record.labels.items() if key != tag}
    if label is not None:
        labels[tag] = label
    return ImageLabelModel(image=record.image, labels=labels)
