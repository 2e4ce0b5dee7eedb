"""Data of the default weights: from seeds, made once, the held-out cases refused (see `test_derived` for real ones)."""

import collections

import numpy as np
import pytest

from ctsam3d.data import default_data
from ctsam3d.data.default_data import (
    PHANTOM_SEED,
    TRUNK_SEED,
    make_random_phantoms,
    make_scenes,
    make_trunk_phantoms,
    random_phantom,
)
from ctsam3d.data.io import read_case
from ctsam3d.data.phantom_limbs import LIMB_REGIONS_MM
from ctsam3d.data.phantoms import REGIONS_MM
from ctsam3d.data.scenes import make_scene


def test_all_regions_and_slices_come_up(monkeypatch):
    monkeypatch.setattr(default_data, "make_phantom", lambda seed, spacing, region, rich: (region, spacing, rich))
    monkeypatch.setattr(default_data, "make_limb_phantom", lambda seed, spacing, region: (region, spacing, True))
    drawn = [random_phantom(seed) for seed in range(PHANTOM_SEED, PHANTOM_SEED + 200)]
    assert all(rich for *_, rich in drawn)
    regions = collections.Counter(region for region, *_ in drawn)
    assert set(regions) == {*REGIONS_MM, *LIMB_REGIONS_MM} and min(regions.values()) > 4
    slices = {spacing[2] for _, spacing, _ in drawn}
    assert min(slices) == 0.75 and max(slices) == 5.0 and len(slices) >= 6
    assert random_phantom(2007) == random_phantom(2007)


def test_phantoms_of_the_trunk_are_like_those_of_demonstrations(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(default_data, "make_phantom", lambda *of: asked.append(of))
    monkeypatch.setattr(default_data, "write_phantom_case", lambda folder, phantom: None)
    folders = make_trunk_phantoms(tmp_path, 2)
    assert [folder.name for folder in folders] == [f"phantom_{TRUNK_SEED}", f"phantom_{TRUNK_SEED + 1}"]
    assert asked == [(seed, (1.5, 1.5, 1.5), "trunk") for seed in (TRUNK_SEED, TRUNK_SEED + 1)]


def test_cases_are_made_once(tmp_path, monkeypatch):
    small = (40, 40, 40)
    monkeypatch.setattr(default_data, "make_scene", lambda seed: make_scene(seed, small))
    folders = make_scenes(tmp_path, 2, seed=5)
    assert [folder.name for folder in folders] == ["scene_5", "scene_6"]
    case = read_case(folders[1])
    assert np.array_equal(case.volume.array_ijk, make_scene(6, small).volume.array_ijk)
    (folders[0] / "labels.json").unlink()  # killed before it was whole
    times = [(f / "ct.nii.gz").stat().st_mtime_ns for f in folders]
    assert make_scenes(tmp_path, 2, seed=5) == folders
    again = [(f / "ct.nii.gz").stat().st_mtime_ns for f in folders]
    assert again[0] > times[0] and again[1] == times[1]
    assert (folders[0] / "labels.json").is_file()


@pytest.mark.parametrize("make", [make_scenes, make_random_phantoms, make_trunk_phantoms])
def test_count_must_be_positive(tmp_path, make):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        make(tmp_path, 0)


@pytest.mark.slow
def test_several_processes_make_the_same(tmp_path):
    (folder,) = make_scenes(tmp_path / "two", 1, seed=3, workers=2)
    assert np.array_equal(read_case(folder).volume.array_ijk, make_scene(3).volume.array_ijk)
