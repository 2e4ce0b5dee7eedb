"""Appended to the app of a server whose training is only watched: no step learns anything, and none takes long."""

import dataclasses
import time

from ctsam3d import checkpoint
from ctsam3d.evaluation.validation import Scores
from ctsam3d.labelapp import retrain
from ctsam3d.training.loop import Progress

STEP_SECONDS = 0.5


def train(sources, config, out, *, device, initial, save_every, observe):
    """Two steps in an epoch."""
    steps = 2 * config.epochs
    for step in range(1, steps + 1):
        time.sleep(STEP_SECONDS)
        observe(Progress(step, steps, (step + 1) // 2, config.epochs, [], STEP_SECONDS * (steps - step)))
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out / "model.safetensors", dataclasses.replace(initial, version="run"))
    return out / "model.safetensors"


def validate(segmenter, cases, max_structures=None):
    """Better after the training, on the reference set; of the team there are no studies to validate on."""
    score = 0.7 if segmenter.info.version == "run" else 0.6
    return Scores((1, 3, 5), (score,) * 3, 1, 4) if max_structures else None


retrain.train, retrain.validate = train, validate
retrain.proposal_score = lambda segmenter, cases: 0.9
retrain.phantom_case = lambda folder, spec: None
retrain.REPLAY = ()
