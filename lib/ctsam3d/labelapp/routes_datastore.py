"""``/datastore``: MONAI Label's routes for images and labels, with every name checked and every upload read first."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, File, Form, Query, UploadFile
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import file_checksum, get_mime_type

from ctsam3d.labelapp.access import Admin, Annotator, Person
from ctsam3d.labelapp.infer import rejected
from ctsam3d.labelapp.located import check_label, check_scan, datastore_image, received
from ctsam3d.labelapp.names import (
    FINAL,
    STORED_SUFFIXES,
    check_image_id,
    check_new_id,
    check_tag,
    decode_object,
    suffix_of,
)
from ctsam3d.labelapp.requests import RequestError

_ALGORITHMS = ("SHA256", "SHA512", "MD5")  # of MONAI Label's checksums
_CHUNK = 2**20
_Text = Annotated[str, Form()]


def datastore_router(app: MONAILabelApp, max_bytes: int, on_final: Callable[[str, str], None]) -> APIRouter:
    """The routes over the datastore of `app`.

    Args:
        max_bytes: that the voxels of an upload may take.
        on_final: called after the reply when a final label was saved, with the image and who saved it.
    """
    router = APIRouter(prefix="/datastore", tags=["Datastore"])
    _add_overview(router, app)
    _add_images(router, app, max_bytes)
    _add_image_infos(router, app)
    _add_labels(router, app, max_bytes, on_final)
    _add_label_infos(router, app)
    return router


def _add_overview(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/")
    def overview(person: Annotator, output: Literal["train", "stats", "all"] = "stats"):
        """How many images and labels there are; or all records; or the pairs that a training would take."""
        store = app.datastore()
        found = store.json() if output == "all" else store.datalist() if output == "train" else store.status()
        return JSONResponse(found)  # as it is: FastAPI would look at each of the records first

    @router.get("/dataset")
    def dataset(person: Annotator, limit_cases: Annotated[int | None, Query(ge=1)] = None):
        """Images with a final label, those labels, and the records, in one ZIP archive."""
        cases = app.datastore().datalist()[:limit_cases]
        if not cases:
            raise RequestError("dataset must hold a final label, there is none yet", status=404)
        files = [(f"{kind}/{os.path.basename(path)}", path) for case in cases for kind, path in case.items()]
        reply = StreamingResponse(_zipped(files), media_type="application/zip")
        reply.headers["content-disposition"] = 'attachment; filename="dataset.zip"'
        return reply


def _add_images(router: APIRouter, app: MONAILabelApp, max_bytes: int) -> None:
    @router.put("/", include_in_schema=False)
    @router.put("/image")
    def add_image(
        person: Annotator, file: Annotated[UploadFile, File()], image: str | None = None, params: _Text = "{}"
    ):
        """Stores a scan under an id; one that is there already keeps its labels."""
        suffix = suffix_of(file.filename, STORED_SUFFIXES, "file")
        name = image or os.path.basename(file.filename or "")[: -len(suffix)]
        check_new_id(name)
        info = _signed(decode_object(params, "params"), person)
        _only_local(app)
        with received(file, STORED_SUFFIXES, "file") as path:
            check_scan(path, name, max_bytes)
            return {"image": app.datastore().add_image(name, str(path), info)}

    @router.delete("/", include_in_schema=False)
    @router.delete("/image")
    def remove_image(person: Admin, id: str):
        """Removes a scan, its labels and their history."""
        app.datastore().remove_image(check_image_id(id, "id"))
        return {}

    @router.head("/image")
    def check_image(person: Annotator, image: str, check_sum: str | None = None):
        """Whether a scan is there, and has a checksum as ``SHA256:…``, ``SHA512:…`` or ``MD5:…``."""
        path = datastore_image(app, image)
        if check_sum:
            algorithm, _, digest = check_sum.rpartition(":")
            if (algorithm or "SHA256") not in _ALGORITHMS:
                raise RequestError(f"check_sum must be one of {', '.join(_ALGORITHMS)}, got {algorithm[:20]!r}")
            if file_checksum(path, algorithm or "SHA256").rpartition(":")[2] != digest.lower():
                raise RequestError(f"image {image!r} has another checksum", status=404)
        return {}

    @router.get("/image", response_class=FileResponse)
    def image_file(person: Annotator, image: str):
        """A scan as it is stored."""
        return _file(datastore_image(app, image))


def _add_image_infos(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/image/info")
    def image_info(person: Annotator, image: str):
        """What is said about a scan."""
        if check_image_id(image) not in app.datastore().list_images():
            raise RequestError(f"image must be the id of an image in the datastore, got {image!r}", status=404)
        return app.datastore().get_image_info(image)

    @router.put("/image/info")
    def add_image_info(person: Annotator, image: str, info: _Text = "{}"):
        """Adds to what is said about a scan, such as ``patient``."""
        app.datastore().update_image_info(check_image_id(image), _signed(decode_object(info, "info"), person))


def _add_labels(router: APIRouter, app: MONAILabelApp, max_bytes: int, on_final: Callable[[str, str], None]) -> None:
    @router.put("/label")
    def save_label(
        person: Annotator,
        background_tasks: BackgroundTasks,
        image: str,
        label: Annotated[UploadFile, File()],
        params: _Text = "{}",
        tag: str = FINAL,
    ):
        """Stores a label map of a scan; one saved before under the tag stays in the history."""
        datastore_image(app, image)
        tag, info = check_tag(tag), _signed(decode_object(params, "params"), person)
        with received(label, STORED_SUFFIXES, "label") as path:
            check_label(path, "label", max_bytes)
            with rejected(str(path), "label"):
                saved = app.datastore().save_label(image, str(path), tag, info)
        if tag == FINAL:
            background_tasks.add_task(on_final, image, person.name)
        return {**(app.on_save_label(image, saved) or {}), "image": image, "label": saved}

    @router.delete("/label")
    def remove_label(person: Admin, id: str, tag: str):
        """Takes a label out of use; its history stays."""
        app.datastore().remove_label(check_image_id(id, "id"), check_tag(tag))
        return {}

    @router.head("/label")
    def check_label_file(person: Annotator, tag: str, image: str = "", label: str = ""):
        """Whether a scan has a label with a tag."""
        _label_path(app, label or image, tag)
        return {}

    @router.get("/label", response_class=FileResponse)
    def label_file(
        person: Annotator, tag: str, label: str = "", image: str = "", version: Annotated[int, Query(ge=0)] = 0
    ):
        """A label map: the newest one, or an older version by its number."""
        if not version:
            return _file(_label_path(app, label or image, tag))
        versions = _versions(app, label or image, tag)
        found = next((v for v in versions if v.number == version), None)
        if found is None:
            raise RequestError(f"version must be one of 1 to {versions[-1].number}, got {version}", status=404)
        return _file(str(found.path), f"{label or image}{found.ext}")


def _add_label_infos(router: APIRouter, app: MONAILabelApp) -> None:
    @router.get("/label/info")
    def label_info(person: Annotator, label: str, tag: str):
        """What is said about a label: names and values of its structures, who saved it, its version."""
        _label_path(app, label, tag)
        return app.datastore().get_label_info(label, check_tag(tag))

    @router.get("/label/history")
    def label_history(person: Annotator, label: str, tag: str):
        """What was said about each version of a label, the oldest first."""
        return [version.info for version in _versions(app, label, tag)]

    @router.put("/label/info")
    def add_label_info(person: Annotator, label: str, tag: str, info: _Text = "{}"):
        """Adds to what is said about a label."""
        said = _signed(decode_object(info, "info"), person)
        app.datastore().update_label_info(check_image_id(label, "label"), check_tag(tag), said)

    @router.put("/updatelabelinfo", include_in_schema=False)
    def add_label_info_as_before(person: Annotator, label: str, tag: str, params: _Text = "{}"):
        add_label_info(person, label, tag, params)


# ---- parts ---------------------------------------------------------------------------------------------------------


def _signed(info: dict[str, Any], person: Person) -> dict[str, Any]:
    return {**info, "user": person.name} if person.name else info


def _only_local(app: MONAILabelApp) -> None:
    if app.studies.startswith(("http://", "https://")):
        raise RequestError("file must not be sent here: the images are series of a DICOM archive, send it there")


def _label_path(app: MONAILabelApp, label: str, tag: str) -> str:
    store, tag = app.datastore(), check_tag(tag)
    check_image_id(label, "label")
    path = LocalDatastore.get_label_uri(store, label, tag)  # also of an archive's copy, by the id of the image
    if not (path and os.path.isfile(path)) and type(store).get_label_uri is not LocalDatastore.get_label_uri:
        try:
            path = store.get_label_uri(label, tag)
        except Exception as error:  # of an archive, in many ways
            status = 404 if isinstance(error, IndexError) else 502
            raise RequestError(f"label {label!r} cannot be fetched from the archive: {error}", status) from error
    if not (path and os.path.isfile(path)):
        raise RequestError(f"label must be that of an image with a label {tag!r}, got {label!r}", status=404)
    return path


def _versions(app: MONAILabelApp, label: str, tag: str):
    found = app.datastore().label_versions(check_image_id(label, "label"), check_tag(tag))
    if not found:
        raise RequestError(f"label {label!r} has no history under tag {tag!r}", status=404)
    return found


def _file(path: str, name: str = "") -> FileResponse:
    return FileResponse(path, media_type=get_mime_type(path), filename=name or os.path.basename(path))


class _Pieces:
    """A file to write to, from which the pieces written so far can be taken."""

    def __init__(self):
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing that could be flushed."""

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def _zipped(files: list[tuple[str, str]]) -> Iterator[bytes]:
    """A ZIP archive piece by piece: there is no copy of the data set on the server's disk."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w") as archive:
        for name, path in files:
            with open(path, "rb") as source, archive.open(zipfile.ZipInfo.from_file(Path(path), name), "w") as target:
                while data := source.read(_CHUNK):
                    target.write(data)
                    yield pieces.take()
            yield pieces.take()
    yield pieces.take()
