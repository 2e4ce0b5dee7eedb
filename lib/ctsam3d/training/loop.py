"""The training loop: Algorithm 1 over many volumes, on one process or many, resumable, the same again from one seed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.data.files import atomic_path, clear_temporary
from ctsam3d.losses import mask_loss
from ctsam3d.model.build import PATCH_SIZE, SPACING_MM, build
from ctsam3d.model.layers import ChannelLayerNorm
from ctsam3d.training import processes
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.log import RunLog
from ctsam3d.training.pairs import TrainingVolume, draw_pair
from ctsam3d.training.step import (
    Batch,
    CoarseHead,
    PairNetwork,
    RoundResult,
    TrueMaskNetwork,
    collate,
    train_step,
    train_step_true_masks,
)

log = logging.getLogger(__name__)

KEPT_STATES = 2
P_EPSILON = 1e-15
FEEDBACK_PASSES = 2  # of a session, for weights that were trained with feedback


class RunError(ValueError):
    """A folder holds a run that this one cannot go on with."""


@dataclass(frozen=True)
class Source:
    """Volumes, and how many of a pass's pairs are theirs, in proportion to the shares of the other sources."""

    volumes: Sequence[TrainingVolume]
    share: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step, steps: done, and in all.
        epoch, epochs: passes over the volumes begun, and in all.
        rounds: of this step.
        seconds_left: from the mean time of a step in this process.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    rounds: list[RoundResult]
    seconds_left: float


def train(
    sources: Sequence[Source],
    config: TrainingConfig,
    out: str | os.PathLike,
    *,
    observe: Callable[[Progress], None] | None = None,
    workers: int | None = None,
    **options,
) -> Path:
    """Train a network and write ``model.safetensors``, ``log.jsonl``, TensorBoard's files and the state under `out`.

    Started again with the same arguments, a run goes on from its last state. All that is random is drawn from the seed
    and the step, so that an interrupted run ends like one that was not.

    Args:
        observe: called after every step, on the first process.
        workers: processes that cut patches; by default 0 on a CPU, which the network needs whole, else 8.
        options: see `Run`.

    Returns:
        Path of the weights.

    Raises:
        ValueError: an empty source, or weights that do not fit.
        RunError: `out` holds a run of another kind, or no state of it can be read.
        FloatingPointError: the loss is no longer finite.
    """
    run = Run(sources, config, Path(out), **options)
    run.resume()
    workers = (0 if run.device.type == "cpu" else 8) if workers is None else workers
    start, first = time.monotonic(), run.step
    loader = run.loader(workers)
    hidden = True if processes.rank() > 0 else None  # None: shown on a terminal, as a log has no use for it
    with tqdm(total=run.steps, initial=run.step, unit="step", disable=hidden) as bar:
        for batches in loader:
            results = run.learn(batches)
            bar.set_postfix_str(_summary(results), refresh=False)
            bar.update()
            if run.step % run.save_every == 0 or run.step == run.steps:
                run.save()
            if observe and processes.rank() == 0:
                seconds_left = (time.monotonic() - start) / (run.step - first) * (run.steps - run.step)
                observe(Progress(run.step, run.steps, run.epoch, config.epochs, results, seconds_left))
    run.log.close()
    return run.weights_path


def _summary(results: Sequence[RoundResult]) -> str:
    loss = np.mean([mask_loss(focal=r.focal, dice=r.dice) for r in results])
    heatmap = np.mean([r.heatmap for r in results])
    return f"loss {loss:.3f}, heatmap {heatmap:.1e}, DSC {results[0].dsc:.2f} -> {results[-1].dsc:.2f}"


