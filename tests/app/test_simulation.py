"""The simulation of active learning: its areas and tests by hand, and a run that is stopped goes on."""

import json

import numpy as np
import pandas as pd
import pytest
from tests.app.labelling import write_case
from tests.data import miniatures
from tests.evaluation.standin import SameHu

from ctsam3d import checkpoint
from ctsam3d.data.io import read_case
from ctsam3d.labelapp import simulation
from ctsam3d.labelapp.retrain import Options
from ctsam3d.labelapp.simulation import Plan, Played, Simulation
from ctsam3d.labelapp.simulation_report import area, areas, compare, write_report
from ctsam3d.labelapp.strategy import DEFAULT

NAMES = {1: "spleen", 2: "liver"}


def test_area_by_hand():
    assert area([0, 4], [0.5, 0.7], 4) == pytest.approx(0.6)
    assert area([0, 2, 4], [0.5, 0.7, 0.7], 4) == pytest.approx(0.65)
    assert area([0, 4], [0.5, 0.7], 2) == pytest.approx(0.55)  # cut off half-way
    assert area([0, 4], [0.5, 0.7], 8) == pytest.approx(0.65)  # keeps its last DSC
    assert area([0, 0, 4], [0.5, 0.6, 0.6], 4) == pytest.approx(0.6)  # a round that cost nothing
    with pytest.raises(ValueError, match="end must be positive"):
        area([0], [0.5], 0)


def played(name, seed, *rounds):
    return [Played(name, seed, n, "", clicks, 10.0 * clicks, dsc) for n, (clicks, dsc) in enumerate(rounds)]


def test_areas_are_compared_by_pairs_of_seeds(tmp_path):
    rows = []
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        rows += played(DEFAULT, seed, (0, 0.5), (4, 0.5)) + played("coldstart", seed, (0, 0.5), (6, 0.5 + 1.5 * gain))
    frame = pd.DataFrame([vars(row) for row in rows])
    table = areas(frame, "clicks")
    assert table["coldstart"].tolist() == pytest.approx([0.55, 0.6, 0.65])  # up to four clicks, where every run is
    base, other = sorted(compare(table), key=lambda row: row["strategy"] != DEFAULT)
    assert base == {"strategy": DEFAULT, "area": pytest.approx(0.5)}
    assert other["difference"] == pytest.approx(0.1)
    # Mean 0.1, deviation 0.05, three pairs: t = 0.1 / (0.05 / sqrt 3) = 3.46, two-sided p of 2 degrees of freedom.
    assert other["p"] == pytest.approx(0.0742, abs=1e-3) and other["low"] < 0 < other["high"]
    text = write_report(tmp_path, rows, "the command").read_text()
    assert "`the command`" in text and "3 seeds, 1 rounds" in text and (tmp_path / "curves.png").is_file()
    assert len(pd.read_csv(tmp_path / "results.csv")) == 12
    with pytest.raises(ValueError, match="complete run"):
        write_report(tmp_path, [])


def test_plans_are_checked():
    for values, words in (
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"strategies": ("first",)}, "strategies must be some of foreground_random"),
        ({"structures": ()}, "structures must hold"),
        ({"options": Options(1, 1e-4, 2, 2, "decoder", 0, "cpu")}, "two steps at least"),
    ):
        with pytest.raises(ValueError, match=words):
            Plan(**{"structures": ("liver",), **values})


@pytest.fixture
def cases(tmp_path):
    for number in range(5):
        write_case(tmp_path / "cases" / f"c{number}", number, NAMES if number else {1: "colon"})
    return sorted((tmp_path / "cases").iterdir())


@pytest.fixture
def quick(monkeypatch):
    """Without a network: what is trained scores more, the annotator needs three clicks."""
    monkeypatch.setattr(simulation, "Segmenter", lambda weights: weights)
    monkeypatch.setattr(Simulation, "score", lambda self, weights: 0.5 + 0.01 * len(weights.version))
    session = {"structure": "liver", "clicks": 3, "quality": 0.5, "first_dsc": 0.4}
    monkeypatch.setattr(simulation, "_annotated", lambda segmenter, case, seed: [session] * len(case.names))
    calls = []

    def train(sources, config, out, **options):
        calls.append([[volume.name for volume in source.volumes] for source in sources])
        out.mkdir(parents=True)
        checkpoint.save(out / "model.safetensors", options["initial"])
        return out / "model.safetensors"

    monkeypatch.setattr(simulation, "train", train)
    return calls


def test_a_simulation_that_was_stopped_goes_on(tmp_path, cases, quick):
    plan = Plan(("spleen", "liver"), (DEFAULT, "random"), seeds=2, rounds=2)

    def make():
        return Simulation(tmp_path / "out", cases[:4], cases[4:], "default", plan)

    first = next(make().run())  # stopped after one run
    assert [row.round for row in first] == [0, 1, 2] and {row.strategy for row in first} == {DEFAULT}
    assert [row.clicks for row in first] == [0, 6, 12]
    assert first[1].seconds == 30 + 2 * 3 * 5
    one, two = (row.chosen for row in first[1:])
    assert quick == [[[one]], [[two], [one]]] and one != two and "c0" not in (one, two)
    done = list(make().run())[-1]
    assert done[:3] == first and len(done) == 4 * 3
    assert len(list(make().run())[-1]) == 12 and len(quick) <= 8
    with pytest.raises(ValueError, match="must be new or hold this simulation"):
        Simulation(tmp_path / "out", cases[:3], cases[4:], "default", plan)


def test_processes_play_what_one_plays(tmp_path, cases, quick, monkeypatch):
    monkeypatch.setattr(simulation, "_START_METHOD", "fork")  # with what is replaced here
    plan = Plan(("spleen", "liver"), (DEFAULT, "random"), seeds=2, rounds=1)
    alone, together = (Simulation(tmp_path / name, cases[:4], cases[4:], "default", plan) for name in ("a", "b"))
    assert list(alone.run())[-1] == list(together.run(2))[-1]


def test_the_annotator_stops_when_the_mask_is_good(tmp_path):
    miniatures.cases(tmp_path, ("a",))
    found = simulation._annotated(SameHu(), read_case(tmp_path / "a"), 0)
    assert [row["structure"] for row in found] == ["spleen", "liver"]
    assert all((row["clicks"], row["first_dsc"]) == (1, 1.0) for row in found)
    assert all(0 < row["quality"] <= 1 for row in found)


def test_scores_are_kept_by_weights(tmp_path, cases, quick, monkeypatch):
    asked = []

    def scores(segmenter, volume, prototypes, rng, predict):
        asked.append((len(prototypes), predict))
        return simulation.ScanScores((float(volume.array_ijk.mean()), 0.0), {"liver": rng.random()}, {"liver": 0.5})

    monkeypatch.setattr(simulation, "scan_scores", scores)
    monkeypatch.setattr(simulation, "prototypes_of", lambda segmenter, volume, masks: {name: (1.0,) for name in masks})
    plan = Plan(("liver",), ("coldstart", "disagreement", "click_effort"), seeds=1, rounds=1)
    list(Simulation(tmp_path / "out", cases[:4], cases[4:], "default", plan).run())
    assert asked == [(0, False)] * 4 + [(0, True)] * 4  # clustering takes no predictions
    state = json.loads((tmp_path / "out" / "runs" / "coldstart-0" / "state.json").read_text())
    assert len(state["labelled"]) == 1 and np.isfinite(state["rounds"][-1]["dsc"])
