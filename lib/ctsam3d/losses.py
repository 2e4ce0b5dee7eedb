"""Losses of S, from logits (paper, section 3.5; constants of the published configuration)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT, DICE_WEIGHT = 0.2, 0.8
FOCAL_ALPHA, FOCAL_GAMMA = 0.8, 2.0
DICE_SMOOTHING = 1.0


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``alpha * (1 - exp(-bce))^gamma * bce`` with `bce` the mean binary cross-entropy of each patch.

    Args:
        logits, target: (B, 1, D, H, W), target in {0, 1}.

    Returns:
        (B,), a value per patch.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
    return FOCAL_ALPHA * (1 - torch.exp(-bce)) ** FOCAL_GAMMA * bce


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` of each patch, with p = sigmoid(logits); (B,)."""
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    overlap = 2 * (probability * target).sum(1) + DICE_SMOOTHING
    return 1 - overlap / (probability.sum(1) + target.sum(1) + DICE_SMOOTHING)


def mask_loss(*, focal: Tensor | float, dice: Tensor | float) -> Tensor | float:
    """0.2 focal + 0.8 Dice."""
    return FOCAL_WEIGHT * focal + DICE_WEIGHT * dice
