"""How a scanner shows a rich phantom: its dose, sharpness, slice thickness, streaks of metal, and how much it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

METAL_HU = 2000.0  # what is brighter casts streaks


@dataclass(frozen=True)
class Scanner:
    """Settings of one scan.

    Attributes:
        noise_hu: standard deviation.
        grain_mm: over which the noise is correlated within a slice; a third of it across slices.
        blur_mm: of the point spread (standard deviation).
        slice_mm: thickness; what lies within it is averaged.
        lateral_hu: noise that is correlated from left to right, as behind shoulders and hips.
    """

    noise_hu: float
    grain_mm: float
    blur_mm: float
    slice_mm: float
    lateral_hu: float

    @staticmethod
    def drawn(rng: np.random.Generator, slice_mm: float) -> Scanner:
        noise_hu = rng.choice((4.0, 7.0, 12.0, 18.0, 28.0, 42.0)) * rng.uniform(0.8, 1.2)
        lateral_hu = rng.uniform(5, 25) if rng.random() < 0.15 else 0.0
        return Scanner(float(noise_hu), rng.uniform(0.5, 1.4), rng.uniform(0.5, 1.2), slice_mm, lateral_hu)


def render(materials, table, relief, spacing_mm, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """int16 HU of a material map.

    Args:
        materials: (I, J, K) indices into `table`, axes Right, Anterior, Superior.
        table: (n, 3) mean, coarse and fine texture in HU.
        relief: (I, J, K) field of standard deviation 1, the coarse texture.
    """
    mean, coarse, fine = np.asarray(table, np.float32).T
    hu = mean[materials]
    hu += coarse[materials] * relief
    hu += fine[materials] * _grain(rng, materials.shape, [0.8 / s for s in spacing_mm])
    sigma = [scanner.blur_mm / s for s in spacing_mm]
    sigma[2] = max(sigma[2], 0.3 * scanner.slice_mm / spacing_mm[2])
    for axis, width in enumerate(sigma):
        ndimage.gaussian_filter1d(hu, width, axis=axis, output=hu, truncate=3.0)
    widths = [scanner.grain_mm / spacing_mm[0], scanner.grain_mm / spacing_mm[1], scanner.grain_mm / 3 / spacing_mm[2]]
    hu += np.float32(scanner.noise_hu) * _grain(rng, materials.shape, widths)
    if scanner.lateral_hu:
        hu += np.float32(scanner.lateral_hu) * _grain(rng, materials.shape, (12 / spacing_mm[0], 0.6, 0.0))
    _add_streaks(hu, mean[materials] > METAL_HU, spacing_mm, rng)
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu).astype(np.int16)


def _grain(rng: np.random.Generator, shape, sigma) -> np.ndarray:
    """Noise of standard deviation 1, correlated over `sigma` voxels."""
    out = rng.standard_normal(shape, dtype=np.float32)
    for axis, width in enumerate(sigma):
        if width > 0.15:
            ndimage.gaussian_filter1d(out, width, axis=axis, output=out, truncate=3.0)
    return out / out[::3, ::3, ::3].std()


def _add_streaks(hu: np.ndarray, metal: np.ndarray, spacing_mm, rng: np.random.Generator) -> None:
    """Bright and dark rays from the metal of each slice, steady over some slices, that fade with distance."""
    amounts = metal.sum(axis=(0, 1)) * spacing_mm[0] * spacing_mm[1]
    count = 720
    rays = rng.standard_normal((hu.shape[2], count)).astype(np.float32)
    rays = ndimage.gaussian_filter(rays, (1.5, 2.5), mode=("nearest", "wrap"))
    rays /= rays.std() + 1e-6
    i, j = (np.arange(n, dtype=np.float32) * s for n, s in zip(hu.shape[:2], spacing_mm))
    for k in np.flatnonzero(amounts > 4):
        parts, number = ndimage.label(metal[:, :, k])
        for centre in ndimage.center_of_mass(metal[:, :, k], parts, range(1, number + 1)):
            x, y = i[:, None] - centre[0] * spacing_mm[0], j[None, :] - centre[1] * spacing_mm[1]
            turn = np.arctan2(y, x) * np.float32(count / (2 * np.pi))
            far_mm = np.hypot(x, y)
            strength = np.float32(60 * np.sqrt(min(amounts[k], 600) / 100)) * np.exp(-far_mm / 70)
            hu[:, :, k] += strength * rays[k][turn.astype(int) % count] * (far_mm > 3)


def narrowed(shape, spacing_mm, rng: np.random.Generator) -> tuple[tuple[slice, slice, slice], np.ndarray | None]:
    """The part of a scan that is reconstructed, and the voxels (I, J) of it that the round field of view lacks.

    A third of the scans are cut to a box, some lose their corners to a circle; None where nothing is lacking.
    """
    box = [slice(0, n) for n in shape]
    if rng.random() < 0.35:
        for axis, least_mm in enumerate((140.0, 130.0, 70.0)):
            least = min(shape[axis], int(least_mm / spacing_mm[axis]))
            size = int(rng.integers(least, shape[axis] + 1))
            start = int(rng.integers(0, shape[axis] - size + 1))
            box[axis] = slice(start, start + size)
    lacking = None
    if rng.random() < 0.2:
        i, j = ((np.arange(s.stop - s.start) - (s.stop - s.start - 1) / 2) * mm for s, mm in zip(box[:2], spacing_mm))
        radius_mm = rng.uniform(0.8, 1.1) * max(i[-1], j[-1])
        lacking = np.hypot(i[:, None], j[None, :]) > radius_mm
    return tuple(box), lacking
