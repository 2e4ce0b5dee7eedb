"""Which file a request is about: an image of the datastore, of an upload's session, or sent along.

Names have been checked before they reach the datastore, and what comes back is a file that the server put there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from fastapi import UploadFile
from monailabel.interfaces.app import MONAILabelApp

from ctsam3d.data.io import WRITABLE_SUFFIXES, read_label_grid, read_volume
from ctsam3d.labelapp.infer import rejected
from ctsam3d.labelapp.names import check_image_id, check_session_id, suffix_of
from ctsam3d.labelapp.requests import RequestError
from ctsam3d.volume import Volume

# A remote image is fetched into one folder: two threads must not do that at once. Locks by image, 16 for all.
_FETCHING = tuple(threading.Lock() for _ in range(16))
_CHECKING = threading.BoundedSemaphore(2)  # uploads that are unpacked at a time, each into as much memory as allowed


@contextlib.contextmanager
def located(app: MONAILabelApp, image: str, session_id: str, file: UploadFile | None) -> Iterator[tuple[str, str]]:
    """Path and name of the image that a request is about; an uploaded file is gone afterwards.

    Of several, MONAI Label's order holds: session, file, image.
    """
    if session_id:
        yield session_image(app, session_id), f"of session {session_id}"
    elif file:
        with received(file, WRITABLE_SUFFIXES, "file") as path:
            yield str(path), os.path.basename(file.filename or "uploaded")
    elif image:
        yield datastore_image(app, image), image
    else:
        raise RequestError("image must be the id of an image, got none, and neither session_id nor file")


def datastore_image(app: MONAILabelApp, image: str) -> str:
    """The path of an image of the datastore.

    Raises:
        RequestError: not an id, no such image (404), or an archive that does not give it (502).
    """
    check_image_id(image)
    with _FETCHING[hash(image) % len(_FETCHING)]:
        try:
            path = app.datastore().get_image_uri(image)
        except Exception as error:  # a PACS, and the libraries in between, fail in many ways
            status = 404 if isinstance(error, IndexError) else 502  # the first of no series found: IndexError
            raise RequestError(f"image {image!r} cannot be fetched from the archive: {error}", status) from error
    if not path or not os.path.exists(path):
        raise RequestError(f"image must be the id of an image in the datastore, got {image!r}", status=404)
    return path


def session_image(app: MONAILabelApp, session_id: str) -> str:
    """The path of a session's image: an id that the server gave out, and a file that it stored under it.

    Raises:
        RequestError: no such session (404), or no sessions at all (406).
    """
    sessions = app.sessions()
    if sessions is None:
        raise RequestError("session_id must not be given: sessions are not enabled here", status=406)
    info = sessions.get_session(check_session_id(session_id))
    folder = Path(sessions.store_path, session_id).resolve()
    if info and folder in Path(info.image).resolve().parents:
        return info.image
    raise RequestError(f"session_id must be that of a session in use, got {session_id!r}", status=404)


# ---- what is sent along --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def received(file: UploadFile, suffixes: Sequence[str], argument: str) -> Iterator[Path]:
    """An uploaded file on the server's disk while the block runs; of its name only the extension is used."""
    suffix = suffix_of(file.filename, suffixes, argument)
    with tempfile.TemporaryDirectory(prefix="ctsam3d-upload-") as folder:
        path = Path(folder, f"received{suffix}")
        with open(path, "wb") as target:
            shutil.copyfileobj(file.file, target, 2**20)
        yield path


def check_scan(path: str | os.PathLike, name: str, max_bytes: int) -> None:
    """Reads an uploaded scan, a file or a folder of DICOM slices, from end to end.

    Raises:
        RequestError: it cannot be used, or has more voxels than `max_bytes` hold.
    """
    with _CHECKING, rejected(str(path), name):
        read_volume(path, max_bytes)


def check_label(path: str | os.PathLike, name: str, max_bytes: int) -> None:
    """Reads an uploaded label map from end to end.

    Raises:
        RequestError: it cannot be used, or has more voxels than `max_bytes` hold.
    """
    with _CHECKING, rejected(str(path), name):
        labels_ijk, affine_ras_mm = read_label_grid(path, max_bytes)
        try:
            Volume(np.broadcast_to(np.uint8(0), labels_ijk.shape), affine_ras_mm)
        except ValueError as error:
            raise ValueError(f"path {path} does not hold a usable label map: {error}") from error
