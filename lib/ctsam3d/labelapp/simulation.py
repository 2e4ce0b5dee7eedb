"""Active learning played through: a pool whose labels are hidden, a simulated annotator, rounds of retraining.

Strategies, scores, training and sessions are those of the server; only its records are left out. Every run, a strategy
with a seed, begins with the same weights. What a run has done is kept after every round, so that a simulation that was
stopped goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import multiprocessing
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from tqdm import tqdm

from ctsam3d import acquisition, checkpoint
from ctsam3d.acquisition import TARGET_DSC, predicted_quality
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, read_case
from ctsam3d.evaluation.scan_scores import ScanScores, mean_prototypes, prototypes_of, scan_scores
from ctsam3d.evaluation.simulate import simulate
from ctsam3d.evaluation.validation import validate
from ctsam3d.labelapp import strategy
from ctsam3d.labelapp.desk import Asked, Choose, Pool
from ctsam3d.labelapp.retrain import NEW_SHARE, Options, mean_weights, training_config
from ctsam3d.segmenter import Segmenter
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.loop import Source, train

log = logging.getLogger(__name__)

EMBEDDINGS, PREDICTIONS = "embeddings", "predictions"
CHOICES: Mapping[str, tuple[Choose, str]] = MappingProxyType(
    {
        "foreground_random": (strategy.foreground_random, ""),
        "random": (strategy.at_random, ""),
        "coldstart": (strategy.coldstart, EMBEDDINGS),
        "disagreement": (strategy.disagreement, PREDICTIONS),
        "click_effort": (strategy.click_effort, PREDICTIONS),
        "diverse_uncertain": (strategy.diverse_uncertain, PREDICTIONS),
    }
)  # how to choose, and what of the scans that takes
MAX_CLICKS = 6  # that the annotator spends on a structure
MIN_VOXELS = 200  # of the scan; less of a structure is not clicked
SCAN_SECONDS = 30.0  # assumed to open a scan and look through it
CLICK_SECONDS = 5.0  # assumed to find the place of a click, and for the answer
KEPT_BYTES = 2**30  # of the voxels of scans that are not read again
_NO_LESS = 1e-9
_START_METHOD = "forkserver"  # of processes, as PyTorch's threads do not survive a fork
_OPTIONS = Options(2, 1e-4, 2, 4, "decoder", 42, "cpu")


@dataclass(frozen=True)
class Plan:
    """What is played.

    Attributes:
        structures: wanted.
        strategies: names in `CHOICES`.
        seeds, rounds: numbers of them.
        k: scans a round.
        options: of each training.
        clicks: after which the test cases are scored.
        users: seeds of the users who click them.
    """

    structures: tuple[str, ...]
    strategies: tuple[str, ...] = tuple(CHOICES)
    seeds: int = 4
    rounds: int = 3
    k: int = 1
    options: Options = _OPTIONS
    clicks: tuple[int, ...] = (1, 3)
    users: int = 2

    def __post_init__(self):
        for name in ("seeds", "rounds", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.options.max_epochs * self.options.samples_per_volume * self.k < 2 * self.options.batch_size:
            # The learning rate of a run's last step is zero: with a single step nothing would be learnt.
            raise ValueError("options must give a training of two steps at least: more epochs, samples or scans")
        unknown = set(self.strategies) - set(CHOICES)
        if unknown or not self.strategies:
            raise ValueError(f"strategies must be some of {', '.join(CHOICES)}, got {', '.join(self.strategies)!r}")
        if not self.structures:
            raise ValueError("structures must hold at least one name, got none")


@dataclass(frozen=True)
class Played:
    """A round of a run; the fields are the columns of results.csv.

    Attributes:
        round: 0 is before the first label.
        chosen: ids of the scans, with spaces between.
        clicks, seconds: of the annotator since the beginning.
        dsc: on the test cases, mean over structures, users and numbers of clicks.
    """

    strategy: str
    seed: int
    round: int
    chosen: str
    clicks: int
    seconds: float
    dsc: float


class Simulation:
    """A plan on a pool and test cases.

    Args:
        out: folder of the simulation; one that was stopped goes on.
        pool, test: folders of cases.
        weights: the runs begin with; packaged ones by name, or a file.

    Raises:
        ValueError: `out` holds another simulation, or the test cases hold nothing wanted.
    """

    def __init__(self, out: Path, pool: Sequence[Path], test: Sequence[Path], weights: str, plan: Plan):
        self.out, self.plan = Path(out), plan
        self._arguments = (self.out, tuple(pool), tuple(test), weights, plan)
        self._cases: dict[str, Case] = {}
        self._holds: dict[str, bool] = {}
        self.base_path = checkpoint.path_of(weights)
        self.pool = {folder.name: folder for folder in pool}
        self.test = [self._case(folder) for folder in test]
        self.cache = VolumeCache(self.out / "volumes")
        about = {"plan": dataclasses.asdict(plan), "base": checkpoint.load(self.base_path).sha256}
        about |= {"pool": sorted(self.pool), "test": sorted(case.name for case in self.test)}
        path = self.out / "plan.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(about)):
            raise ValueError(f"out {out} must be new or hold this simulation, it holds another one")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")

    def run(self, processes: int = 1) -> Iterator[list[Played]]:
        """Plays all that is missing, and gives the results so far after every run.

        Seed by seed, so that what is there at any time can be compared.

        Args:
            processes: that play a run each, on a core each: patches are too small for two cores to share one well.
        """
        runs = [(name, seed) for seed in range(self.plan.seeds) for name in self.plan.strategies]
        with tqdm(total=len(runs), desc="runs", unit="run") as bar:
            for _ in self._played(runs, processes):
                bar.update()
                yield self.results()

    def _played(self, runs: Sequence[tuple[str, int]], processes: int) -> Iterator[None]:
        if processes == 1:
            yield from (_Run(self, name, seed).play() for name, seed in runs)
            return
        context = multiprocessing.get_context(_START_METHOD)
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(_play, self._arguments, name, seed) for name, seed in runs]
            try:
                yield from (future.result() for future in as_completed(futures))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def results(self) -> list[Played]:
        """The rounds that were played so far, of the runs that are complete."""
        found: list[Played] = []
        for seed in range(self.plan.seeds):
            for name in self.plan.strategies:
                rounds = _Run(self, name, seed).rounds()
                found += rounds if len(rounds) == self.plan.rounds + 1 else []
        return found

    def score(self, weights: Checkpoint) -> float:
        """Mean DSC of simulated users on the test cases; kept by weights."""
        path = self.out / "tests" / f"{weights.sha256[:16]}.json"
        if path.is_file():
            return float(json.loads(path.read_text(encoding="utf-8"))["dsc"])
        found = validate(Segmenter(weights), self.test, self.plan.clicks, self.plan.users, len(self.plan.structures))
        if found is None:
            raise ValueError(f"test cases must hold one of {', '.join(self.plan.structures)}, none does")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"dsc": found.mean}), encoding="utf-8")
        return found.mean

    def case(self, name: str) -> Case:
        """A case of the pool, of which the annotator sees the structures that are wanted."""
        if name in self._cases:
            return self._cases[name]
        case = self._case(self.pool[name])
        self._holds[name] = bool(case.names)
        held = sum(kept.volume.array_ijk.nbytes for kept in self._cases.values())
        if held + case.volume.array_ijk.nbytes <= KEPT_BYTES:
            self._cases[name] = case
        return case

    def holds(self, name: str) -> bool:
        """Whether a case of the pool holds anything that is wanted."""
        if name not in self._holds:
            self.case(name)
        return self._holds[name]

    def scan_score(self, weights: Checkpoint, name: str, make: Callable[[], ScanScores], key: str) -> ScanScores:
        """The scores of a scan under weights and prototypes, kept."""
        path = self.out / "scores" / f"{weights.sha256[:16]}-{key}-{name}.json"
        if path.is_file():
            return ScanScores(**json.loads(path.read_text(encoding="utf-8")))
        found = make()
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
        return found

    def _case(self, folder: Path) -> Case:
        case = read_case(folder)
        held = {name: case.structures[name] for name in self.plan.structures if name in case.structures}
        return Case(case.name, case.volume, MappingProxyType(held))


@functools.cache
def _remade(*arguments) -> Simulation:
    """In a process of its own, once."""
    return Simulation(*arguments)


def _play(arguments: tuple, name: str, seed: int) -> None:
    _Run(_remade(*arguments), name, seed).play()


class _Run:
    """A strategy with a seed."""

    def __init__(self, simulation: Simulation, name: str, seed: int):
        self.sim, self.name, self.seed = simulation, name, seed
        self.folder = simulation.out / "runs" / f"{name}-{seed}"
        self.choose, self.takes = CHOICES[name]

    def rounds(self) -> list[Played]:
        """What was played so far."""
        return [Played(**values) for values in self._state()["rounds"]]

    def play(self) -> None:
        """All rounds that are missing."""
        state, plan = self._state(), self.sim.plan
        if not state["rounds"]:
            dsc = self.sim.score(checkpoint.load(self.sim.base_path))
            state["rounds"].append(dataclasses.asdict(Played(self.name, self.seed, 0, "", 0, 0.0, dsc)))
            self._keep(state)
        while len(state["rounds"]) <= plan.rounds:
            self._round(state)
            self._keep(state)

    def _round(self, state: dict) -> None:
        number, before = len(state["rounds"]), state["rounds"][-1]
        base_path = self._weights(number - 1)
        weights = checkpoint.load(base_path)
        chosen = self._chosen(state, Segmenter(weights), weights, number)
        clicks, seconds = 0, 0.0
        for name in chosen:
            sessions = _annotated(Segmenter(weights), self.sim.case(name), self.seed)
            clicks += sum(session["clicks"] for session in sessions)
            seconds += SCAN_SECONDS + sum(s["clicks"] * CLICK_SECONDS for s in sessions)
            state["sessions"] += sessions
        trained = self._trained(state["labelled"], chosen, base_path, number)
        state["labelled"] += chosen
        played = Played(
            *(self.name, self.seed, number, " ".join(chosen)),
            *(before["clicks"] + clicks, round(before["seconds"] + seconds, 2), self.sim.score(trained)),
        )
        state["rounds"].append(dataclasses.asdict(played))
        log.info("%s", played)

    def _chosen(self, state: dict, segmenter: Segmenter, weights: Checkpoint, number: int) -> list[str]:
        free = [name for name in sorted(self.sim.pool) if name not in state["labelled"]]
        scores, taken = self._scores(state, free, segmenter, weights) if self.takes else ({}, np.zeros((0, 0)))
        # As the server has it from records; `random` alone makes no use of it.
        holds = [self.sim.holds(name) for name in free]
        sessions = [session for session in state["sessions"] if session["clicks"]]
        effort = acquisition.fit_effort(
            [s["quality"] for s in sessions], [s["first_dsc"] for s in sessions], [s["clicks"] for s in sessions]
        )
        pool = Pool(free, holds, scores, taken, len(state["labelled"]), effort)
        rng = np.random.default_rng([self.seed, number, zlib.crc32(self.name.encode())])
        asked = Asked("annotator", structures=self.sim.plan.structures, k=self.sim.plan.k)
        return [free[pick.index] for pick in self.choose(pool, asked, rng)]

    def _scores(self, state: dict, free: Sequence[str], segmenter: Segmenter, weights: Checkpoint):
        labelled, predict = state["labelled"], self.takes == PREDICTIONS
        cases = [self.sim.case(name) for name in labelled] if predict else []
        means = mean_prototypes([prototypes_of(segmenter, case.volume, case.structures) for case in cases])
        key = f"{zlib.crc32(' '.join(sorted(labelled)).encode()):08x}"

        def score(name: str, predict: bool) -> ScanScores:
            def make() -> ScanScores:
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                return scan_scores(segmenter, self.sim.case(name).volume, means, rng, predict=predict)

            return self.sim.scan_score(weights, name, make, key if predict else EMBEDDINGS)

        taken = [score(name, False).embedding for name in labelled]
        return {name: score(name, predict) for name in free}, np.array(taken) if taken else np.zeros((0, 0))

    def _trained(self, earlier: Sequence[str], chosen: Sequence[str], base_path: Path, number: int) -> Checkpoint:
        """The weights after a training like that of the Train button, without its gate."""
        target, base = self._weights(number), checkpoint.load(base_path)
        new, old = ([v for n in names if (v := self._volume(n)) is not None] for names in (chosen, earlier))
        if not new:  # nothing wanted in these scans: there is nothing to learn from
            shutil.copyfile(base_path, target)
            return base
        sources = [Source(new, NEW_SHARE)] + ([Source(old, 1 - NEW_SHARE)] if old else [])
        options = dataclasses.replace(self.sim.plan.options, seed=self.seed)
        run = self.folder / "training"
        path = train(sources, training_config(base, options), run, device=options.device, initial=base)
        trained = mean_weights(checkpoint.load(base_path), checkpoint.load(path))
        trained = dataclasses.replace(trained, version=f"{self.name}-{self.seed}-{number}")
        checkpoint.save(target, trained)
        shutil.rmtree(run)
        return checkpoint.load(target)

    def _volume(self, name: str):
        try:
            return self.sim.cache.get(self.sim.case(name))
        except ValueError as error:
            log.info("%s", error)
            return None

    def _weights(self, number: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"round-{number}.safetensors" if number else self.sim.base_path

    def _state(self) -> dict:
        path = self.folder / "state.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        return {"rounds": [], "labelled": [], "sessions": []}

    def _keep(self, state: dict) -> None:
        with atomic_path(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")


def _annotated(segmenter: Segmenter, case: Case, seed: int) -> list[dict]:
    """What the annotator spends on the wanted structures of a scan, until DSC is 0.9 or no click is left.

    The label that is saved afterwards is the truth, as a person would mend what is left by hand.
    """
    sessions = []
    for name in case.names:
        target_ijk = case.mask(name)
        if np.count_nonzero(target_ijk) < MIN_VOXELS:
            continue
        session = segmenter.session(case.volume, expand=False)
        counts, enough = range(1, MAX_CLICKS + 1), TARGET_DSC - _NO_LESS
        results = simulate(session, target_ijk, case.name, name, seed, counts, enough=enough)
        while len(session.clicks) > 1:  # back to the first click, which costs nothing
            session.undo()
        quality = predicted_quality(session.state.patches[-1].probability)
        needed = results[-1].clicks
        sessions.append({"structure": name, "clicks": needed, "quality": quality, "first_dsc": results[0].dsc})
    return sessions
