"""The N click rounds of Algorithm 1 on one batch of pairs.

Axes: B pairs, 2B patches in the order U_0 ... U_B-1, V_0 ... V_B-1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ctsam3d.clicks import first_click, next_clicks
from ctsam3d.losses import dice_loss, focal_loss, mask_loss
from ctsam3d.model.cross_patch import in_neighbours_frame
from ctsam3d.model.layers import resize
from ctsam3d.model.prompts import click_map, previous_map
from ctsam3d.model.sam3d import SAM3D
from ctsam3d.resample import scale_hu
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.pairs import Pair

Stage = Callable[[str], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class RoundResult:
    """Means over the pairs after one click round; `heatmap` is the squared error of P's."""

    focal: float
    dice: float
    heatmap: float
    dsc: float


class Batch(NamedTuple):
    """Pairs as tensors, so that a loader's process hands them over without a copy.

    Attributes:
        image: (2B, 1, D, H, W), intensities scaled to [0, 1].
        target: bool (2B, 1, D, H, W).
        heatmap: (2B, 1, D, H, W), what P should say of each patch: its `heatmap_target`.
        offset: int (B, 3), from U's first voxel to V's.
        clicks: int (2B, 3), round 1's click of each patch; -1 where the patch lacks the structure.
        seed: of the simulated users, int64 (2B, 4).
    """

    image: Tensor
    target: Tensor
    heatmap: Tensor
    offset: Tensor
    clicks: Tensor
    seed: Tensor


def collate(pairs: Sequence[Pair], hu_window: tuple[float, float], seeds: Sequence[Sequence[int]]) -> Batch:
    """A batch of pairs, and each patch's first click: uniform in its foreground.

    Args:
        seeds: of the simulated users' random numbers, the whole numbers that made each pair.
    """
    hu, target = ([*(getattr(p, name)[side] for side in (0, 1) for p in pairs)] for name in ("hu", "target"))
    seed = [(*own, side) for side in (1, 2) for own in seeds]
    clicks = [first_click(t, np.random.default_rng([*s, 1])) if t.any() else (-1, -1, -1) for t, s in zip(target, seed)]
    return Batch(
        image=torch.from_numpy(np.stack([scale_hu(patch, hu_window) for patch in hu])[:, None]),
        target=torch.from_numpy(np.stack(target)[:, None]),
        heatmap=torch.stack([heatmap_target(t) for t in target])[:, None],
        offset=torch.from_numpy(np.stack([pair.offset for pair in pairs])),
        clicks=torch.tensor(clicks),
        seed=torch.tensor(seed),
    )


def heatmap_target(target: np.ndarray) -> Tensor:
    """What P should say of a patch: a click's map at the centroid of its foreground, zero where it has none.

    A structure can curve around its centroid; then the click is at the foreground voxel nearest to it, as a click
    beside the structure would be a wrong one.

    Args:
        target: bool (D, H, W).
    """
    places = np.argwhere(target)
    if len(places) == 0:
        return torch.zeros(target.shape)
    centroid = places.mean(0)
    place = tuple(np.rint(centroid).astype(int))
    if not target[place]:
        place = tuple(places[((places - centroid) ** 2).sum(1).argmin()])
    return click_map([tuple(int(v) for v in place)], target.shape)


class CoarseHead(nn.Module):
    """Logits from the first four stages of the decoder, for training alone.

    Args:
        channels: of `Decoder.coarse`.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.out = nn.Conv3d(channels, 1, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x (B, C, D/4, H/4, W/4) to logits (B, 1, D, H, W) = (B, 1, *size), interpolated."""
        return resize(self.out(x), size)


