"""Structures that Hounsfield units give away: what a real case has no label for, so that nearly every voxel has one.

Bones, each its own label where they can be told apart, gas and lung, the three tissues of `ctsam3d.data.tissues`, fat
between muscles, and skin. What is labelled already is never changed. Arrays are in the order ``zyx`` of
`ctsam3d.data.body` unless a name says ``ijk``; all rules are in mm and work on the scan's own grid.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cc3d
import edt
import numpy as np
from scipy import ndimage

from ctsam3d.data.body import AIR_HU, ijk_from_zyx, turned, turned_spacing, zyx_from_ijk
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, write_mask, write_volume
from ctsam3d.data.labels import NAMES, VALUE_OF, our_name
from ctsam3d.data.tissues import OTHER, find_body, find_tissues, smoothed
from ctsam3d.volume import Volume

_BONE_HU, _CORTEX_HU = 140.0, 230.0  # of smoothed HU: what belongs to a bone, and what every bone holds somewhere
_GAP_MM = 2.5  # holes in a thin cortex that are closed
_MARROW_CM2 = 30.0  # a hole of a bone's section is at most so large
_LEAST_ML = 0.4
_LEVELS = ((200, 0.0), (200, 1.2), (250, 1.2), (300, 1.2), (250, 2.0), (300, 2.0), (300, 2.6))  # HU, rim in mm
_JOINT_SHARE = 2.0  # area of a joint over the smaller bone's volume to the power of 2/3, at most
_LEAST_BONE_ML = 2.0  # of each part, where a level of HU and a rim that is lost leave several
_CANAL_HU = (0.0, 85.0)  # a hole like this is no marrow where it is large: spinal canal, muscle between ribs
_CANAL_CM2, _CANAL_SPREAD_HU = 2.5, 80.0  # marrow, of fat and spongy bone, varies more
_SKIN_MM = 2.6
_LUNG_HU = -960.0
_FATS = tuple(VALUE_OF[name] for name in ("visceral_fat", "subcutaneous_fat"))
_FAT_HU = (-160.0, -30.0)


@dataclass(frozen=True, eq=False)
class Derived:
    """A case's labels with those that were derived.

    Attributes:
        labels_ijk: (I, J, K) uint8; value v is `names[v - 1]`.
        names: those of the case come first, with their values kept in order.
        body_ijk: (I, J, K) bool, the body region.
    """

    labels_ijk: np.ndarray
    names: tuple[str, ...]
    body_ijk: np.ndarray


def derive_structures(case: Case) -> Derived:
    """The structures of `case` and those that its HU show, in voxels without a label only.

    Raises:
        ValueError: more than 200 structures, or one that cannot be read.
    """
    if len(case.names) > 200:
        raise ValueError(f"case {case.name} must have at most 200 structures, it has {len(case.names)}")
    labels_ijk = np.zeros(case.volume.shape_ijk, np.uint8)
    known_ijk = np.zeros(case.volume.shape_ijk, np.uint8)
    for value, name in enumerate(case.names, start=1):
        mask = case.mask(name)
        labels_ijk[mask] = value
        known_ijk[mask] = VALUE_OF.get(our_name(name) or "", OTHER)
    turn, back = zyx_from_ijk(case.volume.affine_ras_mm), ijk_from_zyx(case.volume.affine_ras_mm)
    spacing_mm = turned_spacing(case.volume.spacing_ijk_mm, turn)
    hu, labels = turned(case.volume.array_ijk, turn), turned(labels_ijk, turn)
    body = turned(find_body(case.volume, known_ijk), turn)
    bones = find_bones(hu, body & (labels == 0), spacing_mm)
    known_ijk[(turned(bones, back) > 0) & (known_ijk == 0)] = OTHER
    tissues = find_tissues(case.volume, known_ijk)
    names = list(case.names)
    _add(labels, names, ((f"bone_{n}", bones == n) for n in range(1, int(bones.max()) + 1)))
    _add(labels, names, _air(hu, body, labels > 0, spacing_mm))
    found = turned(tissues.labels_ijk, turn)
    _add(labels, names, ((name, found == VALUE_OF[name]) for name in NAMES[104:]))
    _add(labels, names, _rest(hu, body, labels > 0, np.isin(found, _FATS), spacing_mm))
    return Derived(turned(labels, back), tuple(names), tissues.body_ijk)


def _add(labels: np.ndarray, names: list[str], found: Iterable[tuple[str, np.ndarray]]) -> None:
    """New structures, where nothing is labelled yet; a name that the case has already gets no second label."""
    for name, mask in found:
        mask = mask & (labels == 0)
        if mask.any() and name not in names:
            names.append(name)
            labels[mask] = len(names)


# ---- bones -------------------------------------------------------------------------------------------------------


def find_bones(hu_zyx: np.ndarray, allowed_zyx: np.ndarray, spacing_zyx_mm) -> np.ndarray:
    """Bones with their marrow, numbered from 1 in order of size; (Z, Y, X) uint8, 0 where they are not `allowed`."""
    steady, sharp = smoothed(hu_zyx, spacing_zyx_mm), _sharp(hu_zyx, spacing_zyx_mm)
    parts = cc3d.connected_components((steady > _BONE_HU) & allowed_zyx, connectivity=6)
    real = np.zeros(int(parts.max()) + 1, bool)
    real[np.unique(parts[sharp > _CORTEX_HU])] = True
    real[0] = False
    raw = cc3d.dust(real[parts], threshold=_voxels(0.5 * _LEAST_ML, spacing_zyx_mm), connectivity=6)
    whole = _filled(raw, steady, allowed_zyx, spacing_zyx_mm)
    territory = _rejoined(_grown(_split(sharp, whole, spacing_zyx_mm), whole, sharp), spacing_zyx_mm)
    sizes = np.bincount(territory.ravel())
    sizes[0] = 0
    kept = [v for v in np.argsort(-sizes, kind="stable")[:40] if sizes[v] >= _voxels(_LEAST_ML, spacing_zyx_mm)]
    out = np.where(np.isin(territory, kept), territory, 0)
    numbers = np.zeros(int(territory.max()) + 1, np.uint8)
    numbers[kept] = np.arange(1, len(kept) + 1)
    free = allowed_zyx & (out == 0)
    for value in kept:
        closed = _filled(_closed(territory == value, spacing_zyx_mm), steady, free, spacing_zyx_mm)
        out[closed & free & (out == 0)] = value
    return numbers[out]


def _sharp(hu: np.ndarray, spacing_mm) -> np.ndarray:
    """HU less smoothed than where tissues are told apart: a joint is a line of 2 to 4 mm."""
    out = hu.astype(np.float32)
    for axis, step in enumerate(spacing_mm):
        ndimage.gaussian_filter1d(out, min(0.8, 0.8 / step), axis=axis, output=out, truncate=3.0)
    return out


def _split(sharp: np.ndarray, whole: np.ndarray, spacing_mm) -> np.ndarray:
    """A core of each bone, numbered from 1, int32: what falls apart where dark joints and thin rims are taken away."""
    least = _voxels(_LEAST_BONE_ML, spacing_mm)
    cores = cc3d.connected_components(whole, connectivity=6).astype(np.int32)
    for least_hu, rim_mm in _LEVELS:
        # Marrow is dark but no joint: what the cortex of this level closes belongs to the bone.
        solid = _filled((sharp > least_hu) & whole, sharp, whole, spacing_mm)
        depth_mm = edt.edt(solid, anisotropy=spacing_mm, black_border=False)
        parts = cc3d.connected_components((depth_mm > rim_mm) & (cores > 0), connectivity=6)
        sizes = np.bincount(parts.ravel())
        parent = np.zeros(len(sizes), np.int32)
        parent[parts.ravel()] = cores.ravel()
        large = [v for v in range(1, len(sizes)) if sizes[v] >= least]
        for value in np.unique(parent[large]) if large else ():
            own = [v for v in large if parent[v] == value]
            if len(own) > 1:
                cores[cores == value] = 0
                for part in own:
                    cores[parts == part] = cores.max() + 1
    return cores


def _grown(cores: np.ndarray, whole: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Cores grown over the whole, brighter voxels first, so that they meet in the dark line of a joint."""
    height = (np.clip(600 - sharp, 0, 1000) / 4).astype(np.uint8)
    height[~whole] = 255
    markers = cores.astype(np.int32)
    markers[~whole] = -1
    grown = ndimage.watershed_ift(height, markers)
    return np.where(whole & (grown > 0), grown, 0)


