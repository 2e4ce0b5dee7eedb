"""The cases of a download: their folders, and which of them are for training and which for testing."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING, TEST = "training", "test"
TEST_SHARE = 0.1  # of the patients, where the download brings no split of its own

IMAGE = "ct.nii.gz"
LABEL_MAPS = ("seg.nii.gz", "segmentations.nii.gz")  # several structures in one file
MASKS = "segmentations"  # a folder with a file a structure

_PART_OF = {"train": TRAINING, "val": TRAINING, TRAINING: TRAINING, TEST: TEST}
_CASE_COLUMNS = ("image_id", "image", "case")
_PATIENT_COLUMNS = ("patient", "patient_id", "PatientID")


@dataclass(frozen=True)
class SourceCase:
    """A case as it was downloaded.

    Attributes:
        name: of its folder, and of the image in the datastore.
        part: `TRAINING` or `TEST`.
        source_part: what the download calls it (train, val, test); empty where it says nothing.
        patient: identity; empty where the download knows none, which makes the case a patient of its own.
    """

    name: str
    folder: Path
    part: str
    source_part: str = ""
    patient: str = ""


@dataclass(frozen=True)
class MetaRow:
    """What ``meta.csv`` says of a case; empty where it says nothing."""

    split: str = ""
    patient: str = ""


def find_source_cases(
    folder: str | os.PathLike,
    meta: str | os.PathLike | None = None,
    test_share: float = TEST_SHARE,
    names: Sequence[str] | None = None,
) -> list[SourceCase]:
    """The cases in a folder, or the folder itself where it is one, by name.

    The split is that of ``meta.csv``, validation counting as training; without one it goes by a hash of the patient,
    so that it stays the same whatever is added later.

    Args:
        meta: table with a row a case; default ``folder/meta.csv`` where it is there.
        test_share: of the patients, 0 to 1, where there is no split.
        names: of the cases that are wanted; default all.

    Raises:
        FileNotFoundError: no such folder or table.
        ValueError: no case there or none of that name, a table that cannot be used, a case without a row in a table
            that has a split, or a patient on both sides of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"in must be an existing folder, got {folder}")
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share must be from 0 to 1, got {test_share}")
    folders = _case_folders(folder, names)
    path = Path(meta) if meta is not None else folder / "meta.csv"
    rows = read_meta(path) if meta is not None or path.is_file() else {}
    split = any(row.split for row in rows.values())
    missing = [name for name in folders if split and not rows.get(name, MetaRow()).split]
    if missing:
        raise ValueError(f"meta {path} must give the split of every case, it has none for {_some(missing)}")
    cases = [_source_case(name, path, rows.get(name, MetaRow()), test_share) for name, path in folders.items()]
    _check_patients(cases)
    return cases


def read_meta(path: str | os.PathLike) -> dict[str, MetaRow]:
    """The rows of TotalSegmentator's ``meta.csv``, by case: semicolons or commas, ``image_id``, ``split``, ``patient``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column with the cases, or a split that is not train, val or test.
    """
    path = Path(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=";" if ";" in header else ",")
        rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
        columns = [column.strip() for column in reader.fieldnames or ()]
    case_column = next((column for column in _CASE_COLUMNS if column in columns), None)
    if case_column is None:
        raise ValueError(f"meta {path} must have a column {' or '.join(_CASE_COLUMNS)}, got {columns}")
    patient_column = next((column for column in _PATIENT_COLUMNS if column in columns), "")
    found = {row[case_column]: MetaRow(row.get("split", ""), row.get(patient_column, "")) for row in rows}
    unknown = sorted({row.split for row in found.values()} - {*_PART_OF, ""})
    if unknown:
        raise ValueError(f"meta {path} must have a split of {', '.join(_PART_OF)}, got {', '.join(unknown)}")
    return found


def label_map_of(folder: Path) -> Path | None:
    """The file with several structures, where the case has one."""
    return next((folder / name for name in LABEL_MAPS if (folder / name).is_file()), None)


def masks_of(folder: Path) -> dict[str, Path]:
    """The files with one structure each, by name."""
    files = sorted((folder / MASKS).glob("*.nii.gz")) if (folder / MASKS).is_dir() else []
    return {file.name.removesuffix(".nii.gz"): file for file in files}


def fingerprint(folder: Path) -> str:
    """A hash of names and sizes of the files of a case: another version of a data set differs in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    text = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()


def _case_folders(folder: Path, names: Sequence[str] | None) -> dict[str, Path]:
    candidates = [folder] if _is_case(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.resolve().name: path for path in candidates if _is_case(path)}
    if not found:
        raise ValueError(f"in {folder} must be a case or hold cases ({IMAGE} or DICOM slices), it holds none")
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise ValueError(f"cases must be among those of {folder}, {_some(list(found))}, got {_some(unknown)}")
    return {name: found[name] for name in sorted(names or found)}


def _is_case(folder: Path) -> bool:
    return (folder / IMAGE).is_file() or any(folder.glob("*.dcm"))


def _source_case(name: str, folder: Path, row: MetaRow, test_share: float) -> SourceCase:
    if row.split:
        return SourceCase(name, folder, _PART_OF[row.split], row.split, row.patient)
    number = int(hashlib.sha256(f"test {row.patient or name}".encode()).hexdigest()[:16], 16)
    return SourceCase(name, folder, TEST if number < test_share * 2**64 else TRAINING, "", row.patient)


def _check_patients(cases: Sequence[SourceCase]) -> None:
    parts: dict[str, str] = {}
    for case in cases:
        if case.patient and parts.setdefault(case.patient, case.part) != case.part:
            raise ValueError(f"split must keep a patient on one side, patient {case.patient} is on both ({case.name})")


def _some(names: Sequence[str], count: int = 5) -> str:
    return ", ".join([*names[:count], *([f"… ({len(names)} in all)"] if len(names) > count else [])])