class Run:
    """The state of a run: network, optimiser, step.

    Args:
        sources: what pairs are drawn from.
        device: of this process.
        save_every: steps between two states.
        initial: weights to start from; fresh ones where None.
        notes: stored with the weights, beside the configuration and the names of the volumes, of `initial` too.
        half: store the weights in half precision.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: TrainingConfig,
        out: Path,
        *,
        device: str | torch.device = "cpu",
        save_every: int = 50,
        initial: checkpoint.Checkpoint | None = None,
        notes: dict | None = None,
        half: bool = False,
    ):
        if not sources or not all(len(source.volumes) and source.share > 0 for source in sources):
            raise ValueError("sources must each hold a volume and have a positive share, got an empty one")
        if config.frozen_statistics and initial is None:
            raise ValueError("frozen_statistics must be False where there are no initial weights, got True")
        self.sources, self.config, self.out, self.save_every = sources, config, out, save_every
        if config.coarse and initial and initial.network.config.beside:
            raise ValueError(f"coarse must be 0 for networks beside each other, got {config.coarse}")
        self.initial_sha256 = initial.sha256 if initial else None
        self.initial_data = initial.notes.get("data", ()) if initial else ()
        self.peak_threshold = initial.peak_threshold if initial else checkpoint.PEAK_THRESHOLD
        self.feedback = FEEDBACK_PASSES if config.feedback else initial.feedback if initial else 0
        self.notes, self.half, self.device = notes or {}, half, torch.device(device)
        self.pairs = config.batch_size * config.accumulate * processes.count()  # a step
        self.pairs_per_epoch = pairs_per_epoch(sources, config)
        self.steps = max(1, round(config.epochs * self.pairs_per_epoch / self.pairs))
        self.step = 0
        self.network = _network(config, initial).to(self.device, memory_format=torch.channels_last_3d)
        _set_trainable(self.network, config)
        alone = config.trainable == "cross_patch"
        self._train_step = train_step_true_masks if alone else train_step
        self.coarse_head = CoarseHead(self.network.config.decoder_width).to(self.device) if config.coarse else None
        self.pair_network: nn.Module = (
            TrueMaskNetwork(self.network) if alone else PairNetwork(self.network, self.coarse_head)
        )
        if processes.count() > 1:
            # With random Fourier features, the token for "no click" is never used: round 1 has one already. A coarse
            # step leaves out the last stages, another one the coarse head.
            unused = self.network.config.prompt == "rff" or config.coarse > 0
            self.pair_network = DistributedDataParallel(self.pair_network, find_unused_parameters=unused)
        groups = _parameter_groups(self.network, config)
        if self.coarse_head:
            groups.append({"params": list(self.coarse_head.parameters()), "rate": 1.0})
        self.optimiser = torch.optim.AdamW(groups, config.learning_rate, config.betas, weight_decay=config.weight_decay)
        self.log = RunLog(out, enabled=processes.rank() == 0)

    @property
    def weights_path(self) -> Path:
        return self.out / "model.safetensors"

    @property
    def epoch(self) -> int:
        """The pass over the volumes that the last step belonged to, from 1."""
        return min(self.config.epochs, 1 + max(0, self.step * self.pairs - 1) // self.pairs_per_epoch)

    def loader(self, workers: int) -> DataLoader:
        """The batches of this process, from the present step on."""
        steps = _Steps(self.sources, self.config, processes.rank() * self.config.accumulate, self.pairs)
        return DataLoader(steps, batch_size=None, sampler=range(self.step, self.steps), num_workers=workers)

    def learn(self, batches: Sequence[Batch]) -> list[RoundResult]:
        """One step: the learning rate of this step, its click rounds, a line in the log."""
        rate = self.config.learning_rate_at((self.step + 0.5) / self.steps)  # its middle, so that no step has rate 0
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        results = self._train_step(self.pair_network, self.optimiser, batches, self.config, self.device)
        self.step += 1
        self.log.write(self.step, rate, results)
        return results

    def save(self) -> None:
        """The weights as they would be served, then the state to resume from; each replaced whole.

        In this order, so that a run killed in between makes the weights once more.
        """
        if processes.rank() > 0:
            return
        self._save_weights()
        state = {
            "step": self.step,
            "run": self._identity(),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "coarse_head": self.coarse_head.state_dict() if self.coarse_head else {},
        }
        with atomic_path(self.out / f"state-{self.step:09d}.pt") as temporary:
            torch.save(state, temporary)
        for old in self._states()[:-KEPT_STATES]:
            old.unlink()

    def resume(self) -> None:
        """Take up the latest state under `out` that can be read, if there is one.

        Every process reads it for itself, so `out` must be a folder that all of them share.

        Raises:
            RunError: it belongs to a run of another configuration, or on other volumes; none can be read; or the
                processes do not find the same one.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if processes.rank() == 0:
            clear_temporary(self.out)
        state = self._latest_state()
        if state:
            if state["run"] != self._identity():
                raise RunError(
                    f"out {self.out} must be new or hold a run of this configuration, it holds {state['run']}"
                )
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.coarse_head:
                self.coarse_head.load_state_dict(state["coarse_head"])
            self.step = state["step"]
            log.info("resuming %s at step %d of %d", self.out, self.step, self.steps)
        if len(set(steps := processes.gather(self.step))) > 1:
            raise RunError(f"out {self.out} must be a folder that all processes share, they resume at steps {steps}")
        self.log.open(self.step)

    def _latest_state(self) -> dict | None:
        errors = []
        for path in reversed(self._states()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                log.warning("%s cannot be read: %s", path, error)
                errors.append(path.name)
        if errors:
            raise RunError(f"out {self.out} must hold a state that can be read, none of {', '.join(errors)} can")
        return None

    def _states(self) -> list[Path]:
        return sorted(self.out.glob("state-*.pt"))

    def _identity(self) -> str:
        """What a run must have in common with the one it resumes: configuration, volumes, initial weights."""
        volumes = [[source.share, [volume.content for volume in source.volumes]] for source in self.sources]
        config = dataclasses.asdict(self.config)
        run = {"config": config, "pairs": self.pairs, "volumes": volumes, "initial": self.initial_sha256}
        return json.dumps({**run, "network": self.network.config.as_dict()})

    def _save_weights(self) -> None:
        volumes = [volume for source in self.sources for volume in source.volumes]
        training = {**dataclasses.asdict(self.config), "step": self.step, "steps": self.steps}
        data = sorted({*map(str, self.initial_data), *(volume.name for volume in volumes)})
        notes = {**self.notes, "data": data, "training": training}
        version = f"{self.config.preset or 'trained'}-step{self.step}"
        labels = tuple(sorted(set(itertools.chain.from_iterable(volume.structures for volume in volumes))))
        content = checkpoint.Checkpoint(
            self.network,
            self.config.hu_window,
            SPACING_MM,
            labels,
            version,
            self.feedback,
            self.peak_threshold,
            notes=notes,
        )
        checkpoint.save(self.weights_path, content, half=self.half)


class _Steps(Dataset):
    """The batches of one process at each step; every pair is drawn from (seed, step, its number in the step).

    So it is the same pair whether another process sees it, or the same one as a further batch.
    """

    def __init__(self, sources: Sequence[Source], config: TrainingConfig, first_batch: int, pairs: int):
        self.sources, self.config, self.first_batch, self.pairs = sources, config, first_batch, pairs
        self._epoch, self._order = -1, []

    def __getitem__(self, step: int) -> list[Batch]:
        size = self.config.batch_size
        batches = range(self.first_batch, self.first_batch + self.config.accumulate)
        return [self._batch(step, range(number * size, (number + 1) * size)) for number in batches]

    def _batch(self, step: int, numbers: Sequence[int]) -> Batch:
        pairs = [self._pair(step, number) for number in numbers]
        return collate(pairs, self.config.hu_window, [(self.config.seed, step, number) for number in numbers])

    def _pair(self, step: int, number: int):
        epoch, place = divmod(step * self.pairs + number, pairs_per_epoch(self.sources, self.config))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.sources, self.config, epoch)
        source, volume = self._order[place]
        rng = np.random.default_rng([self.config.seed, step, number])
        return draw_pair(self.sources[source].volumes[volume], PATCH_SIZE, self.config, rng)


