"""One batch through the N click rounds of Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctsam3d.clicks import first_click, next_click
from ctsam3d.losses import DICE_WEIGHT, FOCAL_WEIGHT, dice_loss, focal_loss
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.model.sam3d import SAM3D
from ctsam3d.resample import scale_hu
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.patches import Sample


@dataclass(frozen=True)
class RoundResult:
    """Means over the batch after one click round."""

    focal: float
    dice: float
    dsc: float


def train_batch(network: SAM3D, optimiser, samples: list[Sample], config: TrainingConfig, rng) -> list[RoundResult]:
    """N rounds: click, forward, loss, step; each later click goes into the error that the last round left.

    Args:
        network: in train mode.
        optimiser: steps once a round.
        samples: the patches of the batch.
        rng: draws the clicks.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = next(network.parameters()).device
    image = _batch([scale_hu(s.hu, config.hu_window) for s in samples], device)
    target = _batch([s.target.astype(np.float32) for s in samples], device)
    users = [_SimulatedUser(s.target, config, rng) for s in samples]
    previous, results = None, []
    for _ in range(config.rounds):
        prompts = torch.stack([u.prompts(None if previous is None else previous[b, 0]) for b, u in enumerate(users)])
        logits = network(image, _memory(prompts.to(device)))
        focal, dice = focal_loss(logits, target).mean(), dice_loss(logits, target).mean()
        loss = FOCAL_WEIGHT * focal + DICE_WEIGHT * dice
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss must stay finite, got {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimiser.step()
        previous = torch.sigmoid(logits.detach())
        masks = (previous[:, 0] > 0.5).cpu().numpy()
        results.append(
            RoundResult(focal.item(), dice.item(), float(np.mean([u.score(m) for u, m in zip(users, masks)])))
        )
        for user, mask in zip(users, masks):
            user.look(mask)
    return results


class _SimulatedUser:
    """The clicks on one patch so far."""

    def __init__(self, target: np.ndarray, config: TrainingConfig, rng: np.random.Generator):
        self.target, self.config, self.rng = target, config, rng
        self.clicks = {True: [first_click(target, rng)], False: []}

    def look(self, mask: np.ndarray) -> None:
        """Click once more, where `mask` is wrong."""
        imprecise = self.rng.random() < self.config.imprecise_clicks
        click = next_click(mask, self.target, rng=self.rng if imprecise else None)
        if click is not None:
            self.clicks[click[1]].append(click[0])

    def prompts(self, previous: Tensor | None) -> Tensor:
        return prompt_maps(self.clicks[True], self.clicks[False], previous, self.target.shape)

    def score(self, mask: np.ndarray) -> float:
        return 2 * (mask & self.target).sum() / (mask.sum() + self.target.sum())


def _batch(arrays: list[np.ndarray], device) -> Tensor:
    return _memory(torch.from_numpy(np.stack(arrays)[:, None]).to(device))


def _memory(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d)
