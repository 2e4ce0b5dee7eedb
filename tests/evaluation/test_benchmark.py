"""Benchmarks: what they compare is equal, and their rows are whole. No test here bounds a time."""

import json

import numpy as np
import pytest
import torch

from ctsam3d.evaluation import benchmark, ring_benchmark, timing
from ctsam3d.evaluation.benchmark import (
    ball_probability,
    benchmark_decode,
    benchmark_session,
    plain_decoder,
)
from ctsam3d.evaluation.ring_benchmark import benchmark_expansion
from ctsam3d.model import build
from ctsam3d.model.modulation import PsapLayer

CPU = torch.device("cpu")


@pytest.mark.parametrize("fill", benchmark.FILLS)
def test_ball_fills_its_share_of_the_patch(fill):
    ball = ball_probability(fill)
    assert ball.shape == (64, 64, 64)
    assert float((ball > 0.5).float().mean()) == pytest.approx(fill, abs=0.005)
    assert ball[32, 32, 32] > 0.99
    assert ball[0, 0, 0] == pytest.approx(1e-4)


def test_a_plain_decoder_takes_no_short_way_and_then_does_again(monkeypatch):
    network, called = build("tiny"), []
    plain = PsapLayer.dense
    monkeypatch.setattr(PsapLayer, "dense", lambda layer, *maps: called.append(layer) or plain(layer, *maps))
    prompts = torch.zeros(1, 3, 64, 64, 64)
    prompts[0, 0, 30:34, 30:34, 30:34] = 1
    layers = sum(isinstance(module, PsapLayer) for module in network.modules())
    with torch.inference_mode():
        features = network.encode(torch.rand(1, 1, 64, 64, 64))
        with pytest.raises(RuntimeError), plain_decoder(network):
            dense = network.decode(features, prompts)
            assert len(called) == layers
            raise RuntimeError  # an error leaves no network dense
        called.clear()
        sparse = network.decode(features, prompts)
    assert len(called) < layers
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-3)


def test_session_rows():
    rows = benchmark_session(["tiny"], 1, "cpu", feedback=0)
    assert [(row["click"], row["path"]) for row in rows] == [
        ("first", "sparse"), ("first", "dense"), ("next", "sparse"), ("next", "dense")
    ]  # fmt: skip
    for row in rows:
        assert row["features s"] + row["decode s"] + row["other s"] == pytest.approx(row["total s"])
    assert rows[2]["features s"] < rows[0]["features s"]  # the first click's patch was not seen in a run before


def test_decode_rows_of_both_paths_agree():
    rows = benchmark_decode(["tiny"], 1, "cpu")
    assert [row["previous mask"] for row in rows] == ["none", "5 %", "25 %", "60 %"]
    for row in rows:
        assert row["dense / sparse x"] == pytest.approx(row["dense s"] / row["sparse s"])
        assert row["logit difference"] < 1e-3
    assert rows[0]["weights"].startswith("tiny-")
    assert rows[0]["dense layers of sparse"] < 10 == rows[-1]["dense layers of sparse"]  # of one patch mostly filled


@pytest.mark.slow
def test_expansion_rows(monkeypatch):
    monkeypatch.setattr(ring_benchmark, "STRUCTURES", ("liver",))
    session, one_by_one, s_alone = benchmark_expansion(["tiny"], 1, "cpu")  # as they are served
    assert 0 < session["joined"] <= session["looked at"] <= 26
    assert one_by_one["looked at"] >= session["looked at"]
    assert (s_alone["looked at"], s_alone.get("joined")) == (26, None)
    assert session["mask voxels that differ %"] == 0
    assert 0 <= one_by_one["mask voxels that differ %"] < 100
    assert all(row["ring s"] > 0 for row in (session, one_by_one, s_alone))


@pytest.mark.slow
def test_neighbours_join_fresh_weights_too():
    rows = benchmark_expansion(["small"], 1, "cpu", feedback=0)
    assert [row["structure"] for row in rows] == ["liver"] * 3 + ["aorta"] * 3
    liver, aorta = rows[:2], rows[3:5]
    assert 6 <= liver[0]["joined"] == liver[1]["joined"]
    assert 1 <= aorta[0]["joined"] < aorta[1]["joined"]  # most neighbours hold only what the patch itself does
    assert all(row["mask voxels that differ %"] == 0 for row in (*liver, *aorta))


def test_fresh_weights_are_those_of_the_seed():
    (one, weights), (other, _) = (benchmark.make_segmenter("small", "cpu", 1, seed=3) for _ in range(2))
    assert (weights, one.info.feedback) == (benchmark.FRESH, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters()))


def test_runs_take_turns_and_the_first_round_does_not_count():
    order = []

    def run(name):
        order.append(name)
        return len(order)

    measured = timing.in_turn({"a": lambda: run("a"), "b": lambda: run("b")}, 2, CPU)
    assert order == ["a", "b"] * 3
    assert (measured["a"].results, measured["b"].results, measured["a"].vram_mb) == ([3, 5], [4, 6], 0.0)
    assert timing.median_row([{"x": 1.0, "y": 2.0}, {"x": 3.0}, {"x": 2.0}]) == {"x": 2.0}


def test_percentiles_in_milliseconds():
    row = timing.percentiles_ms([0.001 * n for n in range(101)])
    assert {k: round(v, 6) for k, v in row.items()} == {
        "count": 101, "p50 ms": 50, "p95 ms": 95, "p99 ms": 99, "max ms": 100
    }  # fmt: skip
    assert np.isnan(timing.percentiles_ms([])["p50 ms"])


def test_tables_and_results(tmp_path):
    rows = [{"preset": "tiny", "total s": 0.12345, "RSS MB": 1234.5}, {"preset": "base", "logit difference": 1.5e-5}]
    assert timing.markdown(rows).splitlines() == [
        "| preset | total s | RSS MB | logit difference |",
        "| --- | --- | --- | --- |",
        "| tiny | 0.123 | 1234 |  |",
        "| base |  |  | 1.5e-05 |",
    ]
    assert timing.markdown([]) == ""
    timing.write_results(tmp_path / "out.json", {"session": rows}, "benchmark.py click", {"device": "cpu"})
    values = json.loads((tmp_path / "out.json").read_text())
    assert (values["tables"], values["command"], values["device"]) == ({"session": rows}, "benchmark.py click", "cpu")
    assert values["versions"]["torch"] == torch.__version__ and values["threads"] >= 1
