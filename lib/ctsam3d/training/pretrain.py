"""A beginning for the encoder and its embeddings, before any click round: many structures of a patch at once.

A click round teaches S one structure a patch, through a decoder that costs ten times the encoder. Here a dozen voxels
of a patch each ask which others belong to their structure, and the embeddings (`Appearance`) alone must answer. What
the coarse stages see is then of use from the first click round on, and does not fade. Not in the paper.

Axes: B patches, K anchors of each, C channels of an embedding, N cells of 4 x 4 x 4 voxels in a patch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.data.files import atomic_path
from ctsam3d.model.build import PATCH_SIZE, SPACING_MM, build
from ctsam3d.resample import scale_hu
from ctsam3d.training import processes
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import RunError, Source, epoch_order
from ctsam3d.training.pairs import draw_labelled_patch

log = logging.getLogger(__name__)

CELL = 4  # voxels a side: embeddings are at a quarter of the patch
_CELLS_NEAR = 8  # the unit of distance


@dataclass(frozen=True)
class PretrainingConfig:
    """A run of pretraining; what patches are drawn by is in the `TrainingConfig` of the run that it prepares.

    Attributes:
        steps: updates of the weights.
        patches: of an update.
        anchors: of a patch.
        learning_rate: at most; it rises over `warmup` steps and falls to zero by a cosine.
        head_rate: factor of the learning rate for the three numbers of `LikenessHead`.
    """

    steps: int = 1400
    patches: int = 8
    anchors: int = 12
    learning_rate: float = 1.5e-3
    head_rate: float = 1.0
    warmup: int = 60
    weight_decay: float = 0.02
    gradient_clip: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class AnchorBatch(NamedTuple):
    """Patches, and what their anchors ask for.

    Attributes:
        image: (B, 1, D, H, W), intensities scaled to [0, 1].
        occupancy: (B, K, N), the share of each cell that an anchor's structure fills.
        anchor: int64 (B, K), the cell of each anchor; its structure is in it.
    """

    image: Tensor
    occupancy: Tensor
    anchor: Tensor


def draw_anchors(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cells that ask for their structure, drawn by the square root of its size.

    Args:
        labels: (D, H, W), sides that `CELL` divides, with at least one labelled voxel.

    Returns:
        Occupancy float32 (count, N) and anchor int64 (count,).
    """
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    weights = np.sqrt(sizes)
    drawn = rng.choice(len(sizes), count, p=weights / weights.sum())
    occupancy = np.stack([_occupancy(labels == value) for value in drawn])
    anchor = np.array([rng.choice(len(own), p=own / own.sum()) for own in occupancy.astype(float)])
    return occupancy, anchor


