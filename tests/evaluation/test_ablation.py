"""The paper's ablations: what each variant is trained on and begins with, and the table."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.data.scenes import make_scene, write_scene_case
from ctsam3d.evaluation.ablation import CONFIG, VARIANTS, ablate, without_structures, write_table
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.pairs import TrainingVolume


def volume(name, structures):
    values = range(1, len(structures) + 1)
    anchors = {value: np.full((2, 3), value) for value in values}
    sizes = {value: 10 * value for value in values}
    return TrainingVolume(name, name, np.zeros(1), np.zeros(1), anchors, sizes, tuple(structures))


def test_no_pair_is_drawn_of_what_is_left_out():
    both, muscle = volume("a", ["liver", "skeletal_muscle", "spleen"]), volume("b", ["skeletal_muscle"])
    (kept,) = without_structures([both], ["skeletal_muscle"])
    assert (kept.name, kept.structures, kept.sizes) == ("a", ("liver", "spleen"), {1: 10, 3: 30})
    assert list(kept.anchors) == [1, 3] and kept.anchors[3][0, 0] == 3
    assert [own.sizes for own in without_structures([both, muscle], [])] == [both.sizes, muscle.sizes]
    with pytest.raises(ValueError, match="volume b must hold another structure than skeletal_muscle"):
        without_structures([both, muscle], ["skeletal_muscle"])


def test_the_table_has_means_over_structures_and_then_over_seeds(tmp_path):
    found = {
        ("psap-rest", 0, "single"): (0.4, 0.6),
        ("psap-rest", 1, "single"): (0.6, 0.8),
        ("psap-rest", 0, "spreading"): (0.9, 0.1),
        ("own", 0, "single"): (0.1, 0.1),
        ("rff", 0, "single"): (0.2, 0.2),
    }
    for (variant, seed, way), dsc in found.items():
        folder = tmp_path / variant / f"seed_{seed}" / way
        folder.mkdir(parents=True)
        clicked = zip(("liver", "rib_left_1", "visceral_fat"), (*dsc, 0.0))  # which one variant is not trained on
        rows = [{"case": "c", "structure": structure, "clicks": 1, "dsc": value} for structure, value in clicked]
        pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    table = write_table(tmp_path).read_text().splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert lines[0] == ["structures", "clicks", "variant", "of", "seeds", "DSC after 1"]
    assert lines[2:] == [
        ["all", "single", "psap-rest", "2", "2", "0.600 ± 0.100"],
        ["all", "single", "rff", "2", "1", "0.200 ± 0.000"],
        ["all", "single", "own", "2", "1", "0.100 ± 0.000"],
        ["all", "spreading", "psap-rest", "2", "1", "0.500 ± 0.000"],
        ["large", "single", "psap-rest", "1", "2", "0.500 ± 0.100"],
        ["large", "single", "rff", "1", "1", "0.200 ± 0.000"],
        ["large", "single", "own", "1", "1", "0.100 ± 0.000"],
        ["large", "spreading", "psap-rest", "1", "1", "0.900 ± 0.000"],
    ]


def test_no_results_are_told(tmp_path):
    with pytest.raises(ValueError, match="must hold results"):
        write_table(tmp_path)


@pytest.fixture
def data(tmp_path):
    """A volume to train on and a folder with a test case."""
    write_scene_case(tmp_path / "data" / "one", make_scene(0, (40, 40, 40)))
    write_scene_case(tmp_path / "test" / "other", make_scene(1, (40, 40, 40)))
    return load_group(tmp_path / "data", VolumeCache(tmp_path / "volumes")), tmp_path / "test"


@pytest.mark.long
def test_variants_begin_alike_and_go_on(data, tmp_path):
    volumes, test = data
    quick = dataclasses.replace(CONFIG, batch_size=1, rounds=1, samples_per_volume=1)
    options = {"seeds": [0], "variants": VARIANTS[:2], "config": quick, "min_voxels": 3500}
    table = ablate([volumes], test, tmp_path / "out", **options)
    own = [checkpoint.load(tmp_path / "out" / v.name / "seed_0" / "start.safetensors").network for v in VARIANTS[:2]]
    assert [network.config.prompt for network in own] == ["psap", "rff"]
    assert all((network.config.appearance, network.config.detail) == (0, 0) for network in own)
    packaged = checkpoint.load(checkpoint.packaged_path()).network
    for network in own:
        pairs = zip(network.cross_patch.parameters(), packaged.cross_patch.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    trained = tmp_path / "out" / "rff" / "seed_0" / "model.safetensors"
    written = trained.stat().st_mtime_ns
    assert ablate([volumes], test, tmp_path / "out", **options).read_text() == table.read_text()
    assert trained.stat().st_mtime_ns == written


def test_a_test_case_among_the_training_s_is_refused(data, tmp_path):
    volumes, _ = data
    with pytest.raises(ValueError, match=r"none of the training's, got .*one"):
        ablate([volumes], tmp_path / "data", tmp_path / "out")


def test_shares_are_a_number_per_group(data, tmp_path):
    volumes, test = data
    with pytest.raises(ValueError, match=r"shares must have a number per group, 1, got 2"):
        ablate([volumes], test, tmp_path / "out", shares=[1.0, 2.0])
