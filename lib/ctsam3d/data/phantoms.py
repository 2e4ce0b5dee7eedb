"""Synthetic CT volumes with labels: an endless supply of torsos for training and tests.

No patient's data are in them. Every anatomy is drawn from its seed in millimetres, so the same seed gives the same
patient on any voxel grid; only the noise belongs to the grid.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from ctsam3d.data import phantom_frame, phantom_organs, phantom_rich
from ctsam3d.data.files import atomic_path
from ctsam3d.data.labels import NAMES
from ctsam3d.data.phantom_canvas import Canvas, SmoothField
from ctsam3d.data.phantom_limbs import LIMB_REGIONS_MM, paint_limbs
from ctsam3d.data.phantom_materials import Material, tissue_tables
from ctsam3d.data.phantom_scanner import Scanner, narrowed, render
from ctsam3d.volume import Volume

# Lowest and highest level in reference mm; 0 is the level of the femoral heads.
REGIONS_MM = {"trunk": (-25.0, 418.0), "abdomen": (95.0, 365.0), "chest": (270.0, 525.0), "pelvis": (-60.0, 170.0)}

_PAINTERS = (
    phantom_frame.paint_back_muscles,
    phantom_organs.paint_lungs,
    phantom_frame.paint_shoulders,
    phantom_frame.paint_ribs,
    phantom_organs.paint_pelvic_glands,
    phantom_organs.paint_small_bowel,
    phantom_organs.paint_heart,
    phantom_organs.paint_liver_and_spleen,
    phantom_organs.paint_kidneys,
    phantom_organs.paint_stomach,
    phantom_organs.paint_colon,
    phantom_organs.paint_bladder,
    phantom_frame.paint_spine,
    phantom_frame.paint_pelvis,
    phantom_organs.paint_vessels,
)  # later ones lie on top of earlier ones


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan with its ground truth.

    Attributes:
        volume: int16 HU, affine RAS.
        labels_ijk: uint8, same shape: value v is `names[v - 1]`, 0 where the body has no such structure.
        names: `labels.NAMES`; of a rich phantom followed by further ones.
    """

    volume: Volume
    labels_ijk: np.ndarray
    names: tuple[str, ...] = NAMES


def make_phantom(
    seed: int, spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5), region: str = "trunk", rich: bool = False
) -> Phantom:
    """One patient, the same for the same `seed` at any spacing and in any region.

    Args:
        seed: non-negative.
        spacing_mm: voxel size along R, A, S.
        region: a key of `REGIONS_MM`: the part of the body that is in the scan.
        rich: with masses, branching vessels, single muscles and implants, a label for nearly everything, and scanners
            of all kinds, some of which see a part only. What is drawn for these depends on region and spacing too.

    Raises:
        ValueError: a spacing that is not positive and finite, or an unknown region.
    """
    _check(spacing_mm, region, REGIONS_MM)
    # A stream of its own for each painter: what one of them draws moves no other organ.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(len(_PAINTERS) + 4)]
    frame = phantom_frame.Frame(streams[0])
    canvas, world_mm = _canvas(streams[1], frame, spacing_mm, REGIONS_MM[region])
    phantom_frame.paint_walls(canvas, frame, streams[2])
    for painter, rng in zip(_PAINTERS, streams[4:]):
        painter(canvas, frame, rng)
    _paint_table(canvas, world_mm)
    affine = np.diag([*map(float, spacing_mm), 1.0])
    affine[:3, 3] = [axis[0] for axis in world_mm]
    if rich:
        return _enriched(seed, canvas, affine, spacing_mm)
    return Phantom(Volume(_render(canvas, spacing_mm, streams[3]), affine), canvas.labels)


def _enriched(seed: int, canvas: Canvas, affine: np.ndarray, spacing_mm) -> Phantom:
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence((seed, 1)).spawn(6)]
    palette = phantom_rich.Palette([tuple(map(float, row)) for row in zip(*tissue_tables(rngs[0]))])
    phantom_rich.split_muscles(canvas, palette, rngs[1])
    phantom_rich.paint_vessels(canvas, palette, rngs[2])
    phantom_rich.paint_masses(canvas, palette, rngs[3])
    phantom_rich.paint_implants(canvas, palette, rngs[4])
    phantom_rich.label_the_rest(canvas, palette)
    return scanned(canvas.materials, canvas.labels, canvas.fine, palette, affine, spacing_mm, rngs[5])


def scanned(materials, labels, relief, palette: phantom_rich.Palette, affine, spacing_mm, rng) -> Phantom:
    """A painted body as a scanner of some kind shows it, or a part of it; what is small has no label."""
    hu = render(materials, palette.table, relief, spacing_mm, Scanner.drawn(rng, spacing_mm[2]), rng)
    box, lacking = narrowed(hu.shape, spacing_mm, rng)
    hu, labels = np.ascontiguousarray(hu[box]), np.ascontiguousarray(labels[box])
    if lacking is not None:
        hu[lacking], labels[lacking] = -1024, 0
    small = np.bincount(labels.ravel(), minlength=256) < phantom_rich.LEAST_VOXELS
    labels[small[labels]] = 0
    affine = affine.copy()
    affine[:3, 3] += [s.start * step for s, step in zip(box, spacing_mm)]
    return Phantom(Volume(hu, affine), labels, tuple(palette.names))