def _rejoined(parts: np.ndarray, spacing_mm) -> np.ndarray:
    """Parts that meet in an area too large for a joint are one bone again: a shell of it, a shaft and its head."""
    parts = parts.copy()
    while True:
        areas_mm2 = _contacts_mm2(parts, spacing_mm)
        millilitres = np.bincount(parts.ravel()) * np.prod(spacing_mm) / 1000
        shares = {pair: area / (100 * min(millilitres[list(pair)]) ** (2 / 3)) for pair, area in areas_mm2.items()}
        if not shares or max(shares.values()) < _JOINT_SHARE:
            return parts
        first, second = max(shares, key=shares.get)
        parts[parts == second] = first


def _contacts_mm2(parts: np.ndarray, spacing_mm) -> dict[tuple[int, int], float]:
    """Area of the faces between each two parts that touch."""
    areas_mm2: dict[tuple[int, int], float] = {}
    for axis in range(3):
        ahead, behind = np.moveaxis(parts, axis, 0)[1:], np.moveaxis(parts, axis, 0)[:-1]
        meet = (ahead != behind) & (ahead > 0) & (behind > 0)
        pairs = np.sort(np.stack([ahead[meet], behind[meet]], axis=1), axis=1)
        for pair, count in zip(*np.unique(pairs, axis=0, return_counts=True)):
            face_mm2 = np.prod([s for a, s in enumerate(spacing_mm) if a != axis])
            areas_mm2[tuple(map(int, pair))] = areas_mm2.get(tuple(map(int, pair)), 0.0) + float(count * face_mm2)
    return areas_mm2


