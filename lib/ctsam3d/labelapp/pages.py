"""What is not about one image: the server's health and counts, OHIF, MONAI Label's static files, the API's pages."""

from __future__ import annotations

import html
import re
from pathlib import Path

import monailabel.endpoints
from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from ctsam3d.labelapp.access import Annotator
from ctsam3d.labelapp.health import Health
from ctsam3d.labelapp.monitor import CONTENT_TYPE, Monitor
from ctsam3d.labelapp.ohif import mended_script, without_fonts
from ctsam3d.labelapp.requests import RequestError

STATIC = Path(monailabel.endpoints.__file__).parent / "static"
_OPENAPI = "/openapi.json"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">
<style>body{{font:16px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}}
table{{border-collapse:collapse}}td{{border-top:1px solid #ccc;padding:.3em .8em .3em 0;vertical-align:top}}</style>
</head><body><h1>{title}</h1>
<p><a href="viewer/">Segment in the browser</a> (folders of scans) · <a href="ohif/">OHIF</a> (DICOM archives) ·
<a href="info/">models and labels</a> · <a href="healthz">health</a> · <a href="metrics">metrics</a></p>
<h2>What clients can ask for</h2>
<p>The same with parameters and replies, for programs that read OpenAPI: <a href="openapi.json">openapi.json</a></p>
<table>
{rows}
</table></body></html>
"""


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
    @router.get("/docs", include_in_schema=False)
    def overview(person: Annotator) -> HTMLResponse:
        """What there is to open and to ask for, without the scripts of other hosts that FastAPI's pages bring."""
        return HTMLResponse(_overview(application.openapi()), headers={"content-security-policy": _POLICY})


def _overview(api: dict) -> str:
    rows = []
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            said = html.escape(route.get("description") or route.get("summary", "")).partition("\n\n")[0]
            rows.append(f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td><td>{said}</td></tr>")
    return _PAGE.format(title=html.escape(api["info"]["title"]), rows="\n".join(rows))


def file_below(folder: Path, path: str) -> Path | None:
    """The file at `path` below a folder; None where there is none, or where it lies elsewhere."""
    try:
        found = (folder / path.lstrip("/")).resolve()
        return found if found.is_relative_to(folder.resolve()) and found.is_file() else None
    except (OSError, ValueError):  # a name too long, a zero byte
        return None
