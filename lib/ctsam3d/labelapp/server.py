"""HTTP routes that replace MONAI Label's own: checked, answering every bad request in words, off the event loop.

MONAI Label's routes are coroutines around blocking work, so that one click stops the whole server. A route that is a
plain function runs on a thread of its own. Ours are put in front of MONAI Label's in its FastAPI application, which
takes the first that matches; that happens when the app is made, while the server starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.train import run_model
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import remove_file

from ctsam3d.data.io import WRITABLE_SUFFIXES
from ctsam3d.labelapp.infer import ClickInferTask, rejected
from ctsam3d.labelapp.requests import RequestError, decode_params
from ctsam3d.labelapp.train import ClickTrainTask
from ctsam3d.labelapp.transport import WORTH_IT, gzipped, takes_gzip

_APPLICATION = "monailabel.app"  # the module of MONAI Label's FastAPI application
_OUTPUTS = tuple(kind.value for kind in ResultType)
_MAX_DETAIL = 1000

# A remote image is fetched into one folder: two threads must not do that at once. Locks by image, 16 for all.
_FETCHING = tuple(threading.Lock() for _ in range(16))


def install_routes(app: MONAILabelApp) -> None:
    """Puts the routes of `app` in front of those of the running server; outside a server there is nothing to do."""
    module = sys.modules.get(_APPLICATION)
    if module is None:
        return
    routes, state = module.app.router.routes, module.app.state
    before = {id(route) for route in getattr(state, "ctsam3d_routes", [])}  # of an app made before: it can reload
    theirs = [route for route in routes if id(route) not in before]
    routes[:] = theirs
    module.app.include_router(make_router(app), prefix=settings.MONAI_LABEL_API_STR)
    state.ctsam3d_routes = routes[len(theirs) :]
    routes[:] = [*state.ctsam3d_routes, *theirs]


def make_router(app: MONAILabelApp) -> APIRouter:
    """The routes over the models and the datastore of `app`; the OpenAPI page keeps MONAI Label's, which are alike."""
    router = APIRouter(include_in_schema=False)
    _add_infer(router, app)
    _add_train(router, app)
    return router


def _add_infer(router: APIRouter, app: MONAILabelApp) -> None:
    @router.post("/infer/{model}")
    def infer(
        http: Request,
        background_tasks: BackgroundTasks,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
        output: str | None = None,
    ):
        """One click request, off the event loop; a request that cannot be answered gets 4xx with its reason."""
        with _answered():
            task = _model(app, model)
            if output and output not in _OUTPUTS:
                raise RequestError(f"output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
            if label:
                raise RequestError(f"label must not be a file: model {model!r} takes clicks, got {label.filename!r}")
            with rejected():
                values = decode_params(params)
            if output == "dicom_seg":
                _check_dicom_seg(app, image, values)
            wanted = {"json": False, "image": True, "dicom_seg": True}.get(output)
            with _located(app, image, session_id, file) as (path, name):
                result_file, reply = task.segment(values, path, name, client_of(http), wanted)
        if output == "dicom_seg":
            return _send_dicom_seg(path, result_file, values["label_info"], background_tasks)
        if result_file and output != "json" and os.path.getsize(result_file) > WORTH_IT and takes_gzip(http):
            background_tasks.add_task(remove_file, result_file)
            return gzipped(result_file, reply, alone=output == "image")
        return send_response(app.datastore(), {"file": result_file, "params": reply}, output, background_tasks)

    @router.post("/infer/wsi/{model}")
    def infer_wsi(model: str, user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]):
        """MONAI Label's second way to the same models takes any path of the server for an image."""
        raise HTTPException(404, f"model {model!r} is not for whole-slide images, use /infer/{model}")


def _add_train(router: APIRouter, app: MONAILabelApp) -> None:
    @router.post("/train/{model}")
    def train(
        model: str,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
        params: dict | None = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ):
        """MONAI Label's own start of a training, after a look at the options: a bad one gets 400 with its reason."""
        with _answered(), rejected():
            _trainer(app, model).options(params or {})
        return run_model(model, params, run_sync, enqueue)


def client_of(http: Request) -> str:
    """Who sends a request: the bearer of a token, else an address."""
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return f"token:{hashlib.sha256(token.strip().encode()).hexdigest()}"
    return f"address:{http.client.host if http.client else 'unknown'}"


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        raise HTTPException(status_code=error.status, detail=str(error)[:_MAX_DETAIL]) from error


def _model(app: MONAILabelApp, model: str) -> ClickInferTask:
    if model not in app._infers:
        raise RequestError(f"model must be one of {', '.join(app._infers)}, got {model!r}", status=404)
    return app._infers[model]


