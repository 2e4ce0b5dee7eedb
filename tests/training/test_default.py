"""The recipe of the default weights: its data and shares, what is refused, and that a short run learns."""

import dataclasses

import numpy as np
import pytest

from ctsam3d import checkpoint
from ctsam3d.data import default_data
from ctsam3d.data.default_data import HELD_OUT, REAL
from ctsam3d.data.scenes import make_scene, write_scene_case
from ctsam3d.losses import mask_loss
from ctsam3d.training import default
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.default import QUICK, RECIPES, make_data, train_default
from ctsam3d.training.loop import Run, Source

SMALL = (40, 40, 40)


@pytest.fixture
def small(monkeypatch):
    """Small scenes in place of scenes, phantoms and real cases; yields what was made."""
    made = []

    def write(folder):
        made.append(folder.name)
        write_scene_case(folder, make_scene(len(made), SMALL))

    def real(data, out, names):
        for name in names:
            write(out / name)

    monkeypatch.setattr(default_data, "_write_scene", write)
    monkeypatch.setattr(default_data, "_write_phantom", write)
    monkeypatch.setattr(default_data, "_write_trunk", write)
    monkeypatch.setattr(default, "make_real_cases", real)
    return made


def test_data_lie_in_the_order_of_the_shares(tmp_path, small):
    recipe = dataclasses.replace(QUICK, scenes=2, phantoms=1, trunks=1)
    folders = make_data(tmp_path / "real", tmp_path / "out", recipe)
    assert [folder.name for folder in folders] == ["scenes", "phantoms", "trunks", *REAL]
    real = [name for group in REAL.values() for name in group]
    assert small == ["scene_0", "scene_1", "phantom_2000", "phantom_1000", *real]
    assert make_data(None, tmp_path / "out", recipe) == folders[:3]
    assert all(len(recipe.shares) == 3 + len(REAL) for recipe in (QUICK, *RECIPES.values()))


def test_recipes_name_their_networks():
    assert all(recipe.config.preset == name for name, recipe in RECIPES.items())


def test_a_held_out_case_among_the_data_is_refused(tmp_path, small):
    held_out = sorted(HELD_OUT)[0]
    write_scene_case(tmp_path / "data" / "scenes" / held_out, make_scene(9, SMALL))
    with pytest.raises(ValueError, match=f"held-out cases, got .*{held_out}"):
        train_default(None, tmp_path, dataclasses.replace(QUICK, scenes=1, phantoms=1, trunks=1))
    assert not (tmp_path / "model.safetensors").exists()


def measured(folder, initial, out) -> tuple[float, float]:
    """Loss and DSC after the last click of weights on the pairs of the run's first steps, all of them unchanged."""
    volumes = [
        volume
        for kind in ("scenes", "phantoms", "trunks")
        for volume in load_group(folder / "data" / kind, VolumeCache(out))
    ]
    config = dataclasses.replace(QUICK.config, learning_rate=1e-12)
    run = Run([Source(volumes)], config, out, initial=initial)
    results = [run.learn(batches) for _, batches in zip(range(16), run.loader(0))]
    loss = np.mean([mask_loss(focal=r.focal, dice=r.dice) for rounds in results for r in rounds])
    return float(loss), float(np.mean([rounds[-1].dsc for rounds in results]))


@pytest.mark.long
def test_a_short_run_on_generated_data_learns(tmp_path):
    """Loss and DSC before and after, on the same pairs: those of single steps differ more than a short run gains."""
    weights = train_default(None, tmp_path, QUICK)
    steps = len((tmp_path / "log.jsonl").read_text().splitlines())
    assert steps == (QUICK.scenes + QUICK.phantoms + QUICK.trunks) * QUICK.config.samples_per_volume
    loss, dsc = measured(tmp_path, None, tmp_path / "before")
    trained_loss, trained_dsc = measured(tmp_path, checkpoint.load(weights), tmp_path / "after")
    assert trained_loss < 0.9 * loss
    assert trained_dsc > dsc + 0.05