def pairs_per_epoch(sources: Sequence[Source], config: TrainingConfig) -> int:
    """Pairs of one pass over the volumes."""
    return sum(len(source.volumes) for source in sources) * config.samples_per_volume


def epoch_order(sources: Sequence[Source], config: TrainingConfig, epoch: int) -> list[tuple[int, int]]:
    """The volume of every pair of a pass, as its source and its number there, in random order.

    A source has its share of the pairs, to less than one pair; its volumes differ by one pair at most. So a pass over
    a single source sees each volume `samples_per_volume` times.

    Args:
        epoch: the pass, from 0.
    """
    rng = np.random.default_rng([config.seed, epoch])
    shares = np.array([source.share for source in sources], float)
    # The ends of the sources' parts, rounded at a place that differs from pass to pass: no small share is always lost.
    ends = np.floor(shares.cumsum() / shares.sum() * pairs_per_epoch(sources, config) + rng.random())
    ends[-1] = pairs_per_epoch(sources, config)
    order = []
    for number, (count, source) in enumerate(zip(np.diff(ends, prepend=0).astype(int), sources)):
        drawn = np.resize(rng.permutation(len(source.volumes)), count)  # over and over, in one order
        order += [(number, int(volume)) for volume in drawn]
    return [order[place] for place in rng.permutation(len(order))]


