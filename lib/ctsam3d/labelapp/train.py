"""Train in the viewers, ``POST /train/ctsam3d``: the request checked, one training at a time, and its status."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from ctsam3d.labelapp.retrain import Options, Retraining
from ctsam3d.labelapp.status import Status, only_training, read_status
from ctsam3d.labelapp.versions import Versions
from ctsam3d.training.config import TrainingConfig

logger = logging.getLogger(__name__)

# What MONAI Label and its clients add to every request; nothing of it is read here.
_FOREIGN_KEYS = frozenset("model client_id local_rank gpus multi_gpu bundle_path name".split())


class ClickTrainTask(TrainTask):
    """Trains the served weights further on the studies whose label is final, and publishes them if they are better.

    MONAI Label calls it in a process of its own, and stops that process by SIGKILL.

    Args:
        versions: of the weights.
        labels: of the app, for labels that were saved without names.
        device: of the app; the default of a training.
    """

    def __init__(self, versions: Versions, labels: Sequence[str], device: str):
        super().__init__("Trains on the studies with a final label; publishes what is better and forgets nothing")
        self._versions, self._labels, self._device = versions, labels, device

    @property
    def _status_path(self):
        return self._versions.folder / "status.json"

    def config(self) -> dict:
        """The options with their defaults, which clients show; of a list the first is the default."""
        return {
            "max_epochs": 10,
            "learning_rate": 1e-4,
            "batch_size": 2 if self._device == "cpu" else 4,
            "samples_per_volume": TrainingConfig.samples_per_volume,
            "train": ["decoder", "full"],
            "seed": 42,
            "device": list(dict.fromkeys([self._device, *(["cuda"] if torch.cuda.is_available() else []), "cpu"])),
        }

    def stats(self) -> dict:
        """The status of the training that runs, or of the last one; empty before the first.

        Keys: ``state``, ``base`` (version it starts from), ``options``, ``studies``, ``skipped`` (study to reason),
        ``epoch``, ``total_epochs``, ``step``, ``steps``, ``rounds`` (focal, dice, heatmap, dsc per click round),
        ``seconds_left``, ``reference`` and ``validation`` (DSC by clicks, before and after), ``outcome``
        (``published``, ``version``, ``candidate``, ``reason``), ``error``. Slicer's bars show ``epoch`` of
        ``total_epochs`` and ``best_metric``; ``total_time`` tells it that a training is over.
        """
        stats = read_status(self._status_path)
        if stats:
            stats["best_metric"] = _best_metric(stats)
        return stats

    def options(self, request: Mapping[str, Any]) -> Options:
        """The checked options of a request.

        Raises:
            ValueError: an unknown option, or a value that it cannot have.
        """
        config = self.config()
        values = {name: value[0] if isinstance(value, list) else value for name, value in config.items()}
        for name, value in request.items():
            if name in config:
                # A client may send back what it was offered, whole.
                values[name] = values[name] if value == config[name] else value
            elif name not in _FOREIGN_KEYS and not isinstance(value, Mapping):  # a mapping: of another trainer
                raise ValueError(f"option must be one of {', '.join(config)}, got {name[:80]!r}")
        return Options(
            max_epochs=_whole("max_epochs", values["max_epochs"], 1, 10_000),
            learning_rate=_learning_rate(values["learning_rate"]),
            batch_size=_whole("batch_size", values["batch_size"], 1, 256),
            samples_per_volume=_whole("samples_per_volume", values["samples_per_volume"], 1, 1000),
            train=_one_of("train", values["train"], config["train"]),
            seed=_whole("seed", values["seed"], 0, 2**31 - 1),
            device=_one_of("device", values["device"], config["device"]),
        )

    def __call__(self, request: dict, datastore: Datastore) -> dict:
        """Runs a training to its end.

        Raises:
            ValueError: an option, or no usable study.
            RuntimeError: another training runs in this app folder.
        """
        options = self.options(request)
        with only_training(self._versions.folder):
            return Retraining(self._versions, self._labels, options, Status(self._status_path)).run(datastore)


def _best_metric(stats: Mapping) -> float:
    """Mean DSC of the version that is served after the training, on the team's studies where there are scores."""
    when = "after" if stats.get("outcome", {}).get("published") else "before"
    scores = [stats.get(name, {}).get(when) for name in ("validation", "reference")]
    by_clicks = next(filter(None, scores), {})
    return sum(by_clicks.values()) / len(by_clicks) if by_clicks else 0.0


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _number(value)
    if number is None or number != int(number) or not low <= number <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:80]!r}")
    return int(number)


def _learning_rate(value: Any) -> float:
    number = _number(value)
    if number is None or not 0 < number <= 0.1:
        raise ValueError(f"learning_rate must be a number above 0, at most 0.1, got {str(value)[:80]!r}")
    return number


def _number(value: Any) -> float | None:
    """A finite number, also where a client sends it in text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {str(value)[:80]!r}")
    return value
