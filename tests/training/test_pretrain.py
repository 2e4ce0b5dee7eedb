"""Pretraining: occupancy of cells, likeness with hand-computed embeddings, one run in two pieces."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.data.scenes import make_scene, write_scene_case
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import RunError, Source
from ctsam3d.training.pretrain import LikenessHead, PretrainingConfig, anchor_loss, draw_anchors, pretrain


def test_an_anchor_lies_in_its_structure_and_cells_say_how_much_of_them_it_fills():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, :4, 4:6] = 3  # half of the cell (0, 0, 1), whose number is 1
    occupancy, anchor = draw_anchors(labels, 5, np.random.default_rng(0))
    expected = np.zeros(8)
    expected[1] = 0.5
    np.testing.assert_array_equal(occupancy, np.tile(expected, (5, 1)))
    np.testing.assert_array_equal(anchor, 1)


def test_larger_structures_are_asked_for_by_the_root_of_their_size():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[:4, :4, :4] = 1  # 64 voxels
    labels[4:12, :8, :16] = 2  # 1024, root 32 against 8
    occupancy, _ = draw_anchors(labels, 1000, np.random.default_rng(0))
    assert (occupancy[:, 0] == 1).mean() == pytest.approx(8 / 40, abs=0.04)


def test_likeness_and_distance_make_the_logit():
    head = LikenessHead()
    embedding = torch.zeros(1, 2, 1, 1, 9)
    embedding[0, 0, ..., :8] = 1
    embedding[0, 1, ..., 8] = 1  # the last cell is unlike the others
    logits = head(embedding, torch.tensor([[0]]))[0, 0]
    near = np.log(2)  # softplus(0)
    assert logits[0].item() == pytest.approx(6 - 3)
    assert logits[4].item() == pytest.approx(6 - 3 - near * 0.25, abs=1e-5)  # half the unit away
    assert logits[8].item() == pytest.approx(-3 - near, abs=1e-5)


def test_the_loss_of_a_perfect_answer_is_nearly_zero():
    occupancy = torch.tensor([[[1.0, 0.0, 1.0]]])
    assert anchor_loss((occupancy - 0.5) * 60, occupancy).item() < 1e-6
    assert anchor_loss((0.5 - occupancy) * 60, occupancy).item() > 1


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scene_case(folder / "cases" / "scene", make_scene(3, (48, 48, 48)))
    return [Source(load_group(folder / "cases", VolumeCache(folder / "volumes")))]


DRAWN = TrainingConfig(preset="tiny", seed=3)
SHORT = PretrainingConfig(steps=3, patches=1, anchors=2, warmup=1)


def test_a_run_in_two_pieces_ends_like_one_run(tmp_path, sources, monkeypatch):
    whole = checkpoint.load(pretrain(sources, SHORT, DRAWN, tmp_path / "whole", workers=0))
    assert whole.notes["data"] == sorted(volume.name for source in sources for volume in source.volumes)
    from ctsam3d.training import pretrain as module

    learn, done = module._Pretraining.learn, []

    def interrupted(self, batch):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return learn(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module._Pretraining, "learn", interrupted)
        pretrain(sources, SHORT, DRAWN, tmp_path / "pieces", workers=0, save_every=1)
    pieces = checkpoint.load(pretrain(sources, SHORT, DRAWN, tmp_path / "pieces", workers=0))
    assert pieces.sha256 == whole.sha256


WORKER = """
import sys
from pathlib import Path

import torch

from ctsam3d.training import processes
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Source
from ctsam3d.training.pretrain import PretrainingConfig, pretrain

own, average, seen = Path(sys.argv[1]), processes.average_gradients, []

def spy(parameters):
    before = [parameter.grad.clone() for parameter in parameters]
    average(parameters)
    seen.append([before, [parameter.grad.clone() for parameter in parameters]])

processes.average_gradients = spy
with processes.process_group("cpu"):
    sources = [Source(load_group(own / "cases", VolumeCache(own / f"volumes-{processes.rank()}")))]
    config = PretrainingConfig(steps=2, patches=2, anchors=2, warmup=1)
    weights = pretrain(sources, config, TrainingConfig(preset="tiny", seed=3), own / "out", workers=0)
    processes.gather(0)
    assert weights.is_file()
    torch.save(seen, own / f"gradients-{processes.rank()}.pt")
"""


@pytest.mark.long
def test_two_processes_learn_from_the_mean_of_their_gradients(tmp_path):
    write_scene_case(tmp_path / "cases" / "scene", make_scene(3, (48, 48, 48)))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(tmp_path / "worker.py"), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    first, second = (torch.load(tmp_path / f"gradients-{rank}.pt") for rank in (0, 1))
    assert len(first) == len(second) == 2
    for (own, mean), (other, same) in zip(first, second):
        assert all(torch.equal(a, b) for a, b in zip(mean, same))
        assert all(torch.allclose(m, (a + b) / 2) for m, a, b in zip(mean, own, other))
        assert not all(torch.allclose(a, b) for a, b in zip(own, other))  # each drew patches of its own


def test_processes_share_the_patches_evenly(tmp_path, sources, monkeypatch):
    monkeypatch.setattr("ctsam3d.training.processes.count", lambda: 2)
    with pytest.raises(ValueError, match="patches must be a multiple of the 2 processes, got 1"):
        pretrain(sources, SHORT, DRAWN, tmp_path, workers=0)


def test_a_folder_of_another_run_is_refused(tmp_path, sources):
    pretrain(sources, SHORT, DRAWN, tmp_path, workers=0)
    with pytest.raises(RunError, match="must be new or hold a run of this configuration"):
        pretrain(sources, dataclasses.replace(SHORT, steps=4), DRAWN, tmp_path, workers=0)


def test_a_network_without_embeddings_is_refused(tmp_path, sources):
    with pytest.raises(ValueError, match="preset must be of a network with embeddings, got 'base'"):
        pretrain(sources, SHORT, dataclasses.replace(DRAWN, preset="base"), tmp_path, workers=0)


@pytest.mark.parametrize("name", ["steps", "patches", "learning_rate"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        PretrainingConfig(**{name: 0})
