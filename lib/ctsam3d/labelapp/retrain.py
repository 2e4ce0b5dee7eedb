"""From labelled studies to a new version of the weights, or to the reason why there is none.

Everything that a run needs lies in the app's model folder, so that one that was killed goes on: ``cache/`` (resampled
volumes), ``phantoms/``, ``run/`` (the training's state), ``split.json`` and ``status.json``.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.files import atomic_path
from ctsam3d.data.phantom_sets import PhantomSpec, phantom_case
from ctsam3d.evaluation.gate import Decision, decide
from ctsam3d.evaluation.proposals import proposal_score
from ctsam3d.evaluation.validation import MAX_STRUCTURES, REFERENCE, Scores, validate
from ctsam3d.labelapp.datalist import Study, image_content, labelled_studies
from ctsam3d.labelapp.split import EXCLUDED, TRAINING, VALIDATION, Split
from ctsam3d.labelapp.status import DONE, FAILED, Status
from ctsam3d.labelapp.versions import SwitchedError, Versions
from ctsam3d.segmenter import Segmenter
from ctsam3d.training.cases import VolumeCache, as_case
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Progress, RunError, Source, train
from ctsam3d.training.pairs import TrainingVolume

logger = logging.getLogger(__name__)

FEEDBACK_SHARE = 0.5  # of the rounds, for weights whose sessions feed S's answer back
CARRY_SHARE = 0.25  # of the later rounds, as half of a session's patches are opened by expansions
IMPRECISE_CLICKS = 0.5  # of the later ones, as people do not find the deepest point
TRAINED_SHARE = 0.5  # of the published weights, the rest being the weights before: as good on the new, forgets less
NEW_SHARE = 0.7  # of the pairs; the others are from phantoms and from what was learnt before
REPLAY = (
    PhantomSpec(5000, "trunk"),
    PhantomSpec(5001, "abdomen"),
    PhantomSpec(5002, "chest"),
    PhantomSpec(5003, "pelvis"),
    PhantomSpec(5004, "abdomen"),
    PhantomSpec(5005, "chest"),
)
MAX_VALIDATION = 20  # studies that are clicked through before and after
SAVE_EVERY = {"cpu": 5, "cuda": 50}  # steps, about a minute
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """What a client can ask for.

    Attributes:
        max_epochs: passes over the studies and what is replayed beside them.
        batch_size: pairs a step.
        samples_per_volume: pairs drawn from a study in a pass.
        train: "decoder" (norm layers, decoder and P) or "full".
    """

    max_epochs: int
    learning_rate: float
    batch_size: int
    samples_per_volume: int
    train: str
    seed: int
    device: str


@dataclass(frozen=True, eq=False)
class Material:
    """What a run learns from and is measured on.

    Attributes:
        new: newly labelled volumes, or all of the team's where nothing is new.
        earlier: volumes that an ancestor of the weights was trained on.
        validation: volumes of the validation patients. They are what is measured, not the files, which the team may
            label anew meanwhile.
    """

    new: list[TrainingVolume]
    earlier: list[TrainingVolume]
    validation: list[TrainingVolume]

    @property
    def measured(self) -> list[TrainingVolume]:
        """The validation volumes that are clicked through: not more than the gate can wait for."""
        return self.validation[:MAX_VALIDATION]


@dataclass(frozen=True)
class Measured:
    """What the gate compares, of one version of the weights.

    Attributes:
        reference, validation: scores of single patches on the reference set and on the validation volumes; None where
            no structure counts.
        proposals: what P gets right around patches of the reference set, see `proposal_score`.
    """

    reference: Scores | None
    validation: Scores | None
    proposals: float

    @property
    def by_clicks(self) -> dict[str, dict[str, float] | None]:
        """For reports: DSC by number of clicks."""
        return {name: score.by_clicks if score else None for name, score in self._scores.items()}

    @property
    def _scores(self) -> dict[str, Scores | None]:
        return {"reference": self.reference, "validation": self.validation}

    def as_json(self) -> dict:
        """What `from_json` reads."""
        scores = {name: score and dataclasses.asdict(score) for name, score in self._scores.items()}
        return {**scores, "proposals": self.proposals}

    @classmethod
    def from_json(cls, values: dict) -> Measured:
        """The inverse of `as_json`, also after JSON has turned tuples into lists."""
        return cls(_scores(values["reference"]), _scores(values["validation"]), values["proposals"])


class Retraining:
    """One press on Train; the caller holds the folder's lock.

    Args:
        versions: starts from the one that is served, and publishes here.
        labels: of the app.
        status: told about every step.
    """

    def __init__(self, versions: Versions, labels: Sequence[str], options: Options, status: Status):
        self.versions, self.labels, self.options, self.status = versions, labels, options, status
        self.folder = versions.folder
        self.run_folder = self.folder / "run"
        self.cache = VolumeCache(self.folder / "cache")
        self._logged = (0.0, 0)

    def run(self, datastore) -> dict:
        """Trains, measures, and publishes or not.

        Returns:
            The outcome: ``published``, ``version`` (which is served now), ``candidate`` (the new one) and ``reason``.

        Raises:
            ValueError: no usable study, or weights that cannot be trained on.
        """
        start = time.monotonic()
        self.status.update(
            state="preparing", options=dataclasses.asdict(self.options), total_epochs=self.options.max_epochs
        )
        try:
            outcome = self._run(datastore)
        except BaseException as error:
            self.status.update(state=FAILED, error=f"{type(error).__name__}: {error}", total_time=_since(start))
            logger.error("training failed, the served version stays: %s", error)
            if isinstance(error, (FloatingPointError, RunError)):  # it would fail at the same step again
                self._clear_run()
            raise
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.status.update(state=DONE, outcome=outcome, seconds_left=0, total_time=_since(start))
        self._clear_run()
        logger.info("outcome: %s", outcome["reason"])
        return outcome

    def _run(self, datastore) -> dict:
        self.versions.clear_temporary()
        expected = self.versions.current()
        base_path = self.versions.served_path()
        base = checkpoint.load(base_path)
        self.status.update(base=base.version)
        material = self._material(datastore, base)
        replay = self._replay()
        self._prune([*replay, *material.new, *material.earlier, *material.validation])
        sources = [Source(material.new, NEW_SHARE), Source([*replay, *material.earlier], 1 - NEW_SHARE)]
        config = training_config(base, self.options)
        self._begin(base, config, sources)
        before = self._scores_before(base, material)
        trained = mean_weights(base, self._train(sources, config, checkpoint.load(base_path)))
        self.status.update(
            state="validating after training", seconds_left=self.status.values.get("validation_seconds", 0)
        )
        after = self._scores(trained, material)
        if before.reference is None or after.reference is None:
            raise ValueError("reference set must hold a structure that is large enough, it has none")
        best = _best(base, "reference_best", before.reference.mean), _best(base, "proposals_best", before.proposals)
        decision = self._decide(before, after, *best)
        notes = self._notes(base, material, before, after, decision)
        notes |= {name: [score, repr(REFERENCE)] for name, score in zip(("reference_best", "proposals_best"), best)}
        return self._conclude(decision, trained, base, expected, notes)

    # ---- material -------------------------------------------------------------------------------------------------

    def _material(self, datastore, base: Checkpoint) -> Material:
        """The team's usable studies, divided.

        Raises:
            ValueError: none is left to train on.
        """
        studies, skipped = labelled_studies(datastore, self.labels)
        found: list[tuple[Study, str, TrainingVolume]] = []
        for number, study in enumerate(studies, start=1):
            self.status.update(now=False, state=f"preparing study {number} of {len(studies)}")
            try:
                case = study.read()
                found.append((study, image_content(case.volume), self.cache.get(case)))
            except ValueError as error:
                skipped[study.name] = str(error)
        parts = Split(self.folder / "split.json").assign([(study.patient, image) for study, image, _ in found])
        divided = {part: [] for part in (TRAINING, VALIDATION, EXCLUDED)}
        first: dict[str, str] = {}
        for part, (study, _, volume) in sorted(zip(parts, found), key=lambda entry: entry[1][2].content):
            if first.setdefault(volume.content, study.name) == study.name:
                divided[part].append((study, volume))
            else:
                skipped[study.name] = f"image and label are those of {first[volume.content]}"
        skipped |= {s.name: "was trained on before its patient came into validation" for s, _ in divided[EXCLUDED]}
        self._tell(divided, skipped)
        if not divided[TRAINING]:
            raise ValueError(_nothing_usable(skipped, [study.name for study, _ in divided[VALIDATION]]))
        trained = set(base.notes.get("trained", ()))
        new = [volume for _, volume in divided[TRAINING] if volume.content not in trained]
        earlier = [volume for _, volume in divided[TRAINING] if volume.content in trained]
        return Material(new or earlier, earlier if new else [], [volume for _, volume in divided[VALIDATION]])

    def _tell(self, divided: dict[str, list[tuple[Study, TrainingVolume]]], skipped: dict[str, str]) -> None:
        names = {part: [study.name for study, _ in divided[part]] for part in (TRAINING, VALIDATION)}
        self.status.update(studies=names, skipped=skipped)
        for name, reason in skipped.items():
            logger.warning("study %s is skipped: %s", name, reason)
        logger.info("studies for training %s, for validation %s", *names.values())

    def _replay(self) -> list[TrainingVolume]:
        self.status.update(state="preparing phantoms")
        return [self.cache.get(phantom_case(self.folder / "phantoms", spec)) for spec in REPLAY]

    def _prune(self, volumes: Sequence[TrainingVolume]) -> None:
        """Removes the resampled volumes of what is labelled otherwise by now."""
        used = {volume.content for volume in volumes}
        for folder in self.cache.folder.iterdir():
            if folder.is_dir() and folder.name not in used:
                (folder / "about.json").unlink(missing_ok=True)  # without it, what may be left over is no volume
                shutil.rmtree(folder)

    # ---- the run --------------------------------------------------------------------------------------------------

    def _begin(self, base: Checkpoint, config: TrainingConfig, sources: Sequence[Source]) -> None:
        """Keeps the state of a run that had the same base, options and volumes; clears away any other."""
        contents = [[volume.content for volume in source.volumes] for source in sources]
        identity = json.dumps({"base": base.sha256, "config": dataclasses.asdict(config), "volumes": contents})
        path = self.run_folder / "identity.json"
        if path.is_file() and path.read_text(encoding="utf-8") == identity:
            logger.info("going on with the training that was stopped")
            return
        self._clear_run()
        with atomic_path(path) as temporary:
            temporary.write_text(identity, encoding="utf-8")

    def _clear_run(self) -> None:
        (self.run_folder / "identity.json").unlink(missing_ok=True)  # first: what is left is no run to go on with
        shutil.rmtree(self.run_folder, ignore_errors=True)

    def _train(self, sources: Sequence[Source], config: TrainingConfig, base: Checkpoint) -> Checkpoint:
        self.status.update(state="training")
        path = train(
            sources,
            config,
            self.run_folder / "state",
            device=self.options.device,
            initial=base,
            save_every=SAVE_EVERY[torch.device(self.options.device).type],
            observe=self._observe,
        )
        return checkpoint.load(path)

    def _observe(self, progress: Progress) -> None:
        rounds = [
            {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(result).items()}
            for result in progress.rounds
        ]
        seconds_left = round(progress.seconds_left + self.status.values.get("validation_seconds", 0))
        place = {"epoch": progress.epoch, "step": progress.step, "steps": progress.steps}
        self.status.update(now=False, **place, rounds=rounds, seconds_left=seconds_left)
        then, epoch = self._logged
        if progress.epoch != epoch or time.monotonic() - then >= _LOG_SECONDS or progress.step == progress.steps:
            self._logged = time.monotonic(), progress.epoch
            logger.info(
                "epoch %d of %d, step %d of %d, %d s left; rounds: %s",
                *(progress.epoch, progress.epochs, progress.step, progress.steps, seconds_left),
                "; ".join(", ".join(f"{name} {value:.3g}" for name, value in result.items()) for result in rounds),
            )

    # ---- the gate -------------------------------------------------------------------------------------------------

    def _scores_before(self, base: Checkpoint, material: Material) -> Measured:
        """The scores of the served weights, kept with the run."""
        key = json.dumps([base.sha256, [volume.content for volume in material.measured], repr(REFERENCE)])
        path = self.run_folder / "before.json"
        self.status.update(state="validating before training")
        if path.is_file() and (record := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
            measured = Measured.from_json(record["scores"])
            self.status.update(validation_seconds=record["seconds"])
            self._show("before", measured)
            return measured
        start = time.monotonic()
        measured = self._scores(base, material, "before")
        seconds = round(time.monotonic() - start)
        self.status.update(validation_seconds=seconds)
        with atomic_path(path) as temporary:
            record = {"key": key, "seconds": seconds, "scores": measured.as_json()}
            temporary.write_text(json.dumps(record), encoding="utf-8")
        return measured

    def _scores(self, weights: Checkpoint, material: Material, when: str = "after") -> Measured:
        """Of the session that serves, on the reference set and on the validation volumes; and of P."""
        segmenter = Segmenter(weights, self.options.device)
        reference = [phantom_case(self.folder / "phantoms", spec) for spec in REFERENCE]
        largest = max(MAX_STRUCTURES, *(len(spec.structures) for spec in REFERENCE))
        scores = validate(segmenter, reference, max_structures=largest)
        proposals = proposal_score(segmenter, reference)
        self._show(when, Measured(scores, None, proposals))
        measured = Measured(scores, validate(segmenter, map(as_case, material.measured)), proposals)
        self._show(when, measured)
        logger.info("DSC by clicks %s training: %s; P: %.4f", when, measured.by_clicks, proposals)
        weights.network.to("cpu")  # the GPU is the training's
        return measured

    def _show(self, when: str, measured: Measured) -> None:
        for name, value in {**measured.by_clicks, "proposals": round(measured.proposals, 4)}.items():
            self.status.update(**{name: {**self.status.values.get(name, {}), when: value}})

    def _decide(self, before: Measured, after: Measured, reference: float, proposals: float) -> Decision:
        """`reference`, `proposals`: the best so far."""
        reference, proposals = (reference, after.reference.mean), (proposals, after.proposals)
        validation = before.validation, after.validation
        if None in validation:
            return decide(reference, proposals)
        return decide(reference, proposals, (validation[0].mean, validation[1].mean), validation[1].cases)

    def _notes(
        self, base: Checkpoint, material: Material, before: Measured, after: Measured, decision: Decision
    ) -> dict:
        contents = {volume.content for volume in (*material.new, *material.earlier)}
        return {
            "trained": sorted(contents.union(base.notes.get("trained", ()))),
            "scores": {"before": before.by_clicks, "after": after.by_clicks},
            "proposals": {"before": before.proposals, "after": after.proposals},
            "gate": decision.reason,
            "accepted": decision.publish,
            "options": dataclasses.asdict(self.options),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _conclude(self, decision: Decision, trained: Checkpoint, base: Checkpoint, expected: str, notes: dict) -> dict:
        """Stores the trained weights as a version, and makes it the current one where the gate lets it pass."""
        labels = tuple(sorted({*base.labels, *trained.labels}))
        data = sorted({*base.notes.get("data", ()), *trained.notes.get("data", ())})
        trained = dataclasses.replace(trained, labels=labels, notes={**trained.notes, "data": data})
        name = self.versions.add(trained, base, notes)
        outcome = {"published": False, "version": base.version, "candidate": name, "reason": decision.reason}
        if not decision.publish:
            return outcome
        try:
            self.versions.publish(name, expected)
        except SwitchedError as error:
            return {**outcome, "version": self.versions.current(), "reason": f"kept the old version: {error}"}
        return {**outcome, "published": True, "version": name}


def training_config(base: Checkpoint, options: Options) -> TrainingConfig:
    """The configuration of a retraining of `base`."""
    return TrainingConfig(
        preset=None,
        hu_window=base.hu_window,
        epochs=options.max_epochs,
        learning_rate=options.learning_rate,
        schedule="cosine",
        samples_per_volume=options.samples_per_volume,
        batch_size=options.batch_size,
        trainable="all" if options.train == "full" else "decoder",
        imprecise_clicks=IMPRECISE_CLICKS,
        carry=CARRY_SHARE,
        feedback=FEEDBACK_SHARE if base.feedback else 0.0,
        frozen_statistics=True,
        seed=options.seed,
    )


def _best(base: Checkpoint, name: str, score: float) -> float:
    """The best of a score on the reference set that `base` or one of its ancestors had.

    Against the last one alone, version after version could lose a little.
    """
    best, of = base.notes.get(name, (0.0, ""))
    return max(score, best) if of == repr(REFERENCE) else score


def _since(start: float) -> str:
    """Time since `start` of the monotonic clock, as ``H:MM:SS``."""
    return str(datetime.timedelta(seconds=round(time.monotonic() - start)))


def _scores(values: dict | None) -> Scores | None:
    """The inverse of `dataclasses.asdict`, after JSON has turned tuples into lists."""
    return values and Scores(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def mean_weights(base: Checkpoint, trained: Checkpoint) -> Checkpoint:
    """`trained` with weights on the way from those of `base`.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models": between the two lie weights that keep what
    the old ones could and have most of what the new ones learnt.
    """
    old, new = base.network.state_dict(), trained.network.state_dict()
    for name, value in new.items():
        if value.is_floating_point():
            value.lerp_(old[name].to(value), 1 - TRAINED_SHARE)
    return trained


def _nothing_usable(skipped: dict[str, str], held_out: Sequence[str]) -> str:
    words = ["no usable study: save a label as final, by Submit in Slicer or PUT /datastore/label"]
    if skipped:
        words.append("skipped: " + "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5]))
    if held_out:
        words.append(f"held out for validation for ever: {', '.join(held_out[:5])} ({len(held_out)} in all)")
    return "; ".join(words)
