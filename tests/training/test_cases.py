"""Volumes on the model grid, from a folder that remembers them."""

import numpy as np
import pytest
from tests.training.boxes import boxes

from ctsam3d.data.io import Case
from ctsam3d.training.cases import VolumeCache, load_group
from ctsam3d.training.pairs import TrainingVolume


def test_a_volume_lies_on_the_model_grid(tmp_path):
    volume = VolumeCache(tmp_path).get(boxes())
    assert volume.hu_zyx.shape == (60, 50, 40) and volume.sizes == {1: 8000, 2: 216}
    assert volume.structures == ("big", "small")
    assert all((volume.labels_zyx[tuple(volume.anchors[v].T)] == v).all() for v in (1, 2))
    assert (volume.hu_zyx[volume.labels_zyx == 2] == 300).all()
    assert volume.labels_zyx[5, 44, 34] == 1 and volume.labels_zyx[5, 5, 5] == 0  # (z, y, x) = (k, 49 - j, 39 - i)


def test_arrays_are_mapped_from_disk_and_written_once(tmp_path, monkeypatch):
    first = VolumeCache(tmp_path).get(boxes())
    monkeypatch.setattr(VolumeCache, "_write", lambda *_: pytest.fail("written again"))
    again = VolumeCache(tmp_path).get(boxes())
    assert isinstance(again.hu_zyx, np.memmap) and isinstance(again.labels_zyx, np.memmap)
    same_volume(first, again)


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
