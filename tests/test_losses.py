"""Losses against figures written out by hand."""

import math

import pytest
import torch

from ctsam3d.losses import dice_loss, focal_loss, mask_loss


def patch(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, 1, -1)


def test_dice_by_hand():
    # p = (0.5, 0.5), t = (1, 0): 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    assert dice_loss(patch([0.0, 0.0]), patch([1.0, 0.0])).item() == pytest.approx(1 / 3)


def test_focal_by_hand():
    # bce = ln 2 at logit 0, so 1 - exp(-bce) = 1/2: 0.8 * 1/4 * ln 2
    assert focal_loss(patch([0.0, 0.0]), patch([1.0, 0.0])).item() == pytest.approx(0.2 * math.log(2))


def test_focal_takes_the_mean_of_the_patch_first():
    logits, target = patch([5.0, 0.0]), patch([1.0, 1.0])
    bce = (math.log1p(math.exp(-5)) + math.log(2)) / 2
    assert focal_loss(logits, target).item() == pytest.approx(0.8 * (1 - math.exp(-bce)) ** 2 * bce)


def test_weights_and_one_value_a_patch():
    logits, target = torch.randn(3, 1, 4, 4, 4), (torch.rand(3, 1, 4, 4, 4) > 0.5).float()
    assert focal_loss(logits, target).shape == dice_loss(logits, target).shape == (3,)
    assert mask_loss(focal=1.0, dice=0.0) == 0.2 and mask_loss(focal=0.0, dice=1.0) == 0.8


def test_perfect_and_empty():
    target = torch.zeros(1, 1, 4, 4, 4)
    for loss in (focal_loss, dice_loss):
        assert loss(torch.full_like(target, -30), target).item() == pytest.approx(0, abs=1e-6)
        assert loss(torch.full_like(target, 30), target).item() > 0.9
        assert loss(torch.full_like(target, 30), torch.ones_like(target)).item() == pytest.approx(0, abs=1e-6)
