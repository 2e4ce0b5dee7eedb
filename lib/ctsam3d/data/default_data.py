"""What the default weights are trained on, and what they never see: real cases and scenes, made from seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ctsam3d.data.derived import Derived, derive_structures, write_derived_case
from ctsam3d.data.io import read_case

HELD_OUT = frozenset(
    ("ts_aorta_dissection", "ts_pulmonary", "sts_015", "sts_018", "sts_019", "sts_022", "sts_023", "sts_024",
     "tptbox_lumbar", "dicom_ct_slab")
)  # fmt: skip
"""Names of the real cases that test the default weights; no training may read them."""

REAL = ("ts_example", *(f"sts_{n:03d}" for n in (1, 2, 3, 6, 8, 10, 12, 14, 38)))
"""Names of the real cases that the default weights are trained on."""

# Derived structures that looking at them showed to be poor: metal with streaks, ribs that noise joins.
_LEFT_OUT = {"ts_example": ("bone_",), "sts_002": ("bone_2", "intermuscular_fat", "visceral_fat")}


def refuse_held_out(names: Iterable[str]) -> None:
    """Raises ValueError where a name is one of `HELD_OUT`, however it is written."""
    found = sorted(name for name in names if name.lower() in HELD_OUT)
    if found:
        raise ValueError(f"training must not use the held-out cases, got {found}")


def make_real_cases(data: str | os.PathLike, out: str | os.PathLike, names: Iterable[str] = REAL) -> list[Path]:
    """Write the named cases of the folder `data`, with the structures that HU show, as `out/<name>`.

    Those that are there stay.

    Raises:
        ValueError: a name that is held out, or a case that cannot be used.
        FileNotFoundError: no such case.
    """
    names = list(names)
    refuse_held_out(names)
    folders = [Path(out) / name for name in names]
    for name, target in zip(names, folders):
        if not (target / "labels.json").is_file():  # written last
            case = read_case(Path(data) / name)
            write_derived_case(target, case.volume, _without_poor(name, len(case.names), derive_structures(case)))
    return folders


def _without_poor(name: str, own: int, derived: Derived) -> Derived:
    labels_ijk = derived.labels_ijk
    for value, structure in enumerate(derived.names, start=1):
        if value > own and structure.startswith(_LEFT_OUT.get(name, ("\0",))):
            labels_ijk[labels_ijk == value] = 0
    return derived
