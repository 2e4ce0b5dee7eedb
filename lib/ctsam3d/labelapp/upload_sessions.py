"""``/session``: scans that a client sends to be clicked on, and that no other client sees; they go after a while."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Query, UploadFile
from fastapi.responses import FileResponse
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import get_mime_type
from monailabel.utils.sessions import SessionInfo, Sessions

from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import WRITABLE_SUFFIXES
from ctsam3d.labelapp.access import Annotator
from ctsam3d.labelapp.located import check_scan, received, session_image
from ctsam3d.labelapp.names import check_session_id, suffix_of
from ctsam3d.labelapp.requests import RequestError

logger = logging.getLogger(__name__)

_META = "meta.info"
_WRITE_SECONDS = 30  # between two notes of when a session was last used
_MAX_SLICES = 5000
_MAX_EXPIRY = 7 * 24 * 3600


class UploadSessions(Sessions):
    """MONAI Label's sessions, of which none can stop the server: half-made ones are removed, ids are never paths."""

    def __init__(self, store_path: str = "", expiry: int = 3600):
        super().__init__(store_path, expiry)
        self._lock = threading.RLock()

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True):
        """A session; None where there is none of that id."""
        with self._lock:
            found = self.get(session_id) or self._read(session_id)
            if found is None or not os.path.exists(found.image):
                self.pop(session_id, None)
                return None
            self[session_id] = found
            if update_ts and time.time() - found.last_access_ts > _WRITE_SECONDS:
                found.last_access_ts = int(time.time())
                self._write_meta_info(session_id, found)
            return found

    def remove_session(self, session_id: str) -> None:
        """Removes a session and its files."""
        with self._lock:
            self.pop(session_id, None)
            shutil.rmtree(self._folder(session_id), ignore_errors=True)

    def remove_expired(self) -> int:
        """Removes what was not used for its time, and what a process that died has left half-made."""
        root, count, now = Path(self.store_path), 0, time.time()
        for folder in root.iterdir() if root.is_dir() else ():
            if not _is_id(folder.name) or not folder.is_dir():
                continue  # not ours
            with self._lock:
                found = self.get_session(folder.name, update_ts=False)
                age = now - folder.stat().st_mtime
                if age > self.expiry if found is None else 0 < found.expiry < now - found.last_access_ts:
                    self.remove_session(folder.name)
                    count += 1
        return count

    def add_session(self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id=None):
        """Moves a file or folder into a new session, whose id nobody can guess."""
        session_id = str(uuid.uuid4())
        folder = self._folder(session_id)
        folder.mkdir(parents=True, mode=0o700)
        image = folder / os.path.basename(data_file)
        shutil.move(data_file, image)
        now = int(time.time())
        info = SessionInfo({"name": session_id, "path": str(folder), "image": str(image), "meta": {}})
        info.create_ts = info.last_access_ts = now
        info.expiry = min(expiry if expiry > 0 else self.expiry, self.expiry)
        self._write_meta_info(session_id, info)
        with self._lock:
            self[session_id] = info
        return session_id, info

    def _folder(self, session_id: str) -> Path:
        return Path(self.store_path, check_session_id(session_id))

    def _read(self, session_id: str) -> SessionInfo | None:
        try:
            values = json.loads((self._folder(session_id) / _META).read_text(encoding="utf-8"))
            return SessionInfo(values) if values["image"] else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _write_meta_info(self, session_id, session_info):
        with atomic_path(self._folder(session_id) / _META) as temporary:
            temporary.write_text(session_info.to_str(), encoding="utf-8")


def _is_id(name: str) -> bool:
    try:
        check_session_id(name)
    except RequestError:
        return False
    return True


# ---- routes --------------------------------------------------------------------------------------------------------


def session_router(app: MONAILabelApp, max_bytes: int) -> APIRouter:
    """The routes over the sessions of `app`.

    Args:
        max_bytes: that the voxels of an upload may take.
    """
    router = APIRouter(prefix="/session", tags=["Session"])

    @router.get("/{session_id}")
    def session(person: Annotator, session_id: str, update_ts: bool = False, image: bool = False):
        """What is known about a session, or its scan."""
        path = session_image(app, session_id)
        if not image:
            return _shown(_sessions(app).get_session(session_id, update_ts))
        if os.path.isdir(path):
            raise RequestError("image must not be asked for: this session holds a folder of DICOM slices")
        return FileResponse(path, media_type=get_mime_type(path), filename=os.path.basename(path))

    @router.put("/")
    def create(
        person: Annotator,
        files: Annotated[list[UploadFile], File()],
        uncompress: bool = False,
        expiry: Annotated[int, Query(ge=0, le=_MAX_EXPIRY)] = 0,
    ):
        """Takes a scan: one file, or the slices of a DICOM series."""
        sessions = _sessions(app)
        if uncompress:
            raise RequestError("uncompress must not be set: send the slices themselves, not an archive of them")
        if len(files) > _MAX_SLICES:
            raise RequestError(f"files must be at most {_MAX_SLICES} slices, got {len(files)}")
        if len(files) == 1:
            with received(files[0], WRITABLE_SUFFIXES, "files") as path:
                check_scan(path, os.path.basename(files[0].filename or ""), max_bytes)
                session_id, info = sessions.add_session(str(path), expiry)
        else:
            with tempfile.TemporaryDirectory(prefix="ctsam3d-upload-") as folder:
                series = Path(folder, "series")
                _store_slices(files, series)
                check_scan(series, "of the slices", max_bytes)
                session_id, info = sessions.add_session(str(series), expiry)
        logger.info("session %s made", session_id)
        return {"session_id": session_id, "session_info": _shown(info)}

    @router.delete("/{session_id}")
    def remove(person: Annotator, session_id: str):
        """Ends a session; its scan is removed."""
        session_image(app, session_id)
        shown = _shown(_sessions(app).get_session(session_id, update_ts=False))
        _sessions(app).remove_session(session_id)
        return shown

    return router


def _sessions(app: MONAILabelApp) -> UploadSessions:
    sessions = app.sessions()
    if sessions is None:
        raise RequestError("sessions are not enabled here", status=406)
    return sessions


def _store_slices(files: list[UploadFile], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(files):
        suffix_of(f"{file.filename or ''}.dcm", (".dcm",), "files")  # slices often have no extension
        with open(folder / f"{number:05d}.dcm", "wb") as target:
            shutil.copyfileobj(file.file, target, 2**20)


def _shown(info: SessionInfo) -> dict:
    """What a client is told: not where the server keeps its files."""
    values = info.to_json()
    return {**values, "path": "", "image": os.path.basename(values["image"])}
