"""Runs: resumed, seeded, shared between processes, partly frozen; that they learn."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.boxes import STILL, boxes

from ctsam3d import checkpoint
from ctsam3d.data.io import Case, read_case
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.evaluation.simulate import simulate
from ctsam3d.model import PRESETS, build
from ctsam3d.segmenter import Segmenter
from ctsam3d.training import loop
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Progress, Run, RunError, Source, epoch_order, train

QUICK = TrainingConfig(preset="tiny", epochs=1, samples_per_volume=4, batch_size=1, rounds=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return [Source([VolumeCache(tmp_path_factory.mktemp("volumes")).get(boxes())])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sources):
    """A run of four steps that nothing interrupted: its folder and what it reported."""
    seen: list[Progress] = []
    folder = tmp_path_factory.mktemp("whole")
    train(sources, QUICK, folder, observe=seen.append, save_every=1)
    return folder, seen


def weights(path):
    return checkpoint.load(path).network.state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_what_a_run_leaves_and_reports(trained):
    folder, seen = trained
    assert [(p.step, p.steps, p.epoch, p.epochs, len(p.rounds)) for p in seen] == [(n, 4, 1, 1, 2) for n in range(1, 5)]
    assert seen[-1].seconds_left == 0 < seen[0].seconds_left
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]["rounds"][0]) == {"focal", "dice", "heatmap", "dsc"}
    assert any((folder / "tensorboard").iterdir())
    assert [path.name for path in sorted(folder.glob("state-*"))] == ["state-000000003.pt", "state-000000004.pt"]
    loaded = checkpoint.load(folder / "model.safetensors")
    assert loaded.labels == ("big", "small") and loaded.notes["data"] == ["boxes"]
    assert loaded.notes["training"]["step"] == 4


def test_weights_know_all_that_they_were_trained_on_before(tmp_path, sources, trained):
    initial = dataclasses.replace(
        checkpoint.load(trained[0] / "model.safetensors"), notes={"data": ["a_scan", "boxes"]}
    )
    run = Run(sources, QUICK, tmp_path, initial=initial)
    run.save()
    assert checkpoint.load(run.weights_path).notes["data"] == ["a_scan", "boxes"]


def test_passes_of_a_session_outlive_a_run_without_feedback(tmp_path, sources, trained):
    initial = checkpoint.load(trained[0] / "model.safetensors")
    for feedback, expected in ((0, 0), (2, 2)):
        own = dataclasses.replace(initial, feedback=feedback)
        run = Run(sources, QUICK, tmp_path / str(feedback), initial=own)
        run.out.mkdir()
        run._save_weights()
        assert checkpoint.load(run.weights_path).feedback == expected


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, sources, trained):
    part = Run(sources, QUICK, tmp_path)
    part.resume()
    batches = iter(part.loader(0))
    for step in range(3):
        part.learn(next(batches))
        if step == 1:
            part.save()
    part.log.close()  # killed after step 3, whose state was not written
    train(sources, QUICK, tmp_path)
    assert same(weights(tmp_path / "model.safetensors"), weights(trained[0] / "model.safetensors"))
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_batches_do_not_depend_on_who_cuts_them(sources):
    run = Run(sources, QUICK, Path("unused"))
    here, there = ([b for batches in run.loader(workers) for b in batches] for workers in (0, 2))
    assert len(here) == len(there) == 4
    assert all(torch.equal(a, b) for one, other in zip(here, there) for a, b in zip(one, other))


def test_a_pass_sees_every_volume_as_often():
    one, config = [Source([None] * 5)], TrainingConfig(samples_per_volume=3)
    for epoch in range(3):
        assert sorted(epoch_order(one, config, epoch)) == [(0, volume) for volume in range(5) for _ in range(3)]
    assert epoch_order(one, config, 0) != epoch_order(one, config, 1)
    assert epoch_order(one, config, 1) == epoch_order(one, config, 1)


def test_sources_have_their_shares_of_every_pass():
    """10 volumes, 2 samples: 20 pairs, of which 13.3 and 6.7 in the mean, never more than a pair away."""
    sources, config = [Source([None] * 3, 0.8), Source([None] * 7, 0.4)], TrainingConfig(samples_per_volume=2)
    counts = []
    for epoch in range(60):
        order = epoch_order(sources, config, epoch)
        each = [[order.count((number, volume)) for volume in range(size)] for number, size in ((0, 3), (1, 7))]
        assert sum(map(sum, each)) == len(order) == 20
        assert all(max(own) - min(own) <= 1 for own in each)
        counts.append(sum(each[0]))
    assert set(counts) == {13, 14} and 13.1 < np.mean(counts) < 13.6


def test_a_small_share_is_not_lost():
    sources, config = [Source([None], 0.99), Source([None], 0.01)], TrainingConfig(samples_per_volume=2)
    drawn = [sum(number for number, _ in epoch_order(sources, config, epoch)) for epoch in range(400)]
    assert set(drawn) == {0, 1} and 4 <= sum(drawn) <= 40  # 16 in the mean


def test_a_finished_run_is_left_alone(trained, sources):
    before = (trained[0] / "model.safetensors").read_bytes()
    train(sources, QUICK, trained[0])
    assert (trained[0] / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", ["configuration", "volumes", "initial weights"])
def test_another_run_does_not_resume(tmp_path, sources, trained, change):
    Run(sources, QUICK, tmp_path).save()
    config, initial = QUICK, None
    if change == "configuration":
        config = dataclasses.replace(QUICK, learning_rate=2e-3)
    elif change == "volumes":
        sources = [Source([VolumeCache(tmp_path / "volumes").get(boxes(shape=(40, 50, 64)))])]
    else:
        initial = checkpoint.load(trained[0] / "model.safetensors")
    with pytest.raises(ValueError, match="must be new or hold a run of this configuration"):
        Run(sources, config, tmp_path, initial=initial).resume()


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, sources, trained):
    run = Run(sources, QUICK, tmp_path)
    run.resume()
    for batches in run.loader(0):
        run.learn(batches)
        run.save()
    states = sorted(tmp_path.glob("state-*.pt"))
    assert len(states) == 2
    (tmp_path / ".writing-x-state.pt").write_bytes(b"half")
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    again = Run(sources, QUICK, tmp_path)
    again.resume()
    assert again.step == 3 and not list(tmp_path.glob(".writing-*"))
    states[-2].write_bytes(b"")
    with pytest.raises(RunError, match=r"hold a state that can be read, none of state-000000004\.pt, state-000000003"):
        Run(sources, QUICK, tmp_path).resume()


def test_the_optimiser_is_that_of_the_configuration(tmp_path, sources, monkeypatch):
    config = dataclasses.replace(QUICK, betas=(0.8, 0.99), weight_decay=0.03)
    run = Run(sources, config, tmp_path)
    rates = []
    run.optimiser.register_step_pre_hook(lambda own, *_: rates.append({group["lr"] for group in own.param_groups}))
    run.learn(next(iter(run.loader(0))))
    assert {(g["betas"], g["weight_decay"]) for g in run.optimiser.param_groups} == {((0.8, 0.99), 0.03)}
    assert rates == [{config.learning_rate_at(0.5 / run.steps)}] * config.rounds


def test_an_empty_source_is_refused(sources):
    with pytest.raises(ValueError, match="sources must each hold a volume"):
        Run([*sources, Source([])], QUICK, Path("unused"))


def test_weights_that_do_not_fit_are_refused(trained, sources):
    initial = checkpoint.load(trained[0] / "model.safetensors")
    with pytest.raises(ValueError, match="initial weights tiny-step4 must have the run's network"):
        Run(sources, dataclasses.replace(QUICK, preset="small"), Path("unused"), initial=initial)


def test_without_a_preset_the_network_is_that_of_the_initial_weights(trained, sources):
    """Also one that is none of the presets can be trained further; without weights there is none."""
    config = dataclasses.replace(QUICK, preset=None)
    own = dataclasses.replace(PRESETS["tiny"], decoder_width=16)
    initial = dataclasses.replace(checkpoint.load(trained[0] / "model.safetensors"), network=build(own))
    assert Run(sources, config, Path("unused"), initial=initial).network.config == own
    with pytest.raises(ValueError, match="preset must be given where there are no initial weights"):
        Run(sources, config, Path("unused"))


def test_a_fresh_network_has_no_statistics_to_keep(sources):
    with pytest.raises(ValueError, match="frozen_statistics must be False where there are no initial weights"):
        Run(sources, dataclasses.replace(QUICK, frozen_statistics=True), Path("unused"))


def test_the_loader_cuts_what_the_pass_orders(sources, monkeypatch):
    """Over two passes, two batches a step, one of them astride the passes."""
    config = dataclasses.replace(QUICK, epochs=2, samples_per_volume=6, batch_size=2, accumulate=2)
    drawn = []
    monkeypatch.setattr(loop, "draw_pair", lambda volume, *_: drawn.append(volume) or pair)
    monkeypatch.setattr(loop, "collate", lambda *_: None)
    volumes, pair = [*"abc"], object()
    run = Run([Source(sources[0].volumes)], config, Path("unused"))
    assert (run.pairs, run.pairs_per_epoch, run.steps) == (4, 6, 3)
    run.sources = [Source(volumes)]
    run.steps = 9
    list(run.loader(0))
    orders = [[volumes[number] for _, number in epoch_order(run.sources, config, epoch)] for epoch in (0, 1)]
    assert drawn == orders[0] + orders[1] and sorted(orders[0]) == sorted("abc" * 6)


def test_retraining_keeps_the_statistics_and_the_encoder(tmp_path, sources, trained):
    """By default norm layers, decoder and P learn; the stem's batch norm stays in eval mode."""
    config = dataclasses.replace(QUICK, trainable="decoder", frozen_statistics=True)
    path = train(
        sources, config, tmp_path, initial=checkpoint.load(trained[0] / "model.safetensors"), observe=lambda _: None
    )
    before, after = weights(trained[0] / "model.safetensors"), weights(path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("running" in name for name in changed)
    encoder = {name for name in changed if name.startswith("encoder.")}
    assert encoder and all(before[name].ndim == 1 for name in encoder)  # scales and shifts of norms alone
    assert "encoder.stages.1.blocks.0.mlp_norm.weight" in encoder
    assert any(name.startswith("decoder.") for name in changed) and any(n.startswith("cross_patch.") for n in changed)


def test_p_alone_leaves_s_as_it_is(tmp_path, sources, trained):
    initial = trained[0] / "model.safetensors"
    config = dataclasses.replace(QUICK, trainable="cross_patch", samples_per_volume=2)
    seen: list[Progress] = []
    path = train(sources, config, tmp_path, initial=checkpoint.load(initial), observe=seen.append)
    before, after = weights(initial), weights(path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("cross_patch.") for name in changed)
    assert [len(p.rounds) for p in seen] == [1, 1] and all(p.rounds[0].heatmap > 0 for p in seen)


WORKER = """
import dataclasses, sys, torch
from pathlib import Path
from ctsam3d.training import processes
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training import loop
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Run, Source, train
from tests.training.boxes import boxes
from tests.training.test_loop import QUICK
out, accumulate = Path(sys.argv[1]), int(sys.argv[2])
config = dataclasses.replace(QUICK, accumulate=accumulate, gradient_clip=1e9)
with processes.process_group("cpu") as device:
    torch.set_num_threads(1)
    sources = [Source([VolumeCache(out / "volumes").get(boxes())])]
    rank, count = processes.rank(), processes.count()
    run = Run(sources, dataclasses.replace(config, rounds=1), out / f"one-{count}", device=device)
    run.resume()
    run.learn(next(iter(run.loader(0))))
    torch.save([p.grad.clone() for p in run.network.parameters()], out / f"gradients-{count}-{rank}.pt")
    run = Run(sources, config, out / f"run-{count}", device=device)
    run.resume()
    for batches in run.loader(0):
        run.learn(batches)
    run.save()
    torch.save(list(run.network.parameters()), out / f"parameters-{count}-{rank}.pt")
"""


def test_s_alone_leaves_p_as_it_is_and_its_encoder_learns_by_a_rate_of_its_own(tmp_path, sources, trained):
    initial = checkpoint.load(trained[0] / "model.safetensors")
    before = {name: value.clone() for name, value in initial.network.state_dict().items()}
    config = dataclasses.replace(QUICK, trainable="segmentation", encoder_rate=0.5, samples_per_volume=2)
    run = Run(sources, config, tmp_path, initial=initial)
    results = run.learn(next(iter(run.loader(0))))
    assert all(result.heatmap == 0 for result in results)
    rates = [group["lr"] for group in run.optimiser.param_groups]
    assert rates == [0.5 * config.learning_rate_at(0.25), config.learning_rate_at(0.25)]
    after = run.network.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"encoder", "decoder"}