def _closed(mask: np.ndarray, spacing_mm) -> np.ndarray:
    grown = edt.edt(~mask, anisotropy=spacing_mm, black_border=False) <= _GAP_MM
    return mask | (edt.edt(grown, anisotropy=spacing_mm, black_border=False) > _GAP_MM)


def _filled(mask: np.ndarray, values: np.ndarray, allowed: np.ndarray, spacing_mm) -> np.ndarray:
    """With the holes of its sections across each axis that may be marrow, and all that it encloses."""
    out = mask.copy()
    for axis in range(3):
        area_cm2 = np.prod([s for a, s in enumerate(spacing_mm) if a != axis]) / 100
        for plane, own, free in zip(*(np.moveaxis(a, axis, 0) for a in (out, values, allowed))):
            if plane.any():
                plane |= _holes(plane, own, area_cm2, mirror=axis == 0) & free
    return out | (ndimage.binary_fill_holes(out) & allowed)


def _holes(plane: np.ndarray, values: np.ndarray, area_cm2: float, mirror: bool) -> np.ndarray:
    """Holes of a section that may be marrow; `mirror` closes bones that the border of the scan cuts."""
    margin = [min(24, n - 1) if mirror else 0 for n in plane.shape]
    wide = np.pad(plane, [(m, m) for m in margin], mode="reflect")
    inner = tuple(slice(m, m + n) for m, n in zip(margin, plane.shape))
    holes, count = ndimage.label(ndimage.binary_fill_holes(wide) & ~wide)
    areas = np.bincount(holes.ravel(), minlength=count + 1) * area_cm2
    holes = holes[inner]
    cut = np.unique(np.concatenate([holes[[0, -1]].ravel(), holes[:, [0, -1]].ravel()]))
    keep = np.zeros(count + 1, bool)
    for label in np.unique(holes[holes > 0]):
        low, usual, high = np.percentile(values[holes == label], (5, 50, 95))
        alike = _CANAL_HU[0] < usual < _CANAL_HU[1] and high - low < _CANAL_SPREAD_HU
        like_canal = alike and (areas[label] > _CANAL_CM2 or label in cut)
        keep[label] = areas[label] < _MARROW_CM2 and usual > -250 and not like_canal
    return keep[holes]


