"""What is not about one image: the server's health and counts, OHIF, MONAI Label's static files, the API's pages."""

from __future__ import annotations

import re
from pathlib import Path

import monailabel.endpoints
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from ctsam3d.labelapp.access import Annotator
from ctsam3d.labelapp.health import Health
from ctsam3d.labelapp.monitor import CONTENT_TYPE, Monitor
from ctsam3d.labelapp.ohif import mended_script, without_fonts
from ctsam3d.labelapp.requests import RequestError

STATIC = Path(monailabel.endpoints.__file__).parent / "static"
_OPENAPI = "/openapi.json"


def pages_router(application: FastAPI, health: Health, monitor: Monitor) -> APIRouter:
    """The routes of `application` for people and machines that watch it."""
    router = APIRouter(tags=["Others"])

    @router.get("/healthz")
    def healthz(person: Annotator):
        """Whether the server can do its work; 503 and the reasons where it cannot."""
        problems = health.problems()
        return JSONResponse(
            {"status": "failing" if problems else "ok", "detail": "; ".join(problems), "version": health.version()},
            status_code=503 if problems else 200,
        )

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics(person: Annotator):
        """Counts, times and sizes, as Prometheus reads them."""
        return PlainTextResponse(monitor.text(), media_type=CONTENT_TYPE)

    @router.get("/ohif/{path:path}", include_in_schema=False)
    def ohif(person: Annotator, path: str):
        """The viewer's files; any other address is a page of the viewer."""
        if ".." in re.split(r"[/\\]", path) or not path.isprintable():
            raise RequestError(f"path must be one of the viewer's, got {path[:200]!r}", status=404)
        found = file_below(STATIC / "ohif", path)
        if found is None or found.name == "index.html":
            return HTMLResponse(without_fonts(STATIC / "ohif" / "index.html"))
        kept = {"cache-control": "private, max-age=3600"}
        if found.suffix == ".css":
            return Response(without_fonts(found), media_type="text/css", headers=kept)
        script = mended_script(found) if found.suffix == ".js" else None
        if script is not None:
            return Response(script, media_type="text/javascript", headers=kept)
        return FileResponse(found, headers=kept)

    @router.get("/static/{path:path}", include_in_schema=False)
    def static(person: Annotator, path: str):
        """MONAI Label's static files."""
        found = file_below(STATIC, path)
        if found is None:
            raise RequestError(f"there is no file {path[:200]!r}", status=404)
        return FileResponse(found)

    @router.get("/favicon.ico", include_in_schema=False)
    def favicon(person: Annotator):
        return FileResponse(STATIC / "favicon.ico", media_type="image/x-icon")

    _add_api(router, application)
    return router


def _add_api(router: APIRouter, application: FastAPI) -> None:
    @router.get(_OPENAPI, include_in_schema=False)
    def openapi(person: Annotator):
        return application.openapi()

    @router.get("/", include_in_schema=False)
    def swagger(person: Annotator) -> HTMLResponse:
        return get_swagger_ui_html(openapi_url=_OPENAPI.lstrip("/"), title=f"{application.title} - APIs")

    @router.get("/docs", include_in_schema=False)
    def redoc(person: Annotator) -> HTMLResponse:
        return get_redoc_html(openapi_url=_OPENAPI.lstrip("/"), title=f"{application.title} - APIs")


def file_below(folder: Path, path: str) -> Path | None:
    """The file at `path` below a folder; None where there is none, or where it lies elsewhere."""
    try:
        found = (folder / path.lstrip("/")).resolve()
        return found if found.is_relative_to(folder.resolve()) and found.is_file() else None
    except (OSError, ValueError):  # a name too long, a zero byte
        return None