def _occupancy(mask: np.ndarray) -> np.ndarray:
    cells = mask.reshape([n for side in mask.shape for n in (side // CELL, CELL)])
    return cells.mean((1, 3, 5), dtype=np.float32).ravel()


class LikenessHead(nn.Module):
    """From the likeness of two cells and the distance between them to the logit of belonging together."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.far = nn.Parameter(torch.tensor(0.0))

    def forward(self, embedding: Tensor, anchor: Tensor) -> Tensor:
        """embedding (B, C, D/4, H/4, W/4) of length 1, anchor (B, K); returns logits (B, K, N)."""
        cells = embedding.flatten(2)  # (B, C, N)
        of_anchor = cells.gather(2, anchor[:, None].expand(-1, cells.shape[1], -1))  # (B, C, K)
        axes = [torch.arange(n, device=cells.device) for n in embedding.shape[2:]]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2) / _CELLS_NEAR  # (N, 3)
        squared = (place[anchor][:, :, None] - place).square().sum(3)  # (B, K, N)
        return self.scale * (of_anchor.transpose(1, 2) @ cells) + self.bias - F.softplus(self.far) * squared


def anchor_loss(logits: Tensor, occupancy: Tensor) -> Tensor:
    """Binary cross-entropy and Dice loss of every anchor, both (B, K, N); their mean."""
    probability = torch.sigmoid(logits)
    overlap, sizes = (probability * occupancy).sum(2), probability.sum(2) + occupancy.sum(2)
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    return (dice + F.binary_cross_entropy_with_logits(logits, occupancy, reduction="none").mean(2)).mean()


class _Steps(Dataset):
    """The batch of this process at each step; every patch is drawn from (seed, step, its number in the step)."""

    def __init__(self, sources: Sequence[Source], config: PretrainingConfig, drawn: TrainingConfig):
        self.sources, self.config, self.drawn = sources, config, drawn
        own = config.patches // processes.count()
        self.numbers = range(processes.rank() * own, (processes.rank() + 1) * own)
        self._epoch, self._order = -1, []

    def __getitem__(self, step: int) -> AnchorBatch:
        patches = [self._patch(step, number) for number in self.numbers]
        return AnchorBatch(*(torch.from_numpy(np.stack(parts)) for parts in zip(*patches)))

    def _patch(self, step: int, number: int):
        pairs = sum(len(source.volumes) for source in self.sources) * self.drawn.samples_per_volume
        epoch, place = divmod(step * self.config.patches + number, pairs)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.sources, self.drawn, epoch)
        source, volume = self._order[place]
        rng = np.random.default_rng([self.drawn.seed, step, number, 5])
        hu, labels = draw_labelled_patch(self.sources[source].volumes[volume], PATCH_SIZE, self.drawn, rng)
        return scale_hu(hu, self.drawn.hu_window)[None], *draw_anchors(labels, self.config.anchors, rng)


def pretrain(
    sources: Sequence[Source],
    config: PretrainingConfig,
    drawn: TrainingConfig,
    out: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
    workers: int = 1,
    save_every: int = 200,
) -> Path:
    """Train encoder and embeddings of a fresh network, on one process or many; started again, it goes on.

    Args:
        drawn: the run that this one prepares: its preset, seed, HU window and what patches are drawn by.
        workers: processes that cut patches.

    Returns:
        Path of the weights, ``out/pretrained.safetensors``; decoder and P in them are fresh.

    Raises:
        ValueError: a network without embeddings, or patches that the processes cannot share evenly.
        RunError: `out` holds a run of another configuration.
        FloatingPointError: the loss is no longer finite.
    """
    if config.patches % processes.count():
        raise ValueError(f"patches must be a multiple of the {processes.count()} processes, got {config.patches}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pretrained.safetensors"
    run = _Pretraining(sources, config, drawn, out / "pretrained-state.pt", torch.device(device))
    run.resume()
    steps = DataLoader(
        _Steps(sources, config, drawn), batch_size=None, sampler=range(run.step, config.steps), num_workers=workers
    )
    hidden = True if processes.rank() > 0 else None  # None: shown on a terminal, as a log has no use for it
    with tqdm(total=config.steps, initial=run.step, unit="step", disable=hidden) as bar:
        for batch in steps:
            bar.set_postfix_str(f"loss {run.learn(batch):.3f}", refresh=False)
            bar.update()
            if run.step % save_every == 0 or run.step == config.steps:
                run.save()
    if processes.rank() > 0:
        return path
    data = sorted({volume.name for source in sources for volume in source.volumes})
    notes = {"data": data, "pretraining": dataclasses.asdict(config)}
    content = checkpoint.Checkpoint(run.network, drawn.hu_window, SPACING_MM, (), "pretrained", notes=notes)
    checkpoint.save(path, content)
    return path


class _Pretraining:
    """The state of a run."""

    def __init__(self, sources, config: PretrainingConfig, drawn: TrainingConfig, path: Path, device: torch.device):
        self.config, self.path, self.device, self.step = config, path, device, 0
        torch.manual_seed(drawn.seed)
        self.network = build(
            drawn.preset, encoder=drawn.encoder, prompt=drawn.prompt, cross_patch_frame=drawn.cross_patch_frame
        )
        if self.network.decoder.appearance is None:
            raise ValueError(f"preset must be of a network with embeddings, got {drawn.preset!r}")
        self.network.to(device, memory_format=torch.channels_last_3d).train()
        self.head = LikenessHead().to(device)
        encoder = [p for name, p in self.network.encoder.named_parameters() if not name.startswith("detail.")]
        self.parameters = [*encoder, *self.network.decoder.appearance.embedding_parameters()]
        groups = [
            {"params": self.parameters, "rate": 1.0},
            {"params": list(self.head.parameters()), "rate": config.head_rate},
        ]
        self.optimiser = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)
        volumes = [[source.share, [volume.content for volume in source.volumes]] for source in sources]
        configs = {"config": dataclasses.asdict(config), "drawn": dataclasses.asdict(drawn)}
        configs["network"] = self.network.config.as_dict()
        self.identity = json.dumps({**configs, "processes": processes.count(), "volumes": volumes})

    def learn(self, batch: AnchorBatch) -> float:
        """One update; returns its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step) * group["rate"]
        image, occupancy, anchor = (part.to(self.device) for part in batch)
        features = self.network.encode(image.contiguous(memory_format=torch.channels_last_3d), detail=False)
        loss = anchor_loss(self.head(self.network.decoder.appearance.embed(features), anchor), occupancy)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss must stay finite, got {loss.item()}")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_gradients([*self.parameters, *self.head.parameters()])
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """What `resume` reads, replaced whole; the first process's batch norm statistics stand for all."""
        if processes.rank() > 0:
            return
        with atomic_path(self.path) as temporary:
            torch.save(
                {"step": self.step, "run": self.identity, **self._parts(lambda part: part.state_dict())}, temporary
            )

    def resume(self) -> None:
        """Take up the state on disk, if there is one.

        Raises:
            RunError: it belongs to another run.
        """
        if not self.path.is_file():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["run"] != self.identity:
            raise RunError(f"out {self.path.parent} must be new or hold a run of this configuration")
        self.step = state["step"]
        for name, part in self._parts(lambda part: part).items():
            part.load_state_dict(state[name])
        log.info("resuming %s at step %d of %d", self.path.parent, self.step, self.config.steps)

    def _parts(self, of) -> dict:
        return {"network": of(self.network), "head": of(self.head), "optimiser": of(self.optimiser)}
