"""``/proxy/dicom``: OHIF's way to the DICOM archive. It leads to the resources of DICOMweb and nowhere else."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import google.auth
import google.auth.transport.requests
import requests
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from starlette.concurrency import run_in_threadpool

from ctsam3d.labelapp.access import Annotator
from ctsam3d.labelapp.requests import RequestError

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")
_OPERATIONS = ("wado", "qido", "stow")
_ROOTS = ("studies", "series", "instances", "bulkdata", "frames")
_STORE = re.compile(r"studies(/[0-9.]+)?")
_ASKED = ("accept", "content-type", "range")  # of the client's headers: no cookie or token leaves this server
_ANSWERED = ("content-type", "content-length", "content-encoding", "content-range", "etag", "last-modified")
_CHUNK = 2**18


def archive_router(app: MONAILabelApp) -> APIRouter:
    """The proxy to the archive that `app` was started with; without one it answers 404."""
    router = APIRouter(prefix="/proxy/dicom", tags=["Others"], include_in_schema=False)

    @router.get("/{path:path}")
    def get(http: Request, person: Annotator, path: str):
        """Searches and retrieves."""
        return _forward(app, http, *_operation(path))

    @router.post("/{path:path}")
    async def post(http: Request, person: Annotator, path: str):
        """Stores objects, which DICOMweb does with POST at ``studies`` alone."""
        operation, place = _operation(path)
        if not _STORE.fullmatch(place):
            raise RequestError(f"path must be studies, or one of them, to store objects, got {place[:200]!r}")
        with tempfile.TemporaryFile(prefix="ctsam3d-store-") as body:
            async for piece in http.stream():
                body.write(piece)
            body.seek(0)
            return await run_in_threadpool(_forward, app, http, operation, place, body)

    return router


def checked_path(path: str) -> str:
    """A path below the address of the archive's DICOMweb service.

    Raises:
        RequestError: it is not a resource of DICOMweb, or climbs out of it.
    """
    segments = path.split("/")
    if segments[0] not in _ROOTS or any(not _SEGMENT.fullmatch(s) or ".." in s for s in segments):
        raise RequestError(f"path must be a resource of DICOMweb, such as studies/1.2.3/series, got {path[:200]!r}")
    return path


def _operation(path: str) -> tuple[str, str]:
    """What OHIF wants to do, which begins its paths where an archive may have an address for each; and the rest."""
    first, _, rest = path.partition("/")
    return (first, rest) if first in _OPERATIONS else ("", path)


def _forward(app: MONAILabelApp, http: Request, operation: str, path: str, body: BinaryIO | None = None) -> Response:
    if not app.studies.startswith(("http://", "https://")):
        raise RequestError("there is no DICOM archive here: the images are files", status=404)
    url = "/".join(filter(None, (app.studies.rstrip("/"), _prefix(operation, path), checked_path(path))))
    if http.url.query:
        url += f"?{http.url.query}"
    headers = {name: http.headers[name] for name in _ASKED if name in http.headers} | {"accept-encoding": "identity"}
    if "googleapis.com" in app.studies:
        headers["authorization"] = f"Bearer {_google_token()}"
    user = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    try:
        reply = requests.request(
            http.method,
            url,
            data=body,
            headers=headers,
            auth=user if all(user) else None,
            stream=True,
            timeout=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
            allow_redirects=False,  # they may lead anywhere
        )
    except requests.RequestException as error:
        raise RequestError(f"the DICOM archive does not answer: {type(error).__name__}", status=502) from error
    if reply.status_code in (401, 403) or reply.status_code >= 500:
        reply.close()
        raise RequestError(f"the DICOM archive answers with status {reply.status_code}", status=502)
    kept = {name: reply.headers[name] for name in _ANSWERED if name in reply.headers}
    return StreamingResponse(_pieces(reply), reply.status_code, kept)


def _google_token() -> str:
    """Of the account that MONAI Label uses for archives in Google's cloud."""
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return credentials.token


def _prefix(operation: str, path: str) -> str:
    """MONAI Label's settings for archives with several addresses; OHIF asks for metadata at the wrong one."""
    wado = operation == "wado" or (operation == "qido" and path.endswith("metadata"))
    prefixes = {"qido": settings.MONAI_LABEL_QIDO_PREFIX, "stow": settings.MONAI_LABEL_STOW_PREFIX}
    return (settings.MONAI_LABEL_WADO_PREFIX if wado else prefixes.get(operation)) or ""


def _pieces(reply: requests.Response) -> Iterator[bytes]:
    with reply:
        yield from reply.raw.stream(_CHUNK, decode_content=False)
