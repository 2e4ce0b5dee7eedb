"""Prompt maps: clicks and the previous mask as three volumes that lie on the patch (paper, section 3.3, PSAP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLICK_SIGMA = 2.0  # voxels
CLICK_RADIUS = 8  # voxels per axis; the map is 0 outside the box of 2 * 8 + 1 voxels
MAX_CLICKS = 24  # clicks of one sign kept per patch, the latest
PREVIOUS_EPSILON = 0.01  # of probability; a sigmoid is nowhere zero, and zeros need not be computed (see `PsapLayer`)

Zyx = tuple[int, int, int]


def click_gaussian() -> Tensor:
    """The footprint of one click, (17, 17, 17), 1 at its centre.

    Its values are those of half precision, as in the reference figures, so that a map is the same in fp16 and fp32.
    """
    offsets = torch.arange(-CLICK_RADIUS, CLICK_RADIUS + 1, dtype=torch.float32)
    squares = offsets**2
    distance = squares[:, None, None] + squares[None, :, None] + squares[None, None, :]  # z, y, x
    return torch.exp(-distance / (2 * CLICK_SIGMA**2)).half().float()


def click_map(clicks_zyx: Sequence[Zyx], size: Zyx) -> Tensor:
    """The map of the clicks of one sign on a patch, (D, H, W).

    A later click overwrites what an earlier one left inside its box.

    Raises:
        ValueError: a click outside the patch.
    """
    out, footprint = torch.zeros(tuple(size)), click_gaussian()
    for click in list(clicks_zyx)[-MAX_CLICKS:]:
        if not all(0 <= c < n for c, n in zip(click, size)):
            raise ValueError(f"click {tuple(click)} is outside the patch {tuple(size)}")
        target = tuple(slice(max(0, c - CLICK_RADIUS), min(n, c + CLICK_RADIUS + 1)) for c, n in zip(click, size))
        source = tuple(slice(t.start - c + CLICK_RADIUS, t.stop - c + CLICK_RADIUS) for t, c in zip(target, click))
        out[target] = footprint[source]
    return out


def previous_map(probability: Tensor) -> Tensor:
    """The map of a previous mask: its probability, zero where that is below `PREVIOUS_EPSILON`."""
    return torch.where(probability < PREVIOUS_EPSILON, 0.0, probability)


def prompt_maps(positive_zyx: Sequence[Zyx], negative_zyx: Sequence[Zyx], previous: Tensor | None, size: Zyx) -> Tensor:
    """[P, N, Y] of one patch, (3, D, H, W).

    Args:
        positive_zyx, negative_zyx: clicks as voxel indices of the patch, oldest first.
        previous: the previous mask's probability (D, H, W), or None for none.
        size: (D, H, W) of the patch.
    """
    previous = torch.zeros(tuple(size)) if previous is None else previous_map(previous.detach().cpu())
    return torch.stack([click_map(positive_zyx, size), click_map(negative_zyx, size), previous])
