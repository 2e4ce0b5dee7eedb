"""Every reply that is an error: JSON with a reason in ``detail``, and the id under which the server's log has it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from filelock import Timeout
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from requests.exceptions import RequestException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request

from ctsam3d.labelapp.requests import RequestError

logger = logging.getLogger(__name__)

REQUEST_ID = "ctsam3d.request_id"  # key of the ASGI scope
_MAX_DETAIL = 1000
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BARE = {  # in place of the bare words of the standard
    "Not Found": "there is nothing at {method} {path}",
    "Method Not Allowed": "{method} must not be used at {path}",
    "Content Too Large": "the body has more bytes than are taken at {method} {path}",
}


def error_reply(status: int, detail: str, request_id: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one form of every error."""
    values = {"detail": detail[:_MAX_DETAIL], "request_id": request_id}
    return JSONResponse(values, status_code=status, headers=dict(headers or {}))


def install_handlers(application: FastAPI) -> None:
    """Turns every exception that reaches the application into such a reply; 5xx are logged."""
    for kind, handler in (
        (RequestError, _request_error),
        (StarletteHTTPException, _http_error),
        (RequestValidationError, _validation_error),
        (MONAILabelException, _monai_label_error),
        (Timeout, _busy),
        (RequestException, _silent_archive),
        (OSError, _system_error),
        (Exception, _own_fault),
    ):
        application.add_exception_handler(kind, handler)


def request_id_of(request: Request) -> str:
    """The id of a request, which its reply carries too."""
    return request.scope.get(REQUEST_ID, "")


def _request_error(request: Request, error: RequestError) -> Response:
    if error.status >= 500:
        logger.error("request %s: %s", request_id_of(request), error)
    return error_reply(error.status, str(error), request_id_of(request))


def _http_error(request: Request, error: HTTPException) -> Response:
    detail = error.detail if isinstance(error.detail, str) else str(error.detail)
    if detail in _BARE:
        detail = _BARE[detail].format(method=request.method, path=repr(request.url.path[:200]))
    if error.status_code >= 500:
        logger.error("request %s: %s", request_id_of(request), detail, exc_info=error.__cause__)
    return error_reply(error.status_code, detail, request_id_of(request), error.headers)


def _validation_error(request: Request, error: RequestValidationError) -> Response:
    """FastAPI's list of what is wrong, as a sentence."""
    found = [
        f"{' '.join(str(part) for part in entry['loc'][1:]) or 'the body'}: {entry['msg'].lower()}"
        for entry in error.errors()
    ]
    return error_reply(422, "; ".join(found), request_id_of(request))


def _monai_label_error(request: Request, error: MONAILabelException) -> Response:
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return error_reply(404, error.msg, request_id_of(request))
    if error.error == MONAILabelError.INVALID_INPUT:
        return error_reply(400, error.msg, request_id_of(request))
    return _own_fault(request, error)


def _busy(request: Request, error: Timeout) -> Response:
    logger.error("request %s: %s", request_id_of(request), error)
    return error_reply(503, "the datastore is held by another process, try again", request_id_of(request))


def _silent_archive(request: Request, error: RequestException) -> Response:
    logger.error("request %s: %s", request_id_of(request), error)
    return error_reply(502, f"the DICOM archive does not answer: {type(error).__name__}", request_id_of(request))


def _system_error(request: Request, error: OSError) -> Response:
    if error.errno in _FULL:
        logger.error("request %s: %s", request_id_of(request), error)
        return error_reply(507, "the server's disk is full, nothing was saved", request_id_of(request))
    return _own_fault(request, error)


def _own_fault(request: Request, error: Exception) -> Response:
    logger.error("request %s failed: %s %s", request_id_of(request), request.method, request.url.path, exc_info=error)
    return error_reply(500, "the server failed; its log says why, under this request_id", request_id_of(request))
