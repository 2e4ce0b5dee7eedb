"""Many clients at once and many clicks in a row, against the real server. No test here bounds a time or a size.

``CTSAM3D_LOAD_CLIENTS=16 CTSAM3D_LOAD_CLICKS=20 CTSAM3D_EXPAND_CLICKS=3 CTSAM3D_SOAK_CLICKS=2000`` make them full size.
"""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from tests.app.test_train_server import SMALL

from ctsam3d.data.labels import VALUE_OF
from ctsam3d.expansion import QUIET, TIME
from ctsam3d.labelapp.load import (
    Answer,
    Clicking,
    Load,
    Sample,
    Soak,
    Study,
    _soak_steps,
    ask,
    benchmark_load,
    differences,
    load,
    rss_mb,
    soak,
    until_quiet,
    write_studies,
)
from ctsam3d.labelapp.local_server import copy_app, local_server

BUDGET = int(os.environ.get("CTSAM3D_EXPAND_BUDGET", 4))  # patches that a click may open; the app's own is 64
APP = Path(__file__).parents[2] / "apps" / "ctsam3d"


def number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server over three small phantoms."""
    folder = tmp_path_factory.mktemp("load")
    studies = write_studies(folder / "studies", 3, (3.0, 3.0, 4.0), seed=11)
    app = copy_app(APP, folder / "app")
    with open(app / "main.py", "a", encoding="utf-8") as main:
        main.write(f"\nfrom ctsam3d import expansion\nexpansion.BUDGET = {BUDGET}\n")
    with local_server(app, folder / "studies", folder / "server.log") as server:
        yield server, studies


@pytest.mark.slow
def test_clients_at_once_get_what_they_get_alone(served):
    server, studies = served
    size = {"clients": number("CTSAM3D_LOAD_CLIENTS", 4), "clicks": number("CTSAM3D_LOAD_CLICKS", 5)}
    together = load(server.url, studies[:2], name="together", expand=False, **size)
    assert together.failures == []
    clicks, info = together.rows
    assert (clicks["request"], clicks["count"]) == ("click", size["clients"] * size["clicks"])
    assert info["request"] == "/info/" and info["count"] > 0
    alone = load(server.url, studies[:2], at_once=1, name="alone", expand=False, **size)
    assert alone.failures == []
    for one, other in zip(together.labels, alone.labels):
        assert one.any()
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_clients_at_once_whose_masks_expand_get_what_they_get_alone(served):
    server, studies = served
    small = [
        dataclasses.replace(study, voxels_ijk={"kidney_left": study.voxels_ijk["kidney_left"]}) for study in studies[:2]
    ]  # a liver takes dozens of patches a click
    options = {"clients": 2, "clicks": number("CTSAM3D_EXPAND_CLICKS", 2), "settle": True, "expand": True}
    together = load(server.url, small, name="together, expanding", **options)
    alone = load(server.url, small, at_once=1, name="alone, expanding", **options)
    assert [*together.failures, *alone.failures] == []
    for one, other in zip(together.labels, alone.labels):
        assert one.any()
        assert np.array_equal(one, other)


@pytest.mark.long
def test_clients_beside_a_training_get_what_they_get_alone(tmp_path):
    app = copy_app(APP, tmp_path / "app")
    with open(app / "main.py", "a", encoding="utf-8") as main:
        main.write(SMALL)
    size = number("CTSAM3D_LOAD_CLIENTS", 4), number("CTSAM3D_LOAD_CLICKS", 5)
    found = benchmark_load(app, *size, {}, training=True, compare=True, expand=False)
    assert found.failures == [] and len(found.labels) == size[0]
    assert [row["request"] for row in found.rows] == ["click", "/info/", "click, alone", "/info/, alone"]
    (trained,) = found.training
    assert trained["to step"] >= trained["from step"] >= 1


def test_differences_between_masks_are_told():
    one, other = np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    found = differences(Load([], [one, other, None, one], []), Load([], [one, one, one, None], []))
    assert found == ["client 1: 24 voxels are not as when it is alone"]


@pytest.mark.slow
def test_soak_samples_the_memory(served):
    server, studies = served
    clicks = number("CTSAM3D_SOAK_CLICKS", 100)
    found = soak(server, studies, clicks, expand=False)
    assert found.failures == []
    assert [sample.clicks for sample in found.samples] == list(range(0, clicks + 1, 50))
    assert all(s.rss_mb > 100 and s.open_files > 0 for s in found.samples)
    assert 0 < found.samples[-1].sessions_mb < found.samples[-1].rss_mb
    assert np.isfinite(found.slope)


@pytest.mark.slow
def test_failures_are_told_with_their_reason(served):
    server, studies = served
    with pytest.raises(RuntimeError, match=r"status 400 .*result_dtype"):
        ask(server.url, studies[0].image, {"liver": [[1, 2, 3]]}, "failing", result_dtype="bits")
    found = load(server.url, studies, clients=1, clicks=1, name="failing", result_dtype="bits")
    assert found.labels == [None]
    assert len(found.failures) == 1 and "result_dtype" in found.failures[0]
    assert found.rows[0]["failures"] == 1 and found.rows[0]["count"] == 0


def test_until_quiet_asks_again_without_a_file_and_then_for_it():
    answers = {state: Answer(0.0, {"expansion": {"liver": {"ended": state}}}, b"") for state in (TIME, QUIET)}
    states, asked = [TIME, QUIET, QUIET], []

    def send(**more):
        asked.append(more)
        return answers[states.pop(0)]

    assert until_quiet(answers[TIME], send) is answers[QUIET]
    assert asked == [{"result_write_to_file": False}] * 2 + [{}]
    asked.clear()
    assert until_quiet(answers[QUIET], send) is answers[QUIET]
    assert until_quiet(no_word := Answer(0.0, {}, b""), send) is no_word
    assert asked == []


@pytest.fixture(scope="module")
def study():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:9, 5:9, 5:9] = VALUE_OF["liver"]
    return Study("box", labels, {"liver": np.argwhere(labels)})


def test_clicks_are_drawn_in_and_beside_the_structure(study):
    work, rng = Clicking("client", study, "liver"), np.random.default_rng(0)
    for _ in range(40):
        work.click(rng)
    assert all(study.labels_ijk[ijk] for ijk in work.positive)
    assert not any(study.labels_ijk[ijk] for ijk in work.negative)
    clicks = [*work.positive, *work.negative]
    assert len(set(clicks)) == 40 and len(work.positive) > len(work.negative) > 0


def test_soak_steps_change_clients_and_structures_and_undo(study):
    lengths, clients, undone = {}, set(), 0
    for work in itertools.islice(_soak_steps([study], np.random.default_rng(0)), 400):
        assert work.positive
        clients.add(work.client)
        length = len(work.positive) + len(work.negative)
        undone += length < lengths.get(id(work), 0)
        lengths[id(work)] = length
    assert undone > 20 and len(clients) > 8 and len(lengths) > 20


def test_slope_is_that_of_the_last_half():
    told = ((0, 1000, 0, 9), (50, 1500, 50, 12), (100, 2000, 70, 12), (150, 2010.5, 80, 13), (200, 2021, 90, 12))
    samples = [Sample(*values) for values in told]
    found = Soak(samples, [])
    assert found.slope == pytest.approx(10.0)  # 0.5 MB in 50 clicks, beside 10 MB more of sessions
    names = ("clicks", "RSS MB", "of these sessions MB", "open files")
    assert found.rows(3) == [dict(zip(names, values)) for values in told[::2]]
    assert np.isnan(Soak(samples[:1], []).slope)


def test_memory_of_this_process():
    assert rss_mb(os.getpid()) > 100