def test_the_coarse_head_resumes_and_stays_out_of_the_weights(tmp_path, sources):
    config = dataclasses.replace(QUICK, trainable="segmentation", coarse=1.0, samples_per_volume=2)
    run = Run(sources, config, tmp_path)
    fresh = run.coarse_head.out.weight.detach().clone()
    last = {name: value.clone() for name, value in run.network.decoder.head.state_dict().items()}
    run.learn(next(iter(run.loader(0))))
    run.save()
    again = Run(sources, config, tmp_path)
    again.resume()
    assert torch.equal(again.coarse_head.out.weight, run.coarse_head.out.weight)
    assert not torch.equal(again.coarse_head.out.weight, fresh)
    assert same(last, again.network.decoder.head.state_dict())
    assert set(weights(tmp_path / "model.safetensors")) == set(build("tiny").state_dict())
    run.log.close(), again.log.close()


@pytest.mark.long
def test_two_processes_learn_what_one_learns_from_the_same_batches(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for processes, accumulate in ((2, 1), (1, 2)):
        arguments = [*command, str(processes), str(tmp_path / "worker.py"), str(tmp_path), str(accumulate)]
        subprocess.run(arguments, env=environment, check=True, timeout=300)

    def read(name):
        return torch.cat([t.detach().flatten() for t in torch.load(tmp_path / f"{name}.pt", weights_only=False)])

    assert torch.equal(read("parameters-2-0"), read("parameters-2-1"))
    assert torch.equal(read("gradients-2-0"), read("gradients-2-1"))
    two, one = (read(f"gradients-{count}-0") for count in (2, 1))
    assert torch.allclose(two, one, atol=1e-5)
    for part in ("encoder", "decoder", "cross_patch"):  # most of their entries are far smaller than that
        own = torch.cat([torch.full((p.numel(),), n.startswith(part)) for n, p in build("tiny").named_parameters()])
        assert (two - one)[own].norm() < 1e-3 * one[own].norm(), part
    lines = (tmp_path / "run-2" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2  # four pairs, two a step; one log


@pytest.mark.long
def test_it_learns_a_phantom_by_heart(tmp_path):
    """From the packaged weights; three users then click the bladder in a session."""
    phantom = read_case(write_phantom_case(tmp_path / "p", make_phantom(7, (1.5, 1.5, 1.5), "pelvis")))
    case = Case(phantom.name, phantom.volume, {"urinary_bladder": phantom.structures["urinary_bladder"]})
    config = TrainingConfig(
        preset=None, epochs=1, samples_per_volume=16, batch_size=1, learning_rate=1.5e-3, warmup_share=0.05,
        schedule="cosine", feedback=0.5, empty_share=0, augmentation=STILL,
    )  # fmt: skip
    sources = [Source([VolumeCache(tmp_path / "volumes").get(case)])]
    initial = checkpoint.load(checkpoint.packaged_path())
    segmenter = Segmenter(checkpoint.load(train(sources, config, tmp_path / "run", initial=initial)))
    results = [r for seed in range(3) for r in _clicked(segmenter, case, seed)]
    assert np.mean([result.dsc for result in results]) > 0.95


def _clicked(segmenter, case, seed):
    mask = case.mask("urinary_bladder")
    return simulate(segmenter.session(case.volume, expand=False), mask, case.name, "urinary_bladder", seed, (3, 5))
