"""What a run writes down of every step: a line of JSON, and the curves of TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ctsam3d.data.files import atomic_path
from ctsam3d.training.step import RoundResult

log = logging.getLogger(__name__)


class RunLog:
    """``log.jsonl`` and ``tensorboard/`` in a folder.

    Args:
        enabled: False for a process that has nothing to say.
    """

    def __init__(self, folder: Path, enabled: bool = True):
        self.path, self.folder, self.enabled, self._board = folder / "log.jsonl", folder, enabled, None

    def open(self, step: int) -> None:
        """Begin after `step`; what was written after it is forgotten, as those steps are run again."""
        if not self.enabled:
            return
        if self.path.is_file():
            lines = self.path.read_text().splitlines()[:step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("no TensorBoard curves: the package tensorboard is not installed")
        else:
            self._board = SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)

    def write(self, step: int, learning_rate: float, rounds: Sequence[RoundResult]) -> None:
        """One step; a curve for each loss and click round."""
        if not self.enabled:
            return
        record = {"step": step, "learning_rate": learning_rate, "rounds": [dataclasses.asdict(r) for r in rounds]}
        with open(self.path, "a") as lines:
            lines.write(json.dumps(record) + "\n")
        if self._board:
            self._board.add_scalar("learning rate", learning_rate, step)
            for number, result in enumerate(rounds, start=1):
                for name, value in dataclasses.asdict(result).items():
                    self._board.add_scalar(f"{name}/round {number}", value, step)

    def close(self) -> None:
        if self._board:
            self._board.close()
