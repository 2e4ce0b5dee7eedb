"""``/model`` and ``/logs``: for admins, to read only. Weights are changed by training and ``scripts/rollback.py``."""

from __future__ import annotations

import html
import shutil
import subprocess
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import file_checksum

from ctsam3d.labelapp.access import Admin
from ctsam3d.labelapp.requests import RequestError
from ctsam3d.labelapp.versions import Versions

_MAX_LINES = 10_000


def admin_router(app: MONAILabelApp, versions: Versions) -> APIRouter:
    """The routes over the weights and the log of `app`."""
    router = APIRouter()
    _add_model(router, app._infers, versions)
    _add_logs(router, Path(app.app_dir, "logs", "app.log"))
    return router


def _add_model(router: APIRouter, models: Mapping[str, Any], versions: Versions) -> None:
    def served(model: str) -> Path:
        if model not in models:
            raise RequestError(f"model must be one of {', '.join(models)}, got {model[:80]!r}", status=404)
        try:
            return versions.served_path()
        except (OSError, ValueError) as error:
            raise RequestError(f"the weights of model {model!r} cannot be found: {error}", status=404) from error

    @router.get("/model/{model}", tags=["Model"], response_class=FileResponse)
    def weights(person: Admin, model: str):
        """The weights that new sessions take."""
        path = served(model)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.get("/model/info/{model}", tags=["Model"])
    def about(person: Admin, model: str):
        """Checksum, age and version of those weights."""
        path = served(model)
        return {
            "checksum": file_checksum(str(path)),
            "modified_time": int(path.stat().st_mtime),
            "version": path.name.removesuffix(path.suffix),
        }


def _add_logs(router: APIRouter, log: Path) -> None:
    @router.get("/logs/", tags=["Others"])
    def lines(
        person: Admin,
        lines: Annotated[int, Query(ge=1, le=_MAX_LINES)] = 300,
        as_html: Annotated[bool, Query(alias="html")] = True,
        text: bool = False,
        refresh: Annotated[int, Query(ge=0, le=3600)] = 0,
    ):
        """The end of the server's log."""
        try:
            with open(log, encoding="utf-8", errors="replace") as file:
                found = "".join(deque(file, lines))
        except OSError as error:
            raise RequestError("the server writes no log file", status=404) from error
        if text or not as_html:
            return PlainTextResponse(found)
        return HTMLResponse(_page(found), headers={"refresh": str(max(refresh, 3))} if refresh else None)

    @router.get("/logs/gpu", tags=["Others"])
    def gpu(person: Admin):
        """What ``nvidia-smi`` says."""
        command = shutil.which("nvidia-smi")
        if command is None:
            raise RequestError("there is no nvidia-smi on this server", status=404)
        return PlainTextResponse(subprocess.run([command], capture_output=True, text=True, timeout=30).stdout)


def _page(text: str) -> str:
    return f"<!doctype html><meta charset='utf-8'><title>CT-SAM3D: log</title><pre>{html.escape(text)}</pre>"
