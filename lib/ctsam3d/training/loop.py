"""The training loop: resumable, deterministic on a CPU, one log line and one checkpoint at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.data.files import atomic_path
from ctsam3d.model.build import PATCH_SIZE, SPACING_MM, build
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.patches import TrainingVolume, draw_sample
from ctsam3d.training.step import train_batch

log = logging.getLogger(__name__)


def train(sources: list[list[TrainingVolume]], config: TrainingConfig, out: str | os.PathLike, **options) -> Path:
    """Train a network and write ``model.safetensors``, ``log.jsonl`` and the state to resume from under `out`.

    Started again with the same arguments, a run goes on from its last state; every batch is drawn from (seed, step),
    so that an interrupted run ends like one that was not.

    Args:
        sources: groups of volumes; each group is drawn from equally often, whatever its size.
        options: see `Run`.

    Returns:
        Path of the weights.
    """
    run = Run(sources, config, Path(out), **options)
    run.resume()
    with ThreadPoolExecutor(1) as background, tqdm(total=run.steps, initial=run.step, unit="batch") as bar:
        samples = background.submit(run.draw, run.step)
        while run.step < run.steps:
            batch = samples.result()
            samples = background.submit(run.draw, run.step + 1)  # the next batch is cut while this one is learnt
            results = run.learn(batch)
            bar.set_postfix_str(f"DSC {results[0].dsc:.2f} -> {results[-1].dsc:.2f}", refresh=False)
            bar.update()
            if run.step % run.save_every == 0 or run.step == run.steps:
                run.save()
    return run.weights_path


class Run:
    """The state of a run: network, optimiser, step.

    Args:
        save_every: batches between two states.
        initial: weights to start from; fresh ones where None.
        notes: stored with the weights, beside the names of the volumes and the configuration.
        half: store the weights in half precision.
    """

    def __init__(
        self,
        sources: list[list[TrainingVolume]],
        config: TrainingConfig,
        out: Path,
        *,
        device: str = "cpu",
        save_every: int = 50,
        initial: checkpoint.Checkpoint | None = None,
        notes: dict | None = None,
        half: bool = False,
    ):
        if not sources or not all(sources):
            raise ValueError("sources must hold at least one volume each, got an empty one")
        self.sources, self.config, self.out, self.save_every = sources, config, out, save_every
        self.notes, self.half = notes or {}, half
        per_epoch = sum(map(len, sources)) * config.samples_per_volume
        self.steps = max(1, round(config.epochs * per_epoch / config.batch_size))
        self.step = 0
        torch.manual_seed(config.seed)
        network = build(config.preset, encoder=config.encoder, prompt=config.prompt)
        if initial:
            if (initial.network.config, initial.hu_window) != (network.config, config.hu_window):
                raise ValueError(
                    f"initial weights {initial.version} must have the run's network and HU window {config.hu_window}, "
                    f"they have {initial.network.config} and {initial.hu_window}"
                )
            network = initial.network
        self.network = network.to(device, memory_format=torch.channels_last_3d).train()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay
        )

    @property
    def weights_path(self) -> Path:
        return self.out / "model.safetensors"

    @property
    def log_path(self) -> Path:
        return self.out / "log.jsonl"

    def _identity(self) -> str:
        """What a run must have in common with the one it resumes: configuration and volumes."""
        volumes = [[volume.name for volume in source] for source in self.sources]
        return json.dumps({"config": dataclasses.asdict(self.config), "volumes": volumes})

    @property
    def state_path(self) -> Path:
        return self.out / "state.pt"

    def draw(self, step: int) -> list:
        """The samples of batch `step`."""
        rng, config = np.random.default_rng([self.config.seed, step]), self.config
        samples = []
        for _ in range(config.batch_size):
            source = self.sources[rng.integers(len(self.sources))]
            volume = source[rng.integers(len(source))]
            samples.append(draw_sample(volume, PATCH_SIZE, config.structure_power, config.augmentation, rng))
        return samples

    def learn(self, samples: list) -> list:
        """One batch: the learning rate of this step, its click rounds, a line in the log."""
        rate = self.config.learning_rate_at((self.step + 1) / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.config.seed, self.step, 1])
        results = train_batch(self.network, self.optimiser, samples, self.config, rng)
        self.step += 1
        record = {"step": self.step, "learning_rate": rate, "rounds": [dataclasses.asdict(r) for r in results]}
        with open(self.log_path, "a") as lines:
            lines.write(json.dumps(record) + "\n")
        return results

    def save(self) -> None:
        """The weights as they would be served, then the state to resume from; each replaced whole.

        In this order, so that a run killed in between makes the weights once more.
        """
        self._save_weights()
        state = {
            "step": self.step,
            "run": self._identity(),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_path(self.state_path) as temporary:
            torch.save(state, temporary)

    def _save_weights(self) -> None:
        names = sorted({volume.name for source in self.sources for volume in source})
        training = {**dataclasses.asdict(self.config), "step": self.step, "steps": self.steps}
        notes = {**self.notes, "data": names, "training": training}
        version = f"{self.config.preset}-step{self.step}"
        labels = tuple(sorted({name for source in self.sources for volume in source for name in volume.structures}))
        content = checkpoint.Checkpoint(self.network, self.config.hu_window, SPACING_MM, labels, version, notes=notes)
        checkpoint.save(self.weights_path, content, half=self.half)

    def resume(self) -> None:
        """Take up the state under `out`, if there is one.

        Raises:
            ValueError: it belongs to a run with another configuration.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.state_path.is_file():
            return
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        if state["run"] != self._identity():
            raise ValueError(f"out {self.out} must be new or hold a run of this configuration, it holds {state['run']}")
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        lines = self.log_path.read_text().splitlines()[: self.step]  # what came after the state is run again
        with atomic_path(self.log_path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
        log.info("resuming %s at batch %d of %d", self.out, self.step, self.steps)