def _trainer(app: MONAILabelApp, model: str) -> ClickTrainTask:
    if model not in app._trainers:
        raise RequestError(f"model must be one of {', '.join(app._trainers)} to be trained, got {model!r}", status=404)
    return app._trainers[model]


# ---- which image ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _located(app: MONAILabelApp, image: str, session_id: str, file: UploadFile | None) -> Iterator[tuple[str, str]]:
    """Path and name of the image that a request is about; an uploaded file is gone afterwards.

    Of several, MONAI Label's order holds: session, file, image.
    """
    if session_id:
        yield _session_image(app, session_id), f"of session {session_id}"
    elif file:
        with tempfile.TemporaryDirectory(prefix="ctsam3d-upload-") as folder:
            yield _stored_upload(file, folder), file.filename or "uploaded"
    elif image:
        yield _datastore_image(app, image), image
    else:
        raise RequestError("image must be the id of an image, got none, and neither session_id nor file")


def _datastore_image(app: MONAILabelApp, image: str) -> str:
    """The path of an image of the datastore. An id is never a path."""
    if image != os.path.basename(image) or image in (".", "..") or "\\" in image or not image.isprintable():
        raise RequestError(f"image must be the id of an image, not a path, got {image!r}")
    with _FETCHING[hash(image) % len(_FETCHING)]:
        try:
            # MONAI Label's list of local images is empty for a moment whenever a file in the folder changes.
            path = app.datastore().get_image_uri(image) or time.sleep(0.2) or app.datastore().get_image_uri(image)
        except Exception as error:  # a PACS, and the libraries in between, fail in many ways
            status = 404 if isinstance(error, IndexError) else 502  # the first of no series found: IndexError
            raise RequestError(f"image {image!r} cannot be fetched from the archive: {error}", status) from error
    if not path or not os.path.exists(path):
        raise RequestError(f"image must be the id of an image in the datastore, got {image!r}", status=404)
    return path


def _session_image(app: MONAILabelApp, session_id: str) -> str:
    """The path of a session's image: an id that the server gave out, and a file that it stored under it."""
    sessions = app.sessions()
    if sessions is None:
        raise RequestError("session_id must not be given: sessions are not enabled here", status=406)
    with contextlib.suppress(ValueError):
        if str(uuid.UUID(session_id)) == session_id:
            info = sessions.get_session(session_id)
            folder = Path(sessions.store_path, session_id).resolve()
            if info and folder in Path(info.image).resolve().parents:
                return info.image
    raise RequestError(f"session_id must be that of a session in use, got {session_id!r}", status=404)


def _stored_upload(file: UploadFile, folder: str) -> str:
    name = (file.filename or ".nii.gz").lower()
    suffix = next((suffix for suffix in WRITABLE_SUFFIXES if name.endswith(suffix)), None)
    if suffix is None:
        raise RequestError(f"file must end with one of {', '.join(WRITABLE_SUFFIXES)}, got {file.filename!r}")
    path = os.path.join(folder, f"image{suffix}")
    with open(path, "wb") as target:
        shutil.copyfileobj(file.file, target)
    return path


# ---- DICOM SEG -----------------------------------------------------------------------------------------------------


def _check_dicom_seg(app: MONAILabelApp, image: str, values: dict) -> None:
    info = values.get("label_info")
    if not isinstance(app.datastore(), DICOMWebDatastore):
        raise RequestError("output must not be dicom_seg: the images here are files, not series of a DICOM archive")
    if not image:
        raise RequestError("image must be the id of a series for output dicom_seg, got none")
    if values.get("result_box"):
        raise RequestError("result_box must not be given for output dicom_seg, whose segments lie on the whole series")
    if not (isinstance(info, list) and info and all(isinstance(segment, dict) for segment in info)):
        raise RequestError(f"label_info must be a list of objects, one per segment, for output dicom_seg, got {info!r}")


def _send_dicom_seg(path: str, result_file: str, label_info: list, background_tasks: BackgroundTasks) -> FileResponse:
    """As MONAI Label does it: the series lies beside its NIfTI, in a folder of the same name."""
    background_tasks.add_task(remove_file, result_file)
    series = path.removesuffix(".gz").removesuffix(".nii").removesuffix(".nrrd")
    dicom_seg = nifti_to_dicom_seg(series, result_file, label_info, use_itk=True)
    if not dicom_seg:
        raise HTTPException(status_code=500, detail=f"DICOM SEG of {os.path.basename(series)} could not be written")
    background_tasks.add_task(remove_file, dicom_seg)
    return FileResponse(dicom_seg, media_type="application/dicom", filename=os.path.basename(dicom_seg))
