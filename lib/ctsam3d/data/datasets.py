"""Public data sets as they are downloaded, and folders of cases: which cases there are, each read when it is wanted.

Label values are those that the data sets publish: FLARE22 (Ma et al., the MICCAI 2022 challenge), BTCV (Landman et al.,
Synapse syn3193805), MSD (Antonelli et al., tasks 7 and 10). Structures bear the names of `ctsam3d.data.labels` where
they have a counterpart there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from ctsam3d.data.convert.cases import MetaRow, read_meta
from ctsam3d.data.io import Case, read_case, read_labels, read_volume
from ctsam3d.data.labels import NAMES, V1_FROM_V2

KINDS = ("cases", "totalseg", "flare22", "btcv", "msd_pancreas", "msd_colon")
SPLITS = ("train", "val", "test")

FLARE22_NAMES = (
    "liver", "kidney_right", "spleen", "pancreas", "aorta", "inferior_vena_cava", "adrenal_gland_right",
    "adrenal_gland_left", "gallbladder", "esophagus", "stomach", "duodenum", "kidney_left",
)  # fmt: skip
"""Name of label value `v` at index `v - 1`."""

BTCV_NAMES = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
)  # fmt: skip
"""Name of label value `v` at index `v - 1`."""

TUMOURS = {"msd_pancreas": "pancreas_tumour", "msd_colon": "colon_tumour"}

_MSD_NAMES = {"msd_pancreas": ("pancreas", "pancreas_tumour"), "msd_colon": ("colon_tumour",)}
_FLARE22_FILE = re.compile(r"(FLARE22_Tr|FLARE22_Ts|FLARETs)_\d{4}$")
_FLARE22_SPLITS = {"FLARE22_Tr": "train", "FLARE22_Ts": "test", "FLARETs": "test"}
_SPLIT_OF = {"training": "train"} | {split: split for split in SPLITS}  # as our conversion and others call them
_DATASTORE_FILE = "datastore_v2.json"  # of MONAI Label
_META_FILE = "meta.csv"  # of TotalSegmentator


@dataclass(frozen=True)
class CaseFiles:
    """A case that is found, but not read yet.

    Attributes:
        name: of the case.
        files: all that it is read from.
        read: gives the case; raises as `read_case`.
        split: "train", "val" or "test" as the data set says, "" where it says nothing.
        patient: as the data set says; the case itself where it says nothing.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], Case] = field(compare=False, repr=False)
    split: str = ""
    patient: str = ""

    def __post_init__(self):
        object.__setattr__(self, "patient", self.patient or self.name)

    def fingerprint(self) -> str:
        """Hexadecimal; another one as soon as a file has another name, size or time of change."""
        digest = hashlib.sha256()
        for path in self.files:
            about = path.stat()
            digest.update(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """The cases of a data set, by name.

    Attributes:
        kind: one of `KINDS`.
        structures: those that the data set is there for, where that is not all of them.
    """

    kind: str
    cases: tuple[CaseFiles, ...]
    structures: tuple[str, ...] | None = None

    def chosen(self, names: Sequence[str] | None = None, split: str | None = None) -> tuple[CaseFiles, ...]:
        """Some of the cases.

        Args:
            names: of cases; default all of the split.
            split: one of `SPLITS`, or "all". Default: the test cases of TotalSeg++, on the rest of which networks are
                trained, where it says which they are; all cases of any other.

        Raises:
            ValueError: a name that is no case, a split that is none or has no cases.
        """
        if names:
            found = {case.name: case for case in self.cases}
            unknown = [name for name in names if name not in found]
            if unknown:
                raise ValueError(f"cases must be among {_some(found)}, got {unknown}")
            return tuple(found[name] for name in dict.fromkeys(names))
        if split not in (None, "all", *SPLITS):
            raise ValueError(f"split must be one of {', '.join(SPLITS)} or all, got {split!r}")
        if split is None:
            split = "test" if self.kind == "totalseg" and any(case.split == "test" for case in self.cases) else "all"
        chosen = tuple(case for case in self.cases if split in ("all", case.split))
        if not chosen:
            raise ValueError(f"split {split!r} must have cases, the data set has {len(self.cases)} others")
        return chosen


def find_dataset(folder: str | os.PathLike, kind: str = "auto") -> DataSet:
    """The cases of a data set on disk, none of which is read yet.

    * ``cases``: a folder of cases, see `read_case`.
    * ``totalseg``: a MONAI Label datastore with label maps under ``labels/final``, or TotalSegmentator's own folders
      (``s0000/ct.nii.gz``, ``segmentations/``, ``meta.csv`` with the split).
    * ``flare22``: ``FLARE22_Tr_0001_0000.nii.gz`` with ``FLARE22_Tr_0001.nii.gz``, and ``FLARETs_...`` of the test set.
    * ``btcv``: ``img0001.nii.gz`` with ``label0001.nii.gz``.
    * ``msd_pancreas``, ``msd_colon``: ``dataset.json`` with ``imagesTr/`` and ``labelsTr/``.

    Images and labels of FLARE22 and BTCV may lie anywhere in the folder; an image without labels is no case.

    Args:
        kind: one of `KINDS`, or "auto": what the files in the folder look like.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such kind, none or several are recognised, or the folder does not hold that kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be an existing folder of cases, got {folder}")
    if kind not in ("auto", *KINDS):
        raise ValueError(f"dataset must be auto or one of {', '.join(KINDS)}, got {kind!r}")
    kind = recognise(folder) if kind == "auto" else kind
    find = {"cases": _folder_cases, "totalseg": _totalseg_cases, "flare22": _flare22_cases, "btcv": _btcv_cases}
    cases = find[kind](folder) if kind in find else _msd_cases(folder, kind)
    if not cases:
        raise ValueError(f"data {folder} must hold cases of the data set {kind}, it has none")
    structures = (TUMOURS[kind],) if kind in TUMOURS else None
    return DataSet(kind, tuple(sorted(cases, key=lambda case: case.name)), structures)


def recognise(folder: Path) -> str:
    """The kind of data set that the files of a folder look like.

    Raises:
        ValueError: none, or files of several.
    """
    if (folder / _DATASTORE_FILE).is_file() or (folder / _META_FILE).is_file():
        return "totalseg"
    if any(map(_is_case, folder.iterdir())):
        return "cases"
    stems = {_stem(path) for path in _niftis(folder)}
    msd = (folder / "dataset.json").is_file()
    looks = {"flare22": _FLARE22_FILE.match, "btcv": re.compile(r"label\d{4}$").match}
    looks |= {kind: re.compile(_msd_prefix(kind)).match for kind in TUMOURS if msd}
    found = [kind for kind, match in looks.items() if any(map(match, stems))]
    if not found:
        raise ValueError(
            f"data {folder} must be a folder of cases or a data set ({', '.join(KINDS[1:])}), it is neither"
        )
    if len(found) > 1:
        raise ValueError(f"data {folder} must be one data set, it has files of {' and '.join(found)}; say which it is")
    return found[0]


def read_case_list(path: str | os.PathLike) -> tuple[str, ...]:
    """The names of cases in a text file, one a line; a file's folder and extension do not count, nor what follows #.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names no case.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"case_list must be an existing text file, got {path}")
    try:
        lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        names = tuple(_stem(Path(line)) for line in lines if line)
    except UnicodeDecodeError as error:
        raise ValueError(f"case_list {path} must be a text file with the name of a case on each line") from error
    if not names:
        raise ValueError(f"case_list {path} must name at least one case, it names none")
    return names


def read_patients(path: str | os.PathLike) -> dict[str, str]:
    """Patient of each case, of a CSV file with the columns case and patient.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without these columns, or with an empty field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"patients must be an existing CSV file, got {path}")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"patients {path} cannot be read as a table: {error}") from error
    if not {"case", "patient"} <= set(frame) or (frame[["case", "patient"]] == "").any(axis=None):
        raise ValueError(f"patients must be a CSV file with the columns case and patient, both filled, got {path}")
    return dict(zip(frame["case"], frame["patient"]))


# ---- folders of cases ------------------------------------------------------------------------------------------------


def _is_case(folder: Path) -> bool:
    return (folder / "seg.nii.gz").is_file() or (folder / "segmentations").is_dir()


def _folder_cases(data: Path) -> list[CaseFiles]:
    return [_folder_case(folder) for folder in data.iterdir() if _is_case(folder)]


def _folder_case(folder: Path, names: Callable[[str], str] = str, split: str = "", patient: str = "") -> CaseFiles:
    patterns = ("ct.nii.gz", "*.dcm", "seg.nii.gz", "labels.json", "segmentations/*.nii.gz")
    files = tuple(path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return CaseFiles(folder.name, files, partial(_read_folder, folder, names), split, patient)


def _read_folder(folder: Path, names: Callable[[str], str]) -> Case:
    case, masks = read_case(folder), {}
    for name in case.names:  # several of the files may stand for one structure
        masks.setdefault(names(name), []).append(case.structures[name])
    structures = {name: partial(_union, tuple(own)) for name, own in masks.items()}
    return dataclasses.replace(case, name=folder.name, structures=MappingProxyType(structures))


# ---- TotalSeg++ ------------------------------------------------------------------------------------------------------


def _totalseg_cases(data: Path) -> list[CaseFiles]:
    if (data / _DATASTORE_FILE).is_file():
        return _datastore_cases(data)
    rows = read_meta(data / _META_FILE) if (data / _META_FILE).is_file() else {}
    found = {folder: rows.get(folder.name, MetaRow()) for folder in data.iterdir() if _is_case(folder)}
    return [_folder_case(f, own_name, _SPLIT_OF.get(row.split, ""), row.patient) for f, row in found.items()]


def own_name(name: str) -> str:
    """TotalSegmentator's name of a structure as ours; itself where it has no counterpart."""
    return V1_FROM_V2.get(name) or name


def _datastore_cases(data: Path) -> list[CaseFiles]:
    """The images of a MONAI Label datastore that have a final label."""
    path = data / _DATASTORE_FILE
    try:
        store = json.loads(path.read_text(encoding="utf-8"))
        images, labels = data / store.get("images_dir", ""), data / store.get("labels_dir", "labels") / "final"
        cases = []
        for name, entry in store["objects"].items():
            final = entry["labels"].get("final")
            if final:
                files = images / f"{name}{entry['image']['ext']}", labels / f"{name}{final['ext']}"
                names = _named_values(final.get("info", {}).get("label_info")) or dict(enumerate(NAMES, start=1))
                info = entry["image"].get("info", {})
                split, patient = _SPLIT_OF.get(info.get("split"), ""), str(info.get("patient") or "")
                cases.append(_label_map_case(name, *files, names, split, patient))
        return cases
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path {path} must be the record of a MONAI Label datastore: {error!r}") from error


def _named_values(label_info: list[dict] | None) -> dict[int, str]:
    """Value to name, from what was saved with a label; empty where nothing was."""
    return {int(entry["idx"]): own_name(str(entry["name"])) for entry in label_info or () if int(entry["idx"]) > 0}


# ---- FLARE22, BTCV, MSD ----------------------------------------------------------------------------------------------


def _flare22_cases(data: Path) -> list[CaseFiles]:
    images, labels = {}, {}
    for path in _niftis(data):
        stem = _stem(path)
        name = stem.removesuffix("_0000")  # of an image
        if _FLARE22_FILE.match(name):
            _add(labels if stem == name else images, name, path)
    organs = dict(enumerate(FLARE22_NAMES, start=1))
    splits = {name: _FLARE22_SPLITS[name.rpartition("_")[0]] for name in images}
    return [_label_map_case(n, images[n], labels[n], organs, splits[n]) for n in images if n in labels]


def _btcv_cases(data: Path) -> list[CaseFiles]:
    images, labels = {}, {}
    for path in _niftis(data):
        if match := re.fullmatch(r"(img|label)(\d{4})", _stem(path)):
            _add(images if match[1] == "img" else labels, f"img{match[2]}", path)
    organs = dict(enumerate(BTCV_NAMES, start=1))
    return [_label_map_case(name, images[name], labels[name], organs) for name in images if name in labels]


def _msd_cases(data: Path, kind: str) -> list[CaseFiles]:
    path, names = data / "dataset.json", _MSD_NAMES[kind]
    if not path.is_file():
        raise ValueError(f"data {data} must hold dataset.json, as the data set {kind} does")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = {int(value): name for value, name in about["labels"].items()}
        pairs = [(data / entry["image"], data / entry["label"]) for entry in about["training"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path {path} must list labels and training cases as MSD does: {error!r}") from error
    if sorted(found) != list(range(len(names) + 1)) or not pairs:
        raise ValueError(f"path {path} must list cases with the labels 0 to {len(names)} of {kind}, got {found}")
    structures = dict(enumerate(names, start=1))
    return [_label_map_case(_stem(image), image, label, structures) for image, label in pairs]


def _msd_prefix(kind: str) -> str:
    return kind.removeprefix("msd_") + "_"


def _add(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise ValueError(f"data must hold each file once, {path.name} is there as {files[name]} and {path}")
    files[name] = path


# ---- an image and its label map --------------------------------------------------------------------------------------


def _label_map_case(
    name: str, image: Path, labels: Path, names: Mapping[int, str], split: str = "", patient: str = ""
) -> CaseFiles:
    return CaseFiles(name, (image, labels), partial(_read_label_map, name, image, labels, names), split, patient)


def _read_label_map(name: str, image: Path, labels: Path, names: Mapping[int, str]) -> Case:
    """A case whose label map is read at the first mask and kept; several values may bear one name."""
    volume, masks = read_volume(image), {}
    labels_ijk = cache(partial(read_labels, labels, volume))
    for value, structure in sorted(names.items()):
        masks.setdefault(structure, []).append(partial(_mask, labels_ijk, value))
    return Case(name, volume, MappingProxyType({key: partial(_union, tuple(own)) for key, own in masks.items()}))


def _mask(labels_ijk: Callable[[], np.ndarray], value: int) -> np.ndarray:
    return labels_ijk() == value


def _union(masks: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    mask_ijk = masks[0]()
    for other in masks[1:]:
        mask_ijk = mask_ijk | other()
    return mask_ijk


def _niftis(folder: Path) -> Iterator[Path]:
    """The NIfTI files anywhere in a folder, without the hidden ones that some systems leave in archives."""
    paths: Iterable[Path] = sorted(folder.rglob("*.nii*"))
    return (path for path in paths if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _some(names: Iterable[str], count: int = 20) -> str:
    shown = sorted(names)
    return str(shown[:count])[:-1] + (", …]" if len(shown) > count else "]")
