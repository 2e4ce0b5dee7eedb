"""A baseline without a network: region growing by intensity from the same clicks, by the same protocol.

ITK's ConfidenceConnected takes what is connected to the clicks within a multiple of the standard deviation around them.
What grows from negative clicks is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ctsam3d.model.build import PATCH_SIZE, SPACING_MM
from ctsam3d.volume import Box, Click, Volume, check_click_ijk

NAME = "region-growing"
MULTIPLIER, ITERATIONS, RADIUS = 2.5, 4, 1  # those of ITK's example, with a ball of one voxel around each click
_HU = (-1024.0, 1500.0)  # beyond them nothing tells tissues apart, and metal would spread the deviation


@dataclass(frozen=True)
class _Info:
    """What a report says of weights, for a method that has none."""

    version: str = f"{NAME} (ConfidenceConnected, multiplier {MULTIPLIER}, {ITERATIONS} iterations, radius {RADIUS})"
    sha256: str = f"none: {NAME} {MULTIPLIER} {ITERATIONS} {RADIUS}"
    hu_window: tuple[float, float] = _HU
    spacing_mm: float = SPACING_MM
    feedback: int = 0
    peak_threshold: float = 0.0
    notes: Any = field(default_factory=lambda: MappingProxyType({}))


class RegionGrower:
    """Takes a `Segmenter`'s place in an evaluation."""

    def __init__(self):
        self.info, self.device, self.dtype = _Info(), torch.device("cpu"), torch.float32

    def session(self, volume: Volume, expand: bool = True) -> RegionGrowingSession:
        """A new structure to click in `volume`; see `RegionGrowingSession`."""
        return RegionGrowingSession(volume, expand)


class RegionGrowingSession:
    """One structure in one volume.

    Args:
        expand: grow through the whole scan; else as far as a patch around each click reaches.
    """

    patches = 0  # there are none

    def __init__(self, volume: Volume, expand: bool = True):
        self.volume, self.expand = volume, expand
        self.clicks: tuple[Click, ...] = ()
        self._mask_ijk = np.zeros(volume.shape_ijk, np.uint8)

    @property
    def mask_box_ijk(self) -> Box:
        """All of the scan."""
        return Box((0, 0, 0), self.volume.shape_ijk)

    def mask(self, box_ijk: Box | None = None) -> np.ndarray:
        """uint8 (I, J, K), or its part in a box; a copy."""
        return self._mask_ijk[(box_ijk or self.mask_box_ijk).slices()].copy()

    def click(self, ijk, positive: bool = True, seconds: float | None = None) -> None:
        """Grow anew from all clicks.

        Raises:
            ValueError, TypeError: a click that cannot be used.
        """
        self.clicks += (Click(check_click_ijk(ijk, self.volume.shape_ijk), bool(positive)),)
        grown = {sign: self._grown([c.ijk for c in self.clicks if c.positive == sign]) for sign in (True, False)}
        mask = grown[True] & ~grown[False]
        for click in self.clicks:
            mask[click.ijk] = click.positive
        self._mask_ijk = mask.astype(np.uint8)

    def _grown(self, seeds_ijk) -> np.ndarray:
        """bool (I, J, K)."""
        out = np.zeros(self.volume.shape_ijk, bool)
        if not seeds_ijk:
            return out
        box = self._box(np.array(seeds_ijk))
        hu = np.clip(self.volume.array_ijk[box.slices()].astype(np.float32), *_HU)
        image = sitk.GetImageFromArray(np.ascontiguousarray(hu.T))  # sitk's index is then i, j, k
        seeds = [tuple(int(v - a) for v, a in zip(seed, box.start)) for seed in seeds_ijk]
        grown = sitk.ConfidenceConnected(image, seeds, ITERATIONS, MULTIPLIER, RADIUS, 1)
        out[box.slices()] = sitk.GetArrayFromImage(grown).T > 0
        return out

    def _box(self, seeds_ijk: np.ndarray) -> Box:
        if self.expand:
            return self.mask_box_ijk
        reach = np.ceil(PATCH_SIZE * SPACING_MM / 2 / np.array(self.volume.spacing_ijk_mm)).astype(int)
        start = np.maximum(seeds_ijk.min(0) - reach, 0)
        stop = np.minimum(seeds_ijk.max(0) + reach + 1, self.volume.shape_ijk)
        return Box(tuple(map(int, start)), tuple(map(int, stop)))
