"""Studies that a team has labelled: from the datastore's records to cases, each checked when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from ctsam3d.data.convert.cases import TEST
from ctsam3d.data.io import Case, read_labels, read_volume
from ctsam3d.labelapp.requests import BACKGROUND
from ctsam3d.volume import Volume

_NO_PATIENT = ("", "UNK", "None")  # "UNK": what MONAI Label writes where a series has no PatientID


@dataclass(frozen=True)
class Study:
    """An image with a final label, as the datastore has it; nothing is read yet.

    Attributes:
        name: id of the image.
        image, label: paths.
        values: name of each structure to its values in the label map.
        patient: identity of the patient; empty where the datastore knows none.
    """

    name: str
    image: str
    label: str
    values: Mapping[str, tuple[int, ...]]
    patient: str = ""

    def read(self) -> Case:
        """The case with the structures that the label map really holds.

        Raises:
            ValueError: a file is missing or broken, the label is of another size or grid, or nothing named is in it.
        """
        try:
            volume = read_volume(self.image)
            labels_ijk = read_labels(self.label, volume)
        except (OSError, ValueError) as error:
            text = str(error)
            for path, word in ((self.image, "image"), (self.label, "label")):  # nobody outside needs the server's paths
                text = text.replace(f"path {path}", word).replace(path, word)
            raise ValueError(text) from error
        present = _values(labels_ijk) - {0}
        if not present:
            raise ValueError("label must hold a structure, it is empty")
        found = {name: tuple(present.intersection(values)) for name, values in self.values.items()}
        masks = {name: partial(_mask, labels_ijk, values) for name, values in found.items() if values}
        if not masks:
            raise ValueError(f"label must hold a value with a name, one of {_some(self.values)}, got {sorted(present)}")
        return Case(self.name, volume, MappingProxyType(masks))


def labelled_studies(datastore: Datastore, labels: Sequence[str]) -> tuple[list[Study], dict[str, str]]:
    """The studies whose label is ``final``, by name, and the reasons for which others cannot be had.

    Images whose info says ``"split": "test"``, as converted data sets have it, are never learnt from.

    Args:
        labels: of the app; value v is ``labels[v - 1]`` where a label was saved without names.
    """
    # Of a DICOM archive, MONAI Label keeps a local copy; what is in it is asked of the class below.
    archive = isinstance(datastore, DICOMWebDatastore)
    own = LocalDatastore if archive else type(datastore)
    if archive:
        datastore.datalist()  # brings the archive's labels into the copy
    studies, skipped = [], {}
    for name in sorted(own.get_labeled_images(datastore)):
        try:
            if (datastore.get_image_info(name) or {}).get("split") == TEST:
                skipped[name] = "is held out for testing"
                continue
            studies.append(_study(own, datastore, name, labels))
        except Exception as error:  # an archive, and the libraries in between, fail in many ways
            skipped[name] = f"image or label cannot be fetched: {error}"
    return studies, skipped


def _study(own: type[Datastore], datastore: Datastore, name: str, labels: Sequence[str]) -> Study:
    tag = DefaultLabelTag.FINAL.value
    image = datastore.get_image_uri(name)
    label_id = own.get_label_by_image_id(datastore, name, tag)
    label = own.get_label_uri(datastore, label_id, tag)
    if not image or not label:
        raise FileNotFoundError("the datastore has no file of it")
    info = own.get_label_info(datastore, label_id, tag) or {}
    patient = patient_identity(datastore.get_image_info(name) or {})
    return Study(name, str(image), str(label), structure_values(info.get("label_info"), labels), patient)


def structure_values(label_info: Any, labels: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Name of each structure to its values in the label map, in the order of the values.

    Args:
        label_info: what a client saved with the label: [{"name": ..., "idx": ...}, ...]; entries that give no name
            or no value from 1 up count as not there.
        labels: taken where nothing is left: value v is ``labels[v - 1]``.
    """
    named: dict[str, list[int]] = {}
    for value, name in sorted(filter(None, map(_entry, label_info if isinstance(label_info, list) else ()))):
        named.setdefault(name, []).append(value)
    if not named:
        return {name: (value,) for value, name in enumerate(labels, start=1)}
    return {name: tuple(values) for name, values in named.items()}


def patient_identity(image_info: Mapping[str, Any]) -> str:
    """Whose image it is, from the datastore's info: ``patient``, or DICOM's PatientID; empty where neither is said."""
    for key in ("patient", "PatientID"):
        identity = str(image_info.get(key, "")).strip()
        if identity not in _NO_PATIENT:
            return identity
    return ""


def image_content(volume: Volume) -> str:
    """SHA-256 of shape and voxels: the same for one image in two files, under two names, or with a mended header."""
    array = np.ascontiguousarray(volume.array_ijk.T)  # no copy for an array that has i running fastest
    digest = hashlib.sha256(f"{volume.shape_ijk} {array.dtype.str}".encode())
    digest.update(array.data)
    return digest.hexdigest()


def _values(labels_ijk: np.ndarray) -> set[int]:
    """All values of a label map; plane by plane, to spare memory."""
    if labels_ijk.dtype.itemsize > 2:
        return set(np.unique(labels_ijk).tolist())
    planes = (labels_ijk[:, :, k].ravel(order="K") for k in range(labels_ijk.shape[2]))
    return set().union(*(np.flatnonzero(np.bincount(plane)).tolist() for plane in planes))


def _mask(labels_ijk: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    mask_ijk = labels_ijk == values[0]
    for value in values[1:]:
        mask_ijk |= labels_ijk == value
    return mask_ijk


def _entry(entry: Any) -> tuple[int, str] | None:
    """(value, name) of an entry of ``label_info``, None where it has none that can be used."""
    if not isinstance(entry, Mapping):
        return None
    name, value = entry.get("name"), entry.get("idx")
    if not isinstance(name, str) or not name.strip() or name.strip().lower() == BACKGROUND or isinstance(value, bool):
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (whole, name.strip()) if whole == float(value) and whole >= 1 else None


def _some(names: Mapping[str, tuple[int, ...]], count: int = 5) -> str:
    shown = [f"{name} {'/'.join(map(str, values))}" for name, values in list(names.items())[:count]]
    return ", ".join([*shown, *(["…"] if len(names) > count else [])])
