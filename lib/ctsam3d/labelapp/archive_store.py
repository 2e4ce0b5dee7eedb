"""A DICOMweb archive as MONAI Label's datastore: scans come from it, final labels go to it as DICOM SEG.

Its local copy is a `StudyStore`, which has the history of every label. What lies in the archive is asked for again
every few seconds: MONAI Label's own datastore remembers its lists for two hours.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import monailabel.interfaces.app
import numpy as np
import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import Datastore
from pydicom import dcmread
from pydicom.dataset import Dataset

from ctsam3d.data.dicom_seg import read_dicom_seg, write_dicom_seg
from ctsam3d.data.io import read_label_grid, read_volume, write_mask, write_volume
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.labelapp.names import FINAL
from ctsam3d.labelapp.store import StudyStore

logger = logging.getLogger(__name__)

_MOST_EMPTY = 20  # structures without voxels that a label may name, to say that they were looked for
_LIST_SECONDS = 3.0  # for which an answer of the archive counts; /info/ alone asks for several lists
_LIST_SHARE = 10.0  # or for so many times as long as it took: a large archive answers with page after page


class Segmentation(NamedTuple):
    """A DICOM SEG of the archive: its series, the series that it was drawn on, and when (date and time as text)."""

    series: str
    image: str
    made: str


class ArchiveStore(DICOMWebDatastore, StudyStore):
    """MONAI Label's datastore over a DICOMweb archive. Images and labels have the UID of the image's series as id.

    A final label is the newest segmentation of the image in the archive, wherever that was drawn; the local copy has it
    from saving, or fetches it when it is asked for. One that is gone from the archive is never learnt from.
    """

    def __init__(self, *args, **kwargs):
        self._images = _Recent(self._find_images)
        self._segmentations = _Recent(self._find_segmentations)
        self._referenced: dict[str, Segmentation | None] = {}  # by series of a segmentation, which never change
        self._fetching = threading.RLock()
        super().__init__(*args, **kwargs)

    # ---- what is there --------------------------------------------------------------------------------------------

    def list_images(self) -> list[str]:
        """The series of the archive that the search filter finds."""
        return list(self._images.get())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a label under the tag; without a tag, or with ``final``, also those segmented in the archive."""
        local = StudyStore.get_labeled_images(self, label_tag, labels)
        found = set(self._segmentations.get()) if label_tag in (None, FINAL) else set()
        return [image for image in self.list_images() if image in found or image in local]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The other ones."""
        labelled = set(self.get_labeled_images(label_tag, labels))
        return [image for image in self.list_images() if image not in labelled]

    def _find_images(self) -> list[str]:
        return [str(found.SeriesInstanceUID) for found in search_series(self._client, self._search_filter)]

    def _find_segmentations(self) -> dict[str, list[Segmentation]]:
        """By image, the newest last."""
        by_image = defaultdict(list)
        for item in search_series(self._client, {"Modality": "SEG"}):
            series = str(item.SeriesInstanceUID)
            if series not in self._referenced:
                self._referenced[series] = self._look_into(str(item.StudyInstanceUID), series)
            if self._referenced[series]:
                by_image[self._referenced[series].image].append(self._referenced[series])
        return {image: sorted(found, key=lambda one: one.made) for image, found in by_image.items()}

    def _look_into(self, study: str, series: str) -> Segmentation | None:
        head = Dataset.from_json(self._client.retrieve_series_metadata(study, series)[0])
        if not head.get("ReferencedSeriesSequence"):
            logger.warning("segmentation %s is passed over, it names no series that it was drawn on", series)
            return None
        image = str(head.ReferencedSeriesSequence[0].SeriesInstanceUID)
        return Segmentation(series, image, f"{head.get('ContentDate', '')}{head.get('ContentTime', '')}")

    # ---- images ---------------------------------------------------------------------------------------------------

    def get_image_uri(self, image_id: str) -> str:
        """The file of a series, fetched where it is not there yet.

        Raises:
            IndexError: the archive has no such series.
            ValueError: its slices are no regular scan.
        """
        path = self.image_path(f"{image_id}.nii.gz")
        if path.exists():
            return str(path)
        with self._fetching, tempfile.TemporaryDirectory(prefix="ctsam3d-series-") as folder:
            if path.exists():  # another thread has fetched it in between
                return str(path)
            scan = Path(folder, "scan.nii.gz")
            write_volume(scan, read_volume(self.series_folder(image_id)))
            StudyStore.add_image(self, image_id, str(scan), self._dicom_info(image_id))
        return str(path)

    def series_folder(self, image_id: str) -> Path:
        """The slices of a series, fetched where they are not there yet."""
        folder = self.image_path(image_id)
        with self._fetching:
            if not folder.is_dir() or not os.listdir(folder):
                self._download(image_id, folder)
        return folder

    def _download(self, series: str, folder: Path) -> None:
        """All of a series or nothing: a folder that is there counts as whole."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as beside:
            parts = Path(beside, "parts")
            dicom_web_download_series(None, series, str(parts), self._client, self._fetch_by_frame)
            if folder.is_dir():
                folder.rmdir()  # it is empty
            os.replace(parts, folder)

    # ---- labels ---------------------------------------------------------------------------------------------------

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of an image's label; empty where it has none. A final one may come from the archive."""
        image = image_id or label_id
        local = StudyStore.get_label_uri(self, image, label_tag)
        found = self._segmentations.get().get(image) if label_tag == FINAL else None
        if not found:
            return local
        known = self.get_label_info(image, FINAL).get("SeriesInstanceUID") if local and os.path.isfile(local) else None
        if known != found[-1].series:
            self._fetch_label(image, found[-1])
        return StudyStore.get_label_uri(self, image, label_tag)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Stores a label; a final one goes to the archive first, as DICOM SEG.

        Raises:
            ValueError: a final label whose values have no names, or on another grid than the image.
        """
        self.get_image_uri(image_id)  # of an image that was never opened, the local copy knows nothing
        said = dict(label_info or {})
        if label_tag == FINAL:
            said |= self._send(image_id, label_filename, said)
        saved = StudyStore.save_label(self, image_id, label_filename, label_tag, said)
        self._segmentations.forget()
        return saved

    def write_segmentation(self, path: Path, image_id: str, label_filename: str, label_info: Mapping[str, Any]) -> str:
        """Writes a label map of an image as DICOM SEG; the UID of its series.

        Raises:
            ValueError: see `save_label`.
        """
        labels_ijk, affine_ras_mm = read_label_grid(label_filename)
        names = _looked_for(_names(label_info.get("label_info")), labels_ijk)
        version = str(label_info.get("model_version") or "")
        return write_dicom_seg(path, self.series_folder(image_id), labels_ijk, affine_ras_mm, names, version=version)

    def _send(self, image_id: str, label_filename: str, label_info: Mapping[str, Any]) -> dict[str, Any]:
        """Stores a DICOM SEG in the archive; what to say of it."""
        with tempfile.TemporaryDirectory(prefix="ctsam3d-seg-") as folder:
            path = Path(folder, "seg.dcm")
            series = self.write_segmentation(path, image_id, label_filename, label_info)
            self._client.store_instances([dcmread(path)])
        logger.info("image %s: DICOM SEG stored as series %s", image_id, series)
        known = self.get_image_info(image_id)
        return {"SeriesInstanceUID": series, "Modality": "SEG"} | {
            key: known[key] for key in ("PatientID", "StudyInstanceUID") if key in known
        }

    def _fetch_label(self, image: str, found: Segmentation) -> None:
        """Takes a segmentation of the archive for the final label of its image."""
        path = Path(self.get_image_uri(image))
        with self._fetching, tempfile.TemporaryDirectory(prefix="ctsam3d-seg-") as folder:
            parts = Path(folder, "parts")
            dicom_web_download_series(None, found.series, str(parts), self._client, self._fetch_by_frame)
            labels_ijk, _, names = read_dicom_seg(next(parts.iterdir()), self.series_folder(image))
            label = Path(folder, "label.nii.gz")
            write_mask(label, labels_ijk, read_volume(path))
            said = {"label_info": [{"name": name, "idx": value} for value, name in names.items()]}
            said |= {"SeriesInstanceUID": found.series, "Modality": "SEG"}
            StudyStore.save_label(self, image, str(label), FINAL, said)
        logger.info("image %s: final label taken from series %s of the archive", image, found.series)

    def _download_labeled_data(self) -> None:
        """Brings the local copy in line with the archive, for a training."""
        self._segmentations.forget()
        found = self._segmentations.get()
        for image in StudyStore.get_labeled_images(self, FINAL):
            series = self.get_label_info(image, FINAL).get("SeriesInstanceUID")
            if series and series not in {one.series for one in found.get(image, ())}:
                logger.warning("image %s: its final label counts no more, series %s has gone", image, series)
                StudyStore.remove_label(self, image, FINAL)
        known = set(self.list_images())
        for image in found:
            try:
                if image in known:
                    self.get_label_uri(image, FINAL)
            except Exception as error:  # one that cannot be used does not hide the others
                logger.warning("image %s: its segmentation cannot be used: %s", image, error)


def search_series(client: DICOMwebClient, filters: Mapping[str, Any]) -> list[Dataset]:
    """All series of an archive that the filters find.

    An archive answers with as many as it likes at a time, and not all of them say that there are more: it is asked for
    the rest until none is new. One that knows no ``offset`` begins anew each time, or refuses it.

    Raises:
        requests.HTTPError: the archive refuses the search, or fails at it.
    """
    found: dict[str, Dataset] = {}
    offset = 0
    while True:
        more = {"offset": offset} if offset else {}
        try:
            page = client.search_for_series(search_filters=dict(filters), **more)
        except requests.HTTPError as error:
            if not offset or error.response is None or error.response.status_code >= 500:
                raise
            logger.debug("the archive answers with status %d beyond %d series", error.response.status_code, offset)
            break
        offset += len(page)
        known = len(found)
        for item in map(Dataset.from_json, page):
            found.setdefault(str(item.SeriesInstanceUID), item)
        if len(found) == known:
            break
    return list(found.values())


def study_store(studies: str, remote: Callable[[], Datastore]) -> Datastore:
    """The datastore of an app.

    Args:
        studies: a folder, or the address of an archive.
        remote: MONAI Label's own way to the datastore of an address.
    """
    if not studies.startswith(("http://", "https://")):
        return StudyStore(
            studies,
            extensions=tuple(settings.MONAI_LABEL_DATASTORE_FILE_EXT),
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )
    monailabel.interfaces.app.DICOMWebDatastore = ArchiveStore  # that is where MONAI Label takes it from
    # MONAI Label would fetch a program from the network to write DICOM SEG; here that is done without it.
    monailabel.interfaces.app.MONAILabelApp._download_dcmqi_tools = lambda app: None
    return remote()


class _Recent:
    """What a function said a moment ago; threads that ask at once wait for one answer."""

    def __init__(self, ask: Callable[[], Any]):
        self._ask, self._lock = ask, threading.Lock()
        self._answer: Any = None
        self._until = -1.0

    def get(self) -> Any:
        with self._lock:
            begin = time.monotonic()
            if begin >= self._until:
                self._answer = self._ask()
                end = time.monotonic()
                self._until = end + max(_LIST_SECONDS, _LIST_SHARE * (end - begin))
            return self._answer

    def forget(self) -> None:
        self._until = -1.0


def _names(label_info: Any) -> dict[int, str]:
    """Value to name, as clients say it: [{"name": ..., "idx": ...}, ...]; without ``idx``, the place in the list."""
    entries = label_info if isinstance(label_info, list) else []
    names = {}
    for place, entry in enumerate(entries, start=1):
        value, name = (entry.get("idx", place), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or not name:
            raise ValueError(f"label_info must be a list of objects with name and idx, got {str(entry)[:80]}")
        names[int(value)] = str(name)
    if not names:
        raise ValueError('label_info must name the values of a final label, as in [{"name": "liver", "idx": 1}]')
    return names


def _looked_for(names: Mapping[int, str], labels_ijk: np.ndarray) -> dict[int, str]:
    """The names that say something: 3D Slicer lists all labels of the model, whether anybody looked for them or not.

    Raises:
        ValueError: nothing is left.
    """
    present = set(np.unique(labels_ijk).tolist())
    if len(names) - len(present & set(names)) <= _MOST_EMPTY:
        return dict(names)
    kept = {value: name for value, name in names.items() if value in present or name not in VALUE_OF}
    if not kept:
        raise ValueError(f"label_info must name at most {_MOST_EMPTY} structures of a label map without voxels")
    return kept
