"""``/viewer/``: the page for a browser. Its files, what it offers, and labels as it can show them.

Everything else that the page needs, clicks, saving, the next sample, it asks of the routes that every client uses.
NiiVue draws the scans. It is no part of this project: ``scripts/serve`` has npm fetch it into ``node_modules`` beside
the page's files, and without it the page says how to get it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fastapi import APIRouter, BackgroundTasks
from fastapi.responses import FileResponse, RedirectResponse
from monailabel.endpoints.infer import send_response
from monailabel.interfaces.app import MONAILabelApp

from ctsam3d.data.io import onto_grid, read_label_grid
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.labelapp.access import Annotator
from ctsam3d.labelapp.infer import ClickEngine, rejected
from ctsam3d.labelapp.located import datastore_image
from ctsam3d.labelapp.names import FINAL
from ctsam3d.labelapp.reply import labels_in_box, result_box, write_reply
from ctsam3d.labelapp.requests import ReplyOptions, RequestError
from ctsam3d.volume import Volume

FOLDER = Path(__file__).parent / "viewer"
NIIVUE = FOLDER / "node_modules" / "@niivue" / "niivue" / "dist" / "index.js"
NIIVUE_NAME = "niivue.js"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Pages cannot be told to load or send anything elsewhere, whatever a scan's or a structure's name holds. The script of
# NiiVue brings its fonts and colours as data: addresses, and sets styles of elements.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; worker-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'self'"
)


def page_files() -> dict[str, Path]:
    """The files of the page by the name in their address: these, and no others, can be asked for."""
    return {path.name: path for path in FOLDER.iterdir() if path.suffix in _KINDS}


def viewer_router(app: MONAILabelApp, engine: ClickEngine, max_bytes: int, niivue: Path = NIIVUE) -> APIRouter:
    """The routes of the page.

    Args:
        app: whose datastore is shown.
        engine: keeps the scans that were opened.
        max_bytes: that the voxels of a saved label map may take.
        niivue: NiiVue's module, which may not be there.
    """
    router = APIRouter(prefix="/viewer", tags=["Viewer"])
    _add_studies(router, app, engine, max_bytes)
    _add_files(router, page_files(), niivue)
    return router


def _add_studies(router: APIRouter, app: MONAILabelApp, engine: ClickEngine, max_bytes: int) -> None:
    @router.get("/studies")
    def studies(person: Annotator):
        """Ids of the scans, which of them have a final label, and colours of the structures."""
        store = app.datastore()
        final = set(store.get_labeled_images())
        return {
            "images": [{"id": image, "final": image in final} for image in sorted(store.list_images())],
            "colours": COLOURS,
        }

    @router.get("/study")
    def study(person: Annotator, image: str):
        """The grid of a scan as clicks on it are understood, voxels (I, J, K) and affine to RAS mm, and whether it has
        a final label. The server has then read it, and the first click does not wait for that."""
        volume = engine.image(datastore_image(app, image), image).volume
        final = image in app.datastore().get_labeled_images()
        return {"shape": list(volume.shape_ijk), "affine": volume.affine_ras_mm.tolist(), "final": final}

    @router.get("/label")
    def label(person: Annotator, image: str, background_tasks: BackgroundTasks):
        """The final label of a scan, cut to the box that holds it, and what was said about it."""
        volume = engine.image(datastore_image(app, image), image).volume
        with rejected():
            file, said = _saved_label(app, image, volume, max_bytes)
        return send_response(app.datastore(), {"file": file, "params": said}, None, background_tasks)


def _add_files(router: APIRouter, files: Mapping[str, Path], niivue: Path) -> None:
    @router.get("", include_in_schema=False)
    def without_slash(person: Annotator):
        return RedirectResponse("viewer/")  # relative: the server may be below another one's address

    @router.get("/", include_in_schema=False)
    def page(person: Annotator):
        """The page, or one that says how to get NiiVue."""
        return _sent(files["index.html" if niivue.is_file() else "missing.html"])

    @router.get("/{name}", include_in_schema=False)
    def file(person: Annotator, name: str):
        if name == NIIVUE_NAME and niivue.is_file():
            return _sent(niivue)
        if name not in files:
            raise RequestError(f"name must be one of the page's files, got {name[:80]!r}", status=404)
        return _sent(files[name])


def _sent(path: Path) -> FileResponse:
    return FileResponse(path, media_type=_KINDS[path.suffix], headers={"content-security-policy": _POLICY})


def _saved_label(app: MONAILabelApp, image: str, volume: Volume, max_bytes: int) -> tuple[str, dict]:
    """The file, which the caller deletes, and the parameters of the reply.

    Raises:
        RequestError: no final label (404), or one that the page cannot show (409).
        ValueError: a label that cannot be read.
    """
    store = app.datastore()
    path = store.get_label_uri(image, FINAL) if image in store.get_labeled_images() else ""
    if not path or not os.path.isfile(path):
        raise RequestError(f"image must be one with a final label, got {image!r}", status=404)
    labels_ijk = onto_grid(*read_label_grid(path, max_bytes), volume)
    if labels_ijk is None:
        raise RequestError(f"the final label of {image!r} lies on another grid than the scan", status=409)
    if labels_ijk.dtype != np.uint8:
        raise RequestError(f"the final label of {image!r} holds values above 255, which the page cannot show", 409)
    labels = labels_in_box(labels_ijk)
    handle, file = tempfile.mkstemp(prefix="ctsam3d-label-", suffix=".nii.gz")
    os.close(handle)
    try:
        write_reply(Path(file), labels, volume, ReplyOptions(box_only=True))
    except BaseException:
        os.unlink(file)
        raise
    box_ijk = result_box(labels)
    info = store.get_label_info(image, FINAL)
    return file, {"info": info, "result_box": [list(box_ijk.start), list(box_ijk.stop)]}