class PairNetwork(nn.Module):
    """S and P as one forward pass, as DistributedDataParallel needs it.

    Args:
        coarse_head: where some steps are coarse (`TrainingConfig.coarse`).
    """

    def __init__(self, network: SAM3D, coarse_head: CoarseHead | None = None):
        super().__init__()
        self.network, self.coarse_head = network, coarse_head

    def segment(self, image: Tensor, prompts: Tensor, coarse: bool) -> Tensor:
        """S's logits (n, 1, D, H, W), or the coarse head's."""
        if not coarse:
            return self.network(image, prompts)
        return self.coarse_head(
            self.network.decoder.coarse(self.network.encode(image, detail=False), prompts), prompts.shape[2:]
        )

    def forward(
        self,
        image: Tensor,
        prompts: Tensor,
        segmented: Tensor,
        source: Tensor,
        neighbour: Tensor,
        offset: Tensor,
        coarse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """S on the patches `segmented`, then P from their masks, which carry no gradient.

        Args:
            image: (2B, 1, D, H, W).
            prompts: (n, 3, D, H, W) of the patches `segmented`.
            segmented: (n,), indices of patches.
            source, neighbour: (m,), indices of patches; every source is segmented.
            offset: int (m, 3), from the source's first voxel to the neighbour's.
            coarse: see `segment`.

        Returns:
            Logits (n, 1, D, H, W) and heatmaps (m, 1, D, H, W).
        """
        logits = self.segment(_memory(image[segmented]), prompts, coarse)
        if len(source) == 0:  # P does not learn
            return logits, logits.new_zeros(0, *logits.shape[1:])
        masks = torch.zeros_like(image)
        masks[segmented] = (logits.detach() > 0).to(image.dtype)
        return logits, self.propose(image, masks, source, neighbour, offset)

    def propose(self, image: Tensor, masks: Tensor, source: Tensor, neighbour: Tensor, offset: Tensor) -> Tensor:
        """P's heatmaps (m, 1, D, H, W), from masks (2B, 1, D, H, W) in {0, 1}."""
        return self.network.propose(*map(_memory, (image[source], masks[source], image[neighbour])), offset)


class TrueMaskNetwork(PairNetwork):
    """P alone, from the true masks."""

    def forward(self, image: Tensor, masks: Tensor, source: Tensor, neighbour: Tensor, offset: Tensor) -> Tensor:
        return self.propose(image, masks, source, neighbour, offset)


class Rounds:
    """A batch on its way through the click rounds: its clicks so far and its previous masks."""

    def __init__(self, batch: Batch, config: TrainingConfig, device: torch.device | str):
        self.config, self.device = config, torch.device(device)
        self.image, self.target, self.heatmap = (t.to(self.device) for t in (batch.image, batch.target, batch.heatmap))
        pairs = len(batch.image) // 2
        filled = batch.clicks[:, 0] >= 0  # (2B,)
        self.segmented = torch.nonzero(filled)[:, 0].to(self.device)  # (n,)
        both = torch.nonzero(filled[pairs:])[:, 0] + pairs  # the V that can be sources themselves
        every_u = torch.arange(pairs)
        self.source = torch.cat([every_u, both]).to(self.device)  # (m,)
        self.neighbour = torch.cat([every_u + pairs, both - pairs]).to(self.device)
        self.offset = torch.cat([batch.offset, -batch.offset[both - pairs]])  # (m, 3); indices, so not on the device
        if config.trainable == "segmentation":  # nothing for P to learn from
            self.source, self.neighbour = self.source[:0], self.neighbour[:0]
        self.rngs = [np.random.default_rng([*seed, 2]) for seed in batch.seed[filled].tolist()]
        seed, step = batch.seed[0, :2].tolist()  # of all processes, so that they take equally long
        self.coarse = np.random.default_rng([seed, step, 5]).random() < config.coarse
        self.feedback, self.carry = (np.random.default_rng([*batch.seed[0].tolist(), n]) for n in (3, 4))
        first_v = int(filled[:pairs].sum())  # U's are all segmented, and come first
        self.pairs = [(int(v) - pairs, first_v + n) for n, v in enumerate(both)]  # number of a pair, place of its V
        self.clicks = [{True: [tuple(click)], False: []} for click in batch.clicks[filled].tolist()]
        self.previous = torch.zeros_like(self.image[self.segmented])  # (n, 1, D, H, W)

    def prompts(self) -> Tensor:
        """[P, N, Y] of the segmented patches, (n, 3, D, H, W)."""
        size = tuple(self.image.shape[2:])
        maps = torch.stack([torch.stack([click_map(own[sign], size) for sign in (True, False)]) for own in self.clicks])
        return _memory(torch.cat([maps.to(self.device), previous_map(self.previous)], dim=1))

    def feed_back(self, network: nn.Module, prompts: Tensor) -> Tensor:
        """`prompts`, or in a share of the rounds the same clicks with S's own answer to them as previous mask."""
        if self.feedback.random() >= self.config.feedback:
            return prompts
        alone = getattr(network, "module", network)  # S needs no other process here
        with torch.no_grad(), self._mixed_precision():
            logits = alone.segment(_memory(self.image[self.segmented]), prompts, self.coarse)
        return _memory(torch.cat([prompts[:, :2], previous_map(torch.sigmoid(logits.float()))], dim=1))

    def forward(self, network: nn.Module, prompts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network (a `PairNetwork`) on this batch: logits (n, 1, D, H, W) and the losses by name."""
        with self._mixed_precision():
            logits, heatmaps = network(
                self.image, prompts, self.segmented, self.source, self.neighbour, self.offset, self.coarse
            )
        logits, target = logits.float(), self.target[self.segmented].float()
        losses = {"focal": focal_loss(logits, target).mean(), "dice": dice_loss(logits, target).mean()}
        return logits, {**losses, "heatmap": self._heatmap_loss(heatmaps)}

    def forward_true_masks(self, network: nn.Module) -> Tensor:
        """The loss of P alone (a `TrueMaskNetwork`)."""
        with self._mixed_precision():
            heatmaps = network(self.image, self.target.float(), self.source, self.neighbour, self.offset)
        return self._heatmap_loss(heatmaps)

    def _mixed_precision(self) -> contextlib.AbstractContextManager:
        enabled = self.config.mixed_precision and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _heatmap_loss(self, heatmaps: Tensor) -> Tensor:
        if len(heatmaps) == 0:
            return heatmaps.sum()
        return F.mse_loss(heatmaps.float(), self.heatmap[self.neighbour])

    def click(self, logits: Tensor) -> float:
        """Take up the round's masks: they become the previous ones, and each user clicks into what is wrong.

        Returns:
            Mean DSC of the masks.
        """
        self.previous = torch.sigmoid(logits.detach())
        masks, target = self.previous[:, 0] > 0.5, self.target[self.segmented, 0]
        overlap, sizes = (masks & target).flatten(1).sum(1), masks.flatten(1).sum(1) + target.flatten(1).sum(1)
        draws = [rng.random(2) for rng in self.rngs]
        imprecise = [place if whether < self.config.imprecise_clicks else None for whether, place in draws]
        for own, click in zip(self.clicks, next_clicks(masks, target, imprecise)):
            if click is not None:
                own[click[1]].append(click[0])
        self._carry_over()
        return float((2 * overlap / sizes).mean())

    def _carry_over(self) -> None:
        """Some V begin anew as an expansion opens them: a click where P should put it, and what U's mask shows of V."""
        for pair, place in self.pairs:
            if self.carry.random() < self.config.carry:
                seen = in_neighbours_frame(self.previous[pair][None], self.offset[pair][None])
                self.previous[place] = seen[0]
                heatmap = self.heatmap[self.segmented[place], 0]
                click = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
                self.clicks[place] = {True: [tuple(map(int, click))], False: []}


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Batch],
    config: TrainingConfig,
    device: torch.device | str = "cpu",
    stage: Stage = contextlib.nullcontext,
) -> list[RoundResult]:
    """Algorithm 1 on some batches of pairs: N rounds, each a step of the optimiser over all of them.

    Args:
        network: a `PairNetwork`, or one wrapped in DistributedDataParallel, in train mode.
        batches: whose gradients are accumulated, as if they were seen by as many processes.
        stage: times the parts named "clicks", "network" and "optimiser"; see `scripts/benchmark.py training`.

    Raises:
        FloatingPointError: the loss or its gradients are no longer finite.
    """
    rounds, results = [Rounds(batch, config, device) for batch in batches], []
    for _ in range(config.rounds):
        optimiser.zero_grad(set_to_none=True)
        answers = []
        for number, own in enumerate(rounds, start=1):
            with stage("clicks"):
                prompts = own.prompts()
            with stage("network"), _synchronised(network, number == len(rounds)):
                logits, losses = own.forward(network, own.feed_back(network, prompts))
                loss = mask_loss(focal=losses["focal"], dice=losses["dice"]) + losses["heatmap"]
                (loss / len(rounds)).backward()
            answers.append((logits.detach(), {name: value.detach() for name, value in losses.items()}))
        if not all(torch.isfinite(value) for _, losses in answers for value in losses.values()):
            raise FloatingPointError(f"losses must stay finite, got {answers[-1][1]}")
        with stage("optimiser"):
            _clip(network, config)
            optimiser.step()
        with stage("clicks"):
            dsc = [own.click(logits) for own, (logits, _) in zip(rounds, answers)]
        means = {n: float(torch.stack([a[1][n] for a in answers]).mean()) for n in ("focal", "dice", "heatmap")}
        results.append(RoundResult(**means, dsc=float(np.mean(dsc))))
    return results


def train_step_true_masks(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Batch],
    config: TrainingConfig,
    device: torch.device | str = "cpu",
) -> list[RoundResult]:
    """One step of P alone, from the true masks; as `train_step`, with a `TrueMaskNetwork`."""
    optimiser.zero_grad(set_to_none=True)
    losses = []
    for number, batch in enumerate(batches, start=1):
        with _synchronised(network, number == len(batches)):
            loss = Rounds(batch, config, device).forward_true_masks(network)
            (loss / len(batches)).backward()
        losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"losses must stay finite, got {losses}")
    _clip(network, config)
    optimiser.step()
    return [RoundResult(focal=0.0, dice=0.0, heatmap=float(np.mean(losses)), dsc=1.0)]


def _clip(network: nn.Module, config: TrainingConfig) -> None:
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"gradients must stay finite, got a norm of {norm.item()}")


def _synchronised(network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Processes exchange gradients once a round, with the last of the accumulated batches."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return contextlib.nullcontext()


def _memory(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d)
