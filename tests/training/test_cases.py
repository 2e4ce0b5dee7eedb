"""Volumes on the model grid, from a folder that remembers them."""

import os

import numpy as np
import pytest
from tests.training.boxes import boxes

from ctsam3d.data.io import Case
from ctsam3d.training.cases import VolumeCache, as_case, load_group
from ctsam3d.training.pairs import TrainingVolume
from ctsam3d.volume import Volume


def test_a_volume_lies_on_the_model_grid(tmp_path):
    volume = VolumeCache(tmp_path).get(boxes())
    assert volume.hu_zyx.shape == (60, 50, 40) and volume.sizes == {1: 8000, 2: 216}
    assert volume.structures == ("big", "small")
    labels_zyx = volume.labels_zyx[:]
    assert all((labels_zyx[tuple(volume.anchors[v][:].T)] == v).all() for v in (1, 2))
    assert (volume.hu_zyx[:][labels_zyx == 2] == 300).all()
    assert volume.labels_zyx[5, 44, 34] == 1 and volume.labels_zyx[5, 5, 5] == 0  # (z, y, x) = (k, 49 - j, 39 - i)


def test_arrays_are_looked_into_on_disk_and_written_once(tmp_path, monkeypatch):
    first = VolumeCache(tmp_path).get(boxes())
    monkeypatch.setattr(VolumeCache, "_write", lambda *_: pytest.fail("written again"))
    open_files = len(os.listdir("/proc/self/fd"))
    many = [VolumeCache(tmp_path).get(boxes()) for _ in range(5)]
    assert isinstance(many[0].hu_zyx[2:5], np.memmap) and isinstance(many[0].anchors[1][3], np.ndarray)
    assert len(os.listdir("/proc/self/fd")) == open_files
    same_volume(first, many[0])


def test_a_volume_as_a_case_is_the_same_volume(tmp_path):
    volume = VolumeCache(tmp_path / "one").get(boxes())
    case = as_case(volume)
    assert case.names == ("big", "small") and case.volume.shape_ijk == (40, 50, 60)
    same = VolumeCache(tmp_path / "two").get(case)
    assert np.array_equal(same.hu_zyx, volume.hu_zyx) and np.array_equal(same.labels_zyx, volume.labels_zyx)


def test_values_beyond_16_bits_do_not_wrap(tmp_path):
    one = boxes()
    bright = Volume(np.where(one.mask("big"), 65535.0, -70000.0).astype(np.float32), one.volume.affine_ras_mm)
    volume = VolumeCache(tmp_path).get(Case("bright", bright, one.structures))
    assert np.unique(volume.hu_zyx).tolist() == [-32768, 32767]


def same_volume(a: TrainingVolume, b: TrainingVolume):
    assert (a.name, a.content, a.sizes, a.structures) == (b.name, b.content, b.sizes, b.structures)
    assert np.array_equal(a.hu_zyx, b.hu_zyx) and np.array_equal(a.labels_zyx, b.labels_zyx)
    assert all(np.array_equal(a.anchors[v], b.anchors[v]) for v in a.anchors)


def test_other_content_is_another_volume(tmp_path):
    cache, one, other = VolumeCache(tmp_path), boxes(), boxes(spacing=1.0)
    renamed = Case(one.name, one.volume, {"big": one.structures["big"], "tumour": one.structures["small"]})
    moved = Case(one.name, one.volume, {"big": one.structures["big"], "small": lambda: ~one.mask("big")})
    assert len({cache.get(case).content for case in (one, other, renamed, moved)}) == 4


def test_a_half_written_volume_is_written_again(tmp_path):
    cache = VolumeCache(tmp_path)
    volume = cache.get(boxes())
    (tmp_path / volume.content / "about.json").unlink()
    (tmp_path / volume.content / "labels_zyx.npy").unlink()  # not truncated in place: it is mapped above
    (tmp_path / volume.content / "labels_zyx.npy").write_bytes(b"half")
    same_volume(cache.get(boxes()), volume)


def test_no_structure_left(tmp_path):
    with pytest.raises(ValueError, match="boxes must hold a structure of at least 100000 model voxels"):
        VolumeCache(tmp_path, min_voxels=100_000).get(boxes())
    assert not any(tmp_path.iterdir())


def test_more_structures_than_a_byte_counts(tmp_path):
    one = boxes()
    masks = {f"s{n}": one.structures["big" if n < 299 else "small"] for n in range(300)}
    volume = VolumeCache(tmp_path).get(Case("many", one.volume, masks))
    assert volume.sizes == {299: 8000, 300: 216} and volume.structures == ("s298", "s299")


def test_folders_without_a_case(tmp_path):
    with pytest.raises(ValueError, match="data must be folders"):
        load_group(tmp_path / "none", VolumeCache(tmp_path))
    with pytest.raises(ValueError, match="must be a case or hold cases"):
        load_group(tmp_path, VolumeCache(tmp_path))