def _network(config: TrainingConfig, initial: checkpoint.Checkpoint | None):
    torch.manual_seed(config.seed)
    if config.preset is None:
        if initial is None:
            raise ValueError("preset must be given where there are no initial weights, got None")
        return _checked_window(initial, config).network
    network = build(
        config.preset, encoder=config.encoder, prompt=config.prompt, cross_patch_frame=config.cross_patch_frame
    )
    if initial is None:
        return network
    if initial.network.config != network.config:
        raise ValueError(
            f"initial weights {initial.version} must have the run's network {network.config}, "
            f"they have {initial.network.config}"
        )
    return _checked_window(initial, config).network


def _checked_window(initial: checkpoint.Checkpoint, config: TrainingConfig) -> checkpoint.Checkpoint:
    if initial.hu_window != config.hu_window:
        raise ValueError(
            f"initial weights {initial.version} must have the run's HU window {config.hu_window}, "
            f"they have {initial.hu_window}"
        )
    return initial


def _parameter_groups(network: nn.Module, config: TrainingConfig) -> list[dict]:
    """Parameters that learn: those of S, by part, and those of P with an epsilon of their own.

    P's squared error is a mean over 64³ voxels of which a click's map fills some hundred, so that its gradients are
    about 1e-12 in the deep layers. Under AdamW's usual epsilon of 1e-8 those would never move.
    """
    groups = [
        {"params": [p for p in network.encoder.parameters() if p.requires_grad], "rate": config.encoder_rate},
        {"params": [p for p in network.decoder.parameters() if p.requires_grad], "rate": 1.0},
        {"params": [p for p in network.cross_patch.parameters() if p.requires_grad], "rate": 1.0, "eps": P_EPSILON},
    ]
    return [group for group in groups if group["params"]]


def _set_trainable(network: nn.Module, config: TrainingConfig) -> None:
    """Train mode, less what the configuration keeps as it is."""
    network.train()
    if config.trainable == "cross_patch":
        network.encoder.requires_grad_(False)
        network.decoder.requires_grad_(False)
        return
    network.cross_patch.requires_grad_(config.trainable != "segmentation")
    for module in network.encoder.modules():
        norm = isinstance(module, (ChannelLayerNorm, nn.LayerNorm, nn.BatchNorm3d))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(norm or config.trainable != "decoder")
        if isinstance(module, nn.BatchNorm3d) and config.frozen_statistics:
            module.eval()
