"""What runs beside the clicks: ``/info``, ``/activelearning``, ``/train``, ``/scoring``, ``/batch``.

The same addresses, parameters and replies as MONAI Label's, on threads of their own, with every name checked; what a
client sends in JSON cannot choose another model, strategy or method than the address does.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Request
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks.task import AsyncTask

from ctsam3d.labelapp.access import ADMIN, Admin, Annotator, Person, client_of
from ctsam3d.labelapp.desk import Desk
from ctsam3d.labelapp.infer import rejected
from ctsam3d.labelapp.names import check_object
from ctsam3d.labelapp.requests import MAX_NAME, RequestError

logger = logging.getLogger(__name__)

Params = Annotated[dict[str, Any] | None, Body()]


def tasks_router(app: MONAILabelApp, desk: Desk) -> APIRouter:
    """The routes over the tasks of `app`."""
    router = APIRouter()
    _add_info(router, app)
    _add_active_learning(router, app)
    _add_leases(router, desk)
    _add_train(router, app)
    _add_scoring(router, app)
    _add_batch(router, app)
    return router


def _add_info(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/info/", tags=["App"])
    def info(person: Annotator):
        """Models, their labels and options, strategies, the state of the training, and how much is labelled."""
        return app.info()


def _add_active_learning(router: APIRouter, app: MONAILabelApp) -> None:
    @router.post("/activelearning/{strategy}", tags=["ActiveLearning"])
    def next_sample(http: Request, person: Annotator, strategy: str, params: Params = None):
        """The scan to be labelled next, or `k` of them, leased to the client, and why; no `id` where none is free."""
        _known("strategy", strategy, app._strategies)
        asked = check_object(params or {}, "params")
        with rejected():
            key, name = _lease_client(http, asked, person)
            request = {**asked, "strategy": strategy, "client": key, "client_name": name}
            found = app._strategies[strategy](request, app.datastore())
        if not found.get("id"):
            return found
        store, image = app.datastore(), found["id"]
        said = store.get_image_info(image)
        shown = copy.deepcopy(said.get("strategy")) if isinstance(said.get("strategy"), Mapping) else {}
        shown[strategy] = {"ts": int(time.time()), "client_id": _client(asked, person)}
        try:
            store.update_image_info(image, {"strategy": shown})
        except Exception as error:  # of an archive's series there is no record before it was fetched
            logger.info("image %s: that it was shown is not recorded: %s", image, error)
        return {**said, **found, "path": store.get_image_uri(image), "strategy": shown}


def _add_leases(router: APIRouter, desk: Desk) -> None:
    @router.get("/leases/", tags=["ActiveLearning"])
    def leases(person: Annotator):
        """Which scans are handed out: to whom, since when and until when."""
        held = desk.leases.now().held
        return {i: {"client": lease.name, "since": lease.since, "until": lease.until} for i, lease in held.items()}

    @router.delete("/leases/", tags=["ActiveLearning"])
    def give_back(http: Request, person: Annotator, image: str, client_id: str = ""):
        """Gives a scan back that the client has; an admin may give back anybody's."""
        key, _ = _lease_client(http, {"client_id": client_id}, person)
        if not desk.give_back(image, None if person.role == ADMIN and not client_id else key):
            raise RequestError(f"image must be one that this client has, got {image[:80]!r}", status=404)
        return {}