def make_limb_phantom(seed: int, spacing_mm=(1.5, 1.5, 1.5), region: str = "thighs") -> Phantom:
    """A rich phantom of limbs.

    Args:
        seed, spacing_mm: as of `make_phantom`.
        region: a key of `phantom_limbs.LIMB_REGIONS_MM`.

    Raises:
        ValueError: a spacing that is not positive and finite, or an unknown region.
    """
    _check(spacing_mm, region, LIMB_REGIONS_MM)
    canvas, palette, world_mm = paint_limbs(seed, spacing_mm, region)
    affine = np.diag([*map(float, spacing_mm), 1.0])
    affine[:3, 3] = [axis[0] for axis in world_mm]
    rng = np.random.default_rng((seed, 3))
    return scanned(canvas.materials, canvas.labels, canvas.fine, palette, affine, spacing_mm, rng)


def _check(spacing_mm, region: str, regions) -> None:
    if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing_mm}")
    if region not in regions:
        raise ValueError(f"region must be one of {', '.join(regions)}, got {region!r}")


def _canvas(rng, frame, spacing_mm, levels_mm) -> tuple[Canvas, list[np.ndarray]]:
    """The canvas of a patient with size and pose drawn, and the world coordinates of its voxels along each axis."""
    scale = rng.uniform(0.94, 1.07) * rng.uniform(0.97, 1.03, 3)
    yaw, pitch, roll = rng.normal(0, (0.05, 0.03, 0.025))
    (cy, cp, cr), (sy, sp, sr) = np.cos((yaw, pitch, roll)), np.sin((yaw, pitch, roll))
    around_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    rotation = around_z @ around_x @ around_y
    pivot = np.array([0.0, 0.0, 190.0])
    shift = pivot - rotation @ pivot + rng.normal(0, (4, 3, 5))
    warp = [SmoothField(rng, 62.0) for _ in range(3)]
    relief = SmoothField(rng, 24.0), SmoothField(rng, 9.0)
    half_x = frame.muscle_x.max() + 1.1 * frame.fat_mm + 10
    half_y = frame.muscle_y.max() + frame.fat_mm
    belly = 1.2 * frame.muscle_centre_y.max() + 0.3 * frame.fat_mm
    limits = ((-half_x, half_x), (-half_y - 40, half_y + belly), levels_mm)
    world = [np.arange(a * s, b * s, step) for (a, b), s, step in zip(limits, scale, spacing_mm)]
    axes = tuple(w / s for w, s in zip(world, scale))
    return Canvas(axes, rotation, shift, warp, rng.uniform(2.0, 4.0), relief), world


def _paint_table(canvas: Canvas, world_mm: list[np.ndarray]) -> None:
    """A curved table just below the lowest point of the back; it moves with no patient, so it knows no anatomy."""
    columns = np.flatnonzero((canvas.materials != Material.AIR).any(axis=(0, 2)))
    x = world_mm[0][:, None] - world_mm[0].mean()
    top = world_mm[1][columns[0]] - 3.0 + 0.0008 * x**2
    depth = top - world_mm[1][None, :]
    on_table = (np.abs(x) < 205) & (depth > 0) & (depth < 26)
    table = np.where((depth < 2.5) | (depth > 23.5), np.uint8(Material.TABLE_SHELL), np.uint8(Material.TABLE_FOAM))
    air = canvas.materials == Material.AIR
    np.copyto(canvas.materials, table[:, :, None], where=air & on_table[:, :, None])


def _render(canvas: Canvas, spacing_mm, rng: np.random.Generator) -> np.ndarray:
    """HU as a scanner would show the materials: one blur gives partial volume and correlates the noise."""
    mean, coarse, fine = tissue_tables(rng)
    noise_sd, blur_mm = rng.choice((6.0, 10.0, 16.0, 24.0)) * rng.uniform(0.8, 1.2), rng.uniform(0.7, 1.1)
    sigma = [max(0.5, blur_mm / s) for s in spacing_mm]
    impulse = np.zeros((9, 9, 9), np.float32)
    impulse[4, 4, 4] = 1
    gain = 1 / np.sqrt((ndimage.gaussian_filter(impulse, sigma, truncate=3.0) ** 2).sum())
    hu = rng.standard_normal(canvas.materials.shape, dtype=np.float32)
    hu *= (gain * np.sqrt(noise_sd**2 + fine**2))[canvas.materials]
    hu += mean[canvas.materials]
    hu += coarse[canvas.materials] * canvas.fine
    for axis, width in enumerate(sigma):
        ndimage.gaussian_filter1d(hu, width, axis=axis, output=hu, truncate=3.0)
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu).astype(np.int16)


def write_phantom_case(folder: str | os.PathLike, phantom: Phantom) -> Path:
    """Write `ct.nii.gz`, `seg.nii.gz` and `labels.json` (value -> name, those present) into `folder`.

    Each file appears whole or not at all; one that is there is replaced.
    """
    folder = Path(folder)
    affine = phantom.volume.affine_ras_mm
    for name, array in (("ct", phantom.volume.array_ijk.astype(np.int16)), ("seg", phantom.labels_ijk)):
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.header.set_slope_inter(1, 0)
        with atomic_path(folder / f"{name}.nii.gz") as path:
            nib.save(image, path)
    present = {str(v): phantom.names[v - 1] for v in np.flatnonzero(np.bincount(phantom.labels_ijk.ravel())) if v}
    with atomic_path(folder / "labels.json") as path:
        path.write_text(json.dumps(present, indent=1) + "\n", encoding="utf-8")
    return folder


def make_phantom_cases(
    folder: str | os.PathLike, count: int, seed: int, spacing_mm=(1.5, 1.5, 1.5), region: str = "trunk", rich=False
) -> list[Path]:
    """Write the phantoms of seeds `seed` to `seed + count - 1` as `folder/phantom_<seed>`."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return [
        write_phantom_case(Path(folder) / f"phantom_{s}", make_phantom(s, spacing_mm, region, rich))
        for s in range(seed, seed + count)
    ]
