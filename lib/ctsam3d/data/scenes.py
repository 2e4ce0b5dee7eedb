"""Random scenes: CT-like volumes of structures without anatomy, which touch and fill nearly the whole volume.

A network that is to segment whatever is clicked learns from them what a boundary is, not what an organ is. The same
seed gives the same scene.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
from scipy import ndimage

from ctsam3d.data import scene_shapes
from ctsam3d.data.files import atomic_path
from ctsam3d.data.phantom_canvas import SmoothField
from ctsam3d.data.scene_canvas import SPACING_MM, SceneCanvas
from ctsam3d.volume import Volume

MOST_LABELS, LEAST_VOXELS = 250, 50
SLICES_MM = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)

_PAINTERS = (
    scene_shapes.paint_cells,
    scene_shapes.paint_plates,
    scene_shapes.paint_inner_trees,
    scene_shapes.paint_hollow,
    scene_shapes.paint_masses,
    scene_shapes.paint_bones,
    scene_shapes.paint_rows,
    scene_shapes.paint_outside,
    scene_shapes.paint_trees,
)  # later ones lie on top of earlier ones


@dataclass(frozen=True, eq=False)
class Scene:
    """A random scene with its ground truth.

    Attributes:
        volume: int16 HU, voxels of 1.5 mm.
        labels_ijk: uint8, same shape; each label is connected (26 neighbours) and has at least 50 voxels.
        names: of label value v at index v - 1.
    """

    volume: Volume
    labels_ijk: np.ndarray
    names: tuple[str, ...]


def make_scene(seed: int, shape_ijk: tuple[int, int, int] | None = None) -> Scene:
    """The scene of a seed.

    Args:
        seed: non-negative.
        shape_ijk: voxels; default 128 to 160 along each axis, drawn from the seed.

    Raises:
        ValueError: fewer than 32 voxels along an axis.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(len(_PAINTERS) + 3)]
    if shape_ijk is None:
        shape_ijk = tuple(int(n) for n in streams[0].integers(16, 21, 3) * 8)
    if len(shape_ijk) != 3 or min(shape_ijk) < 32:
        raise ValueError(f"shape_ijk must be three sizes of at least 32, got {shape_ijk}")
    canvas = SceneCanvas(streams[1], shape_ijk)
    for painter, rng in zip(_PAINTERS, streams[3:]):
        painter(canvas, rng)
    labels, names = _connected(canvas)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    return Scene(Volume(_render(canvas, streams[2]), affine), labels, names)


def _connected(canvas: SceneCanvas) -> tuple[np.ndarray, tuple[str, ...]]:
    """Connected parts as labels of their own, the largest 250 of at least 50 voxels, and their names."""
    parts, count = cc3d.connected_components(canvas.labels, connectivity=26, return_N=True)
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    voxels[0] = 0
    kept = [part for part in np.argsort(-voxels, kind="stable")[:MOST_LABELS] if voxels[part] >= LEAST_VOXELS]
    origin = np.zeros(count + 1, np.uint16)
    origin[parts.ravel()] = canvas.labels.ravel()
    table = np.zeros(count + 1, np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    names = tuple(f"{canvas.kinds[origin[part]]}_{value:03d}" for value, part in enumerate(kept, start=1))
    return table[parts], names


def _render(canvas: SceneCanvas, rng: np.random.Generator) -> np.ndarray:
    """HU of the tissues with texture at two scales, the scanner's blur and noise, and its slice thickness."""
    mean, coarse, fine = np.array(canvas.table, np.float32).T
    hu = mean[canvas.materials]
    hu += coarse[canvas.materials] * SmoothField(rng, rng.uniform(7, 16)).sample(canvas.axes_mm)
    grain = _grain(rng, canvas.shape_ijk, (rng.uniform(0.5, 1.2),) * 3)
    grain *= fine[canvas.materials]
    hu += grain
    blur_voxels = rng.uniform(0.3, 0.8)
    for axis in range(3):
        ndimage.gaussian_filter1d(hu, blur_voxels, axis=axis, output=hu, truncate=3.0)
    sharpness = rng.uniform(0.35, 0.9)
    noise_hu = rng.choice((4.0, 8.0, 14.0, 22.0, 35.0)) * rng.uniform(0.8, 1.2)
    hu += np.float32(noise_hu) * _grain(rng, canvas.shape_ijk, (sharpness, sharpness, 0.5 * sharpness))
    hu = _thick_slices(hu, float(rng.choice(SLICES_MM, p=(0.3, 0.15, 0.15, 0.2, 0.08, 0.12))))
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu).astype(np.int16)


def _grain(rng: np.random.Generator, shape, sigma) -> np.ndarray:
    """Noise of standard deviation 1, correlated over `sigma` voxels."""
    out = rng.standard_normal(shape, dtype=np.float32)
    for axis, width in enumerate(sigma):
        ndimage.gaussian_filter1d(out, width, axis=axis, output=out, truncate=3.0)
    return out / out[::3, ::3, ::3].std()


def _thick_slices(hu: np.ndarray, slice_mm: float) -> np.ndarray:
    """As if reconstructed in slices of `slice_mm` along k and interpolated back: averaged, sampled, linear between."""
    if slice_mm <= SPACING_MM:
        return hu
    count = hu.shape[2]
    at = np.arange(count)
    thick = slice_mm / SPACING_MM
    distance = np.abs(at[:, None] - np.arange(0, count, thick))  # voxels to slice centres
    profile = (0.5 + thick / 2 - distance).clip(0, 1)  # a box as wide as a slice
    profile /= profile.sum(axis=0)
    back = (1 - distance / thick).clip(0, 1)
    back /= back.sum(axis=1, keepdims=True)  # beyond the last slice it alone counts
    return (hu.reshape(-1, count) @ (profile @ back.T).astype(np.float32)).reshape(hu.shape)


def write_scene_case(folder: str | os.PathLike, scene: Scene) -> Path:
    """Write `ct.nii.gz`, `seg.nii.gz` and `labels.json` into `folder`; each file appears whole or not at all."""
    folder = Path(folder)
    for name, array in (("ct", scene.volume.array_ijk), ("seg", scene.labels_ijk)):
        image = nib.Nifti1Image(array, scene.volume.affine_ras_mm)
        image.header.set_xyzt_units("mm")
        image.header.set_slope_inter(1, 0)
        with atomic_path(folder / f"{name}.nii.gz") as path:
            nib.save(image, path)
    with atomic_path(folder / "labels.json") as path:
        path.write_text(json.dumps(dict(enumerate(scene.names, start=1)), indent=1) + "\n", encoding="utf-8")
    return folder