def _add_train(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/train/", tags=["Train"])
    def status(person: Annotator, all: bool = False, check_if_running: bool = False):
        """The last training, or all since the start of the server."""
        return _status("train", all, check_if_running)

    @router.post("/train/", include_in_schema=False)
    def train_all(person: Admin, params: Params = None, run_sync: bool = False):
        """Starts a training of every model that can be trained; `params` holds options by model."""
        asked = check_object(params or {}, "params")
        chosen = {model: check_object(asked.get(model) or {}, model) for model in app._trainers}
        return {
            model: {"result": _train(app, model, options, run_sync), "detail": None}
            for model, options in chosen.items()
        }

    @router.post("/train/{model}", tags=["Train"])
    def train(person: Admin, model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False):
        """Starts a training; 429 where one runs already."""
        return _train(app, model, check_object(params or {}, "params"), run_sync, enqueue)

    @router.delete("/train/", tags=["Train"])
    def stop(person: Admin):
        """Stops the training; the next one with the same options goes on with it."""
        return AsyncTask.stop("train")


def _train(app: MONAILabelApp, model: str, params: dict, run_sync: bool, enqueue: bool = False) -> dict:
    _known("model", model, app._trainers, " to be trained")
    with rejected():
        app._trainers[model].options(params)
    if run_sync:
        raise RequestError("run_sync must not be set: a training runs in a process of its own")
    task, reason = AsyncTask.run("train", request={"model": model}, params={**params, "model": model}, enqueue=enqueue)
    if task is None:
        raise HTTPException(status_code=429, detail=reason)
    return task


def _add_scoring(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/scoring/", tags=["Scoring"])
    def status(person: Annotator, all: bool = False, check_if_running: bool = False):
        """The last scoring, or all since the start of the server."""
        return _status("scoring", all, check_if_running)

    @router.post("/scoring/", include_in_schema=False)
    def score_all(person: Admin, params: Params = None):
        """Starts every method of scoring; `params` holds options by method."""
        asked = check_object(params or {}, "params")
        return {
            method: {"result": _score(method, check_object(asked.get(method) or {}, method), enqueue=True)}
            for method in app._scoring_methods
        }

    @router.post("/scoring/{method}", tags=["Scoring"])
    def score(person: Admin, method: str, params: Params = None):
        """Starts a method of scoring; 429 where one runs already."""
        _known("method", method, app._scoring_methods)
        return _score(method, check_object(params or {}, "params"))

    @router.delete("/scoring/", tags=["Scoring"])
    def stop(person: Admin):
        """Stops the scoring."""
        return AsyncTask.stop("scoring")


def _score(method: str, params: dict, enqueue: bool = False) -> dict:
    task, reason = AsyncTask.run(
        "scoring", request={"method": method}, params={**params, "method": method}, enqueue=enqueue
    )
    if task is None:
        raise HTTPException(status_code=429, detail=reason)
    return task


def _add_batch(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/batch/infer", tags=["Infer"])
    def status(person: Annotator, all: bool = False, check_if_running: bool = False):
        """MONAI Label's way to ask for inference over all images; there never is one."""
        return _status("batch_infer", all, check_if_running)

    @router.post("/batch/infer/{model}", tags=["Infer"])
    def run(person: Admin, model: str):
        """Says why there is none."""
        _known("model", model, app._infers)
        raise RequestError(f"model {model!r} takes clicks, which a batch of images has none of")

    @router.delete("/batch/infer", tags=["Infer"])
    def stop(person: Admin):
        """There is nothing to stop."""
        return None


# ---- parts ---------------------------------------------------------------------------------------------------------


def _known(argument: str, name: str, names: Mapping[str, Any], purpose: str = "") -> None:
    if name not in names:
        known = f"one of {', '.join(names)}{purpose}" if names else "given to an app that has some, this one has none"
        raise RequestError(f"{argument} must be {known}, got {name[:80]!r}", status=404)


def _status(method: str, all: bool, check_if_running: bool) -> Any:
    found, reason = AsyncTask.status(method, all, check_if_running)
    if found is None:
        raise HTTPException(status_code=404, detail=reason)
    return found


def _lease_client(http: Request, params: Mapping[str, Any], person: Person) -> tuple[str, str]:
    """Key and name of whose lease it is: the client that `client_id` names, of the person whose token it has."""
    named = _client({"client_id": params.get("client_id") or None}, Person("", ADMIN))
    key = f"{person.key} id:{named}" if named else client_of(http)
    return key, named or person.name or "unnamed"


def _client(params: Mapping[str, Any], person: Person) -> str | None:
    client = params.get("client_id")
    return str(client)[:MAX_NAME] if isinstance(client, (str, int)) else person.name or None
