"""What the default weights are trained on, made from seeds or derived from real cases, and what they never see."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ctsam3d.data.derived import Derived, derive_structures, write_derived_case
from ctsam3d.data.io import read_case
from ctsam3d.data.phantom_limbs import LIMB_REGIONS_MM
from ctsam3d.data.phantoms import Phantom, make_limb_phantom, make_phantom, write_phantom_case
from ctsam3d.data.scenes import make_scene, write_scene_case

HELD_OUT = frozenset(
    ("ts_aorta_dissection", "ts_pulmonary", "sts_015", "sts_018", "sts_019", "sts_022", "sts_023", "sts_024",
     "tptbox_lumbar", "dicom_ct_slab")
)  # fmt: skip
"""Names of the real cases that test the default weights; no training may read them."""

REAL = {
    "real_organs": ("ts_example",),
    "real_tumours": tuple(f"sts_{n:03d}" for n in (1, 2, 3, 6, 8, 10, 12, 14, 38)),
}
"""Names of the real cases that the default weights are trained on, in groups that pairs are drawn from by share."""

PHANTOM_SEED, TRUNK_SEED, SCENE_SEED = 2000, 1000, 0
"""The first seed of each; phantoms of other seeds are in tests and published figures."""

_REGIONS = {
    "trunk": 0.22,
    "abdomen": 0.2,
    "chest": 0.14,
    "pelvis": 0.12,
    "thighs": 0.14,
    "lower_legs": 0.06,
    "arm": 0.12,
}
_SLICES_MM = {1.5: 0.4, 0.75: 0.04, 1.0: 0.1, 2.0: 0.13, 2.5: 0.08, 3.0: 0.13, 5.0: 0.12}

# Derived structures that looking at them showed to be poor: metal with streaks, ribs that noise joins.
_LEFT_OUT = {"ts_example": ("bone_",), "sts_002": ("bone_2", "intermuscular_fat", "visceral_fat")}


def refuse_held_out(names: Iterable[str]) -> None:
    """Raises ValueError where a name is one of `HELD_OUT`, however it is written."""
    found = sorted(name for name in names if name.lower() in HELD_OUT)
    if found:
        raise ValueError(f"training must not use the held-out cases, got {found}")


def make_real_cases(
    data: str | os.PathLike, out: str | os.PathLike, names: Iterable[str] = tuple(chain.from_iterable(REAL.values()))
) -> list[Path]:
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


def random_phantom(seed: int) -> Phantom:
    """The rich phantom of a seed, whose region and slice thickness (0.75 to 5 mm) are drawn from it too."""
    rng = np.random.default_rng((seed, 4))
    region = str(rng.choice(list(_REGIONS), p=list(_REGIONS.values())))
    slice_mm = float(rng.choice(list(_SLICES_MM), p=list(_SLICES_MM.values())))
    pixel_mm = float(rng.choice((1.5, 1.2, 2.0), p=(0.8, 0.1, 0.1)))
    spacing_mm = (pixel_mm, pixel_mm, slice_mm)
    if region in LIMB_REGIONS_MM:
        return make_limb_phantom(seed, spacing_mm, region)
    return make_phantom(seed, spacing_mm, region, rich=True)


def make_random_phantoms(out: str | os.PathLike, count: int, seed: int = PHANTOM_SEED, workers: int = 1) -> list[Path]:
    """Write the phantoms of seeds `seed` to `seed + count - 1` as `out/phantom_<seed>`; those that are there stay."""
    return _make_all(_write_phantom, [Path(out) / f"phantom_{s}" for s in _seeds(seed, count)], workers)


def make_trunk_phantoms(out: str | os.PathLike, count: int, seed: int = TRUNK_SEED, workers: int = 1) -> list[Path]:
    """Write phantoms of the trunk without extras, 1.5 mm, as `make_random_phantoms`: like those of demonstrations."""
    return _make_all(_write_trunk, [Path(out) / f"phantom_{s}" for s in _seeds(seed, count)], workers)


def make_scenes(out: str | os.PathLike, count: int, seed: int = SCENE_SEED, workers: int = 1) -> list[Path]:
    """Write the scenes of seeds `seed` to `seed + count - 1` as `out/scene_<seed>`; those that are there stay."""
    return _make_all(_write_scene, [Path(out) / f"scene_{s}" for s in _seeds(seed, count)], workers)


def _seeds(seed: int, count: int) -> range:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return range(seed, seed + count)


def _write_phantom(folder: Path) -> None:
    write_phantom_case(folder, random_phantom(int(folder.name.rpartition("_")[2])))


def _write_trunk(folder: Path) -> None:
    write_phantom_case(folder, make_phantom(int(folder.name.rpartition("_")[2]), (1.5, 1.5, 1.5), "trunk"))


def _write_scene(folder: Path) -> None:
    write_scene_case(folder, make_scene(int(folder.name.rpartition("_")[2])))


def _make_all(write: Callable[[Path], None], folders: Sequence[Path], workers: int) -> list[Path]:
    missing = [folder for folder in folders if not (folder / "labels.json").is_file()]  # written last
    if workers == 1:
        for folder in tqdm(missing, unit="case", disable=None):
            write(folder)
        return list(folders)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in tqdm(pool.map(write, missing), total=len(missing), unit="case", disable=None):
            pass
    return list(folders)