# ---- air, and what is left -----------------------------------------------------------------------------------------


def _air(hu, body, taken, spacing_mm) -> Iterable[tuple[str, np.ndarray]]:
    """Lung and gas: air inside the body, in parts of some size, each its own label."""
    depth_mm = edt.edt(body, anisotropy=spacing_mm, black_border=False)
    parts = cc3d.connected_components((hu < AIR_HU) & (depth_mm > 4.0), connectivity=6)
    sizes = np.bincount(parts.ravel())
    labelled = np.bincount(parts.ravel(), taken.ravel())
    order = [v for v in np.argsort(-sizes, kind="stable") if v and sizes[v] >= _voxels(1.0, spacing_mm)]
    for number, value in enumerate(order[:12], start=1):
        if labelled[value] < 0.2 * sizes[value]:  # else it is a rim that the case's own label leaves
            mask = parts == value
            kind = "lung" if sizes[value] > _voxels(60.0, spacing_mm) and np.median(hu[mask]) > _LUNG_HU else "gas"
            yield f"{kind}_{number}", mask


def _rest(hu, body, taken, other_fat, spacing_mm) -> Iterable[tuple[str, np.ndarray]]:
    """Skin, and fat that neither the fat under the skin nor that among the organs is."""
    smooth = smoothed(hu, spacing_mm)
    depth_mm = edt.edt(body, anisotropy=spacing_mm, black_border=False)
    free = body & ~taken
    yield "skin", free & (depth_mm <= _SKIN_MM) & (smooth > -250)
    fat = free & (smooth > _FAT_HU[0]) & (smooth < _FAT_HU[1]) & (depth_mm > 4.0)
    fat = cc3d.connected_components(fat, connectivity=6)
    # Where it runs into other fat, nothing to be seen parts the two: such a part stays without a label.
    near = edt.edt(~other_fat, anisotropy=spacing_mm, black_border=False) <= 1.01 * max(spacing_mm)
    sizes, touching = (
        np.bincount(fat[where].ravel(), minlength=int(fat.max()) + 1) for where in (fat > 0, near & (fat > 0))
    )
    good = (sizes >= _voxels(1.0, spacing_mm)) & (touching < 0.12 * sizes)
    yield "intermuscular_fat", good[fat] & (fat > 0)


def _voxels(millilitres: float, spacing_mm) -> int:
    return max(1, int(millilitres * 1000 / np.prod(spacing_mm)))


def write_derived_case(folder: str | os.PathLike, volume: Volume, derived: Derived) -> Path:
    """Write `ct.nii.gz`, `seg.nii.gz` and `labels.json` into `folder`, the last one last."""
    folder = Path(folder)
    write_volume(folder / "ct.nii.gz", volume)
    write_mask(folder / "seg.nii.gz", derived.labels_ijk, volume)
    present = np.bincount(derived.labels_ijk.ravel(), minlength=len(derived.names) + 1)[1:]
    labels = {str(v): n for v, (n, count) in enumerate(zip(derived.names, present), start=1) if count}
    with atomic_path(folder / "labels.json") as path:
        path.write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    return folder
