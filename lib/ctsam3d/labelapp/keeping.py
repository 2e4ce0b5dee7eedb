"""What a click request does with its label map beside showing it: save it as the final label, or give it as DICOM SEG.

OHIF has no button to save with; there a request says it, with the option ``save`` of the model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fastapi import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.generic import remove_file

from ctsam3d.labelapp.access import Person
from ctsam3d.labelapp.archive_store import ArchiveStore
from ctsam3d.labelapp.infer import rejected
from ctsam3d.labelapp.names import FINAL
from ctsam3d.labelapp.requests import RequestError


def check_keeping(values: Mapping, argument: str, image: str, sent: str) -> None:
    """Whether a request's label map can be kept: it is one of the datastore's images, and whole.

    Args:
        values: the parameters.
        argument: what asks for it, for the message.
        sent: session or file that the request is about in place of an image of the datastore; empty: none.

    Raises:
        RequestError: it cannot.
    """
    if not image or sent:
        raise RequestError(f"{argument} needs image, the id of an image in the datastore, not a session or file")
    if values.get("result_box"):
        raise RequestError(f"result_box must not be given with {argument}, which keeps the whole label map")


def save_result(app: MONAILabelApp, image: str, result_file: str, reply: Mapping, person: Person) -> dict:
    """Saves the label map of a request as the final label of its image; what the reply says of it.

    Over a DICOM archive it is stored there too, as DICOM SEG.

    Raises:
        RequestError: it cannot be saved.
    """
    said = _said(reply) | ({"user": person.name} if person.name else {})
    with rejected(result_file, image):
        label = app.datastore().save_label(image, result_file, FINAL, said)
    app.on_save_label(image, label)
    info = app.datastore().get_label_info(label, FINAL)
    return {"label": label, "tag": FINAL, **{key: info[key] for key in ("version", "SeriesInstanceUID") if key in info}}


def check_dicom_seg(app: MONAILabelApp) -> None:
    """Whether label maps can be given as DICOM SEG here.

    Raises:
        RequestError: the images are no series of an archive.
    """
    if not isinstance(app.datastore(), ArchiveStore):
        raise RequestError("output must not be dicom_seg: the images here are files, not series of a DICOM archive")


def send_dicom_seg(
    app: MONAILabelApp, image: str, result_file: str, reply: Mapping, background_tasks: BackgroundTasks
) -> FileResponse:
    """The label map of a request as DICOM SEG, with a segment for every structure that has clicks."""
    background_tasks.add_task(remove_file, result_file)
    handle, path = tempfile.mkstemp(prefix="ctsam3d-seg-", suffix=".dcm")
    os.close(handle)
    background_tasks.add_task(remove_file, path)
    with rejected(result_file, image):
        app.datastore().write_segmentation(Path(path), image, result_file, _said(reply))
    return FileResponse(path, media_type="application/dicom", filename=f"{image}.dcm")


def _said(reply: Mapping) -> dict:
    """What to say of a label: the structures that were clicked, in it or not, and the weights."""
    values = {name: value for name, value in reply["label_names"].items() if name in reply["expansion"]}
    label_info = [{"name": name, "idx": value} for name, value in values.items()]
    return {"label_info": label_info, "model_version": reply["version"]}
