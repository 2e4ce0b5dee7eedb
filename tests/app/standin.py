"""An app whose network's training and validation are stand-ins, for the tests of training."""

import dataclasses

import torch
from tests.app.labelling import NAMES, Team, write_case

from ctsam3d import checkpoint
from ctsam3d.data.io import read_case
from ctsam3d.evaluation.validation import Scores
from ctsam3d.labelapp import retrain
from ctsam3d.labelapp.train import ClickTrainTask
from ctsam3d.labelapp.versions import Versions
from ctsam3d.training.loop import Progress
from ctsam3d.training.step import RoundResult

ROUNDS = [RoundResult(0.1, 0.5, 0.01, 0.4), RoundResult(0.05, 0.3, 0.01, 0.6)]


class Trainer:
    """Stands in for `train`: changes one parameter, and remembers what it was called with."""

    def __init__(self):
        self.calls, self.fail = [], None

    def __call__(self, sources, config, out, *, device, initial, save_every, observe):
        self.calls.append((sources, config, initial))
        self.resumed = (out / "state").exists()
        out.mkdir(parents=True, exist_ok=True)
        (out / "state").write_text("state")
        if self.fail:
            raise self.fail
        observe(Progress(1, 2, 1, config.epochs, ROUNDS, 30.0))
        observe(Progress(2, 2, config.epochs, config.epochs, ROUNDS, 0.0))
        with torch.no_grad():
            next(initial.network.decoder.parameters()).add_(0.01 * len(self.calls))
        notes = {"data": [volume.name for source in sources for volume in source.volumes]}
        trained = dataclasses.replace(initial, version="run", labels=("box",), notes=notes)
        checkpoint.save(out / "model.safetensors", trained)
        return out / "model.safetensors"


class Gauge:
    """Stands in for `validate`: scores by hand, of the reference set and of validation, before and then after."""

    def __init__(self):
        self.scores, self.asked = [0.5, 0.4, 0.5, 0.6], []

    def __call__(self, segmenter, cases, **options):
        names = [case.name for case in cases]
        phantoms = any(name.startswith("phantom") for name in names)
        score = self.scores[2 * (segmenter.info.version == "run") + (not phantoms)]
        self.asked.append((segmenter.info.version, names))
        return Scores((1, 3, 5), (score,) * 3, len(names), 4) if names else None


class App:
    """An app's model folder, a team's datastore, and the trainer."""

    def __init__(self, folder, monkeypatch):
        self.team, self.versions = Team(folder), Versions(folder / "model")
        self.task = ClickTrainTask(self.versions, NAMES, "cpu")
        self.trainer, self.gauge = Trainer(), Gauge()
        case = folder / "phantom"
        write_case(case, 99, {1: "spleen", 2: "liver"})
        monkeypatch.setattr(
            retrain, "phantom_case", lambda _, spec: dataclasses.replace(read_case(case), name=spec.name)
        )
        monkeypatch.setattr(retrain, "train", self.trainer)
        monkeypatch.setattr(retrain, "validate", self.gauge)
        monkeypatch.setattr(retrain, "proposal_score", lambda segmenter, cases: 0.9)

    def press(self, **request):
        return self.task({"model": "ctsam3d", **request}, self.team.fresh())

    @property
    def drawn(self):
        """Names and shares of the last training's sources."""
        return [([volume.name for volume in source.volumes], source.share) for source in self.trainer.calls[-1][0]]
