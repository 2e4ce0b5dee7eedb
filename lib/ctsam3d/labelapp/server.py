"""The application that answers in place of MONAI Label's: checked, off the event loop, every bad request in words.

MONAI Label's routes are coroutines around blocking work, so that one click stops the whole server, and they take names
for paths. A route that is a plain function runs on a thread of its own. Ours form an application that takes the place
of MONAI Label's when the app is made, which is before the server listens; what is not there cannot be reached.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, FastAPI, File, Form, Request, UploadFile
from monailabel.config import settings
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import remove_file
from starlette.middleware.cors import CORSMiddleware

from ctsam3d.labelapp.access import Annotator, Person, Tokens, client_of
from ctsam3d.labelapp.archive import archive_router
from ctsam3d.labelapp.conf import Conf
from ctsam3d.labelapp.desk import Desk
from ctsam3d.labelapp.errors import install_handlers
from ctsam3d.labelapp.guard import Guard
from ctsam3d.labelapp.health import Health
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask, rejected
from ctsam3d.labelapp.keeping import check_dicom_seg, check_keeping, save_result, send_dicom_seg
from ctsam3d.labelapp.located import located
from ctsam3d.labelapp.monitor import Monitor
from ctsam3d.labelapp.pages import pages_router
from ctsam3d.labelapp.process import own_process
from ctsam3d.labelapp.requests import RequestError, decode_params, wants_saving
from ctsam3d.labelapp.routes_admin import admin_router
from ctsam3d.labelapp.routes_datastore import datastore_router
from ctsam3d.labelapp.routes_tasks import tasks_router
from ctsam3d.labelapp.signin import signin_router
from ctsam3d.labelapp.transport import WORTH_IT, gzipped, takes_gzip
from ctsam3d.labelapp.upload_sessions import session_router
from ctsam3d.labelapp.versions import Versions
from ctsam3d.labelapp.viewer_page import viewer_router

logger = logging.getLogger(__name__)

_APPLICATION = "monailabel.app"  # the module of MONAI Label's FastAPI application
_MAX_JSON = 2**20  # bytes of a body that is no file
_OUTPUTS = tuple(kind.value for kind in ResultType)


def install_routes(app: MONAILabelApp, conf: Conf, engine: ClickEngine, versions: Versions, desk: Desk) -> None:
    """Puts our application in the place of the running server's; outside a server there is nothing to do.

    Raises:
        ValueError: MONAI Label's own sign-in or another place for the routes is asked for, or the file of tokens
            cannot be used.
    """
    module = sys.modules.get(_APPLICATION)
    if module is None:
        return
    if settings.MONAI_LABEL_AUTH_ENABLE:
        raise ValueError(
            "MONAI_LABEL_AUTH_ENABLE must not be set: MONAI Label 0.8.5 lets nobody in; use --conf token_file PATH"
        )
    if conf.token_file and settings.MONAI_LABEL_API_STR:
        raise ValueError("MONAI_LABEL_API_STR must not be set beside --conf token_file: signing in is at /signin")
    own_process(lambda: (desk.close(), engine.close()), tokens=bool(conf.token_file))
    # The old one has been asked for the app, and waits; from the next request on it hands everything to the new one.
    module.app.middleware_stack = make_application(app, conf, engine, versions, desk)


def make_application(app: MONAILabelApp, conf: Conf, engine: ClickEngine, versions: Versions, desk: Desk) -> Guard:
    """The whole of what a server answers, as an ASGI application."""
    tokens = Tokens(conf.token_file) if conf.token_file else None
    health = Health(engine, getattr(app.datastore(), "_datastore_path", app.app_dir))
    monitor = Monitor(health.gauges)
    application = FastAPI(
        title="CT-SAM3D", openapi_url=None, docs_url=None, redoc_url=None, max_body_size=conf.max_upload_bytes
    )
    install_handlers(application)
    on_final = partial(desk.submitted, app.datastore(), conf.labels)
    for router in (
        make_router(app, monitor, on_final),
        datastore_router(app, conf.max_scan_bytes, on_final),
        session_router(app, conf.max_scan_bytes),
        admin_router(app, versions),
        archive_router(app),
        signin_router(tokens),
        viewer_router(app, engine, conf.max_scan_bytes),
        pages_router(application, health, monitor),
    ):
        application.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    application.include_router(tasks_router(app, desk), prefix=settings.MONAI_LABEL_API_STR, max_body_size=_MAX_JSON)
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    if origins:
        application.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], allow_credentials=True
        )
    names = (socket.gethostname(), socket.getfqdn())
    return Guard(application, tokens, monitor, conf.max_upload_bytes, origins, names)


def make_router(app: MONAILabelApp, monitor: Monitor, on_final: Callable[[str, str], None]) -> APIRouter:
    """The routes over the models of `app`.

    Args:
        on_final: called after the reply when a final label was saved, with the image and who saved it.
    """
    router = APIRouter(tags=["Infer"])
    _add_infer(router, app, monitor, on_final)
    return router


def _add_infer(router: APIRouter, app: MONAILabelApp, monitor: Monitor, on_final: Callable[[str, str], None]) -> None:
    @router.post("/infer/{model}")
    def infer(
        http: Request,
        background_tasks: BackgroundTasks,
        person: Annotator,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
        output: str | None = None,
    ):
        """One click request, off the event loop; a request that cannot be answered gets 4xx with its reason."""
        task = _model(app, model)
        if output and output not in _OUTPUTS:
            raise RequestError(f"output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        if label:
            raise RequestError(f"label must not be a file: model {model!r} takes clicks, got {label.filename!r}")
        with rejected():
            values = decode_params(params)
            save = wants_saving(values)
        if output == "dicom_seg":
            check_dicom_seg(app)
        if save or output == "dicom_seg":
            check_keeping(values, "save" if save else "output dicom_seg", image, session_id or (file and "file") or "")
        wanted = True if save else {"json": False, "image": True, "dicom_seg": True}.get(output)
        with located(app, image, session_id, file) as (path, name):
            result_file, reply = task.segment(values, path, name, client_of(http), wanted)
        monitor.click(reply["latencies"])
        if save:
            reply["saved"] = _saved(app, image, result_file, reply, person)
            background_tasks.add_task(on_final, image, person.name)
        if output == "json" and result_file:
            background_tasks.add_task(remove_file, result_file)
        if output == "dicom_seg":
            return send_dicom_seg(app, image, result_file, reply, background_tasks)
        if result_file and output != "json" and os.path.getsize(result_file) > WORTH_IT and takes_gzip(http):
            background_tasks.add_task(remove_file, result_file)
            return gzipped(result_file, reply, alone=output == "image")
        return send_response(app.datastore(), {"file": result_file, "params": reply}, output, background_tasks)

    @router.post("/infer/wsi/{model}", include_in_schema=False)
    @router.post("/infer/wsi_v2/{model}", include_in_schema=False)
    def infer_wsi(model: str, person: Annotator):
        """MONAI Label's other ways to the same models take any path of the server for an image."""
        raise RequestError(f"model {model[:80]!r} is not for whole-slide images, use /infer/{model[:80]}", status=404)


def _saved(app: MONAILabelApp, image: str, result_file: str, reply: dict, person: Person) -> dict:
    try:
        return save_result(app, image, result_file, reply, person)
    except BaseException:
        remove_file(result_file)
        raise


def _model(app: MONAILabelApp, model: str) -> ClickInferTask:
    if model not in app._infers:
        raise RequestError(f"model must be one of {', '.join(app._infers)}, got {model!r}", status=404)
    return app._infers[model]
