"""Random scenes: the same seed gives the same scene, labels are connected, large enough, and fill it."""

import cc3d
import numpy as np
import pytest

from ctsam3d.data.io import read_case
from ctsam3d.data.scene_canvas import edges
from ctsam3d.data.scenes import LEAST_VOXELS, MOST_LABELS, _thick_slices, make_scene, write_scene_case

SHAPE = (96, 88, 80)


@pytest.fixture(scope="module")
def scene():
    return make_scene(3, SHAPE)


def test_same_seed_same_scene(scene):
    again, other = make_scene(3, SHAPE), make_scene(4, SHAPE)
    assert np.array_equal(again.volume.array_ijk, scene.volume.array_ijk)
    assert np.array_equal(again.labels_ijk, scene.labels_ijk) and again.names == scene.names
    assert not np.array_equal(other.labels_ijk, scene.labels_ijk)


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_connected_and_large_enough(seed):
    scene = make_scene(seed, SHAPE)
    voxels = np.bincount(scene.labels_ijk.ravel())
    assert 10 <= len(scene.names) <= MOST_LABELS and len(voxels) == len(scene.names) + 1
    assert voxels[1:].min() >= LEAST_VOXELS
    assert cc3d.connected_components(scene.labels_ijk, connectivity=26).max() == len(scene.names)


def test_scan_is_ct_of_the_grid(scene):
    hu = scene.volume.array_ijk
    assert hu.dtype == np.int16 and hu.shape == SHAPE and scene.labels_ijk.dtype == np.uint8
    assert hu.min() >= -1024 and hu.max() <= 3071
    assert np.allclose(scene.volume.affine_ras_mm, np.diag([1.5, 1.5, 1.5, 1]))


def test_most_voxels_are_labelled():
    shares = [(make_scene(seed, SHAPE).labels_ijk > 0).mean() for seed in range(5)]
    assert np.mean(shares) > 0.75, shares


def test_default_sizes_come_from_the_seed():
    sizes = {make_scene(seed).volume.shape_ijk for seed in (0, 1)}
    assert len(sizes) == 2 and all(128 <= n <= 160 for size in sizes for n in size)


def test_too_small_a_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape_ijk .* at least 32, got \(31, 64, 64\)"):
        make_scene(0, (31, 64, 64))


def test_edges_are_the_voxels_on_both_sides():
    labels = np.zeros((4, 3, 3), int)
    labels[2:] = 1
    assert edges(labels)[:, 1, 1].tolist() == [False, True, True, False]


def test_thick_slices_average_along_k_and_keep_what_is_constant():
    hu = np.full((2, 2, 12), 40, np.float32)
    assert np.allclose(_thick_slices(hu, 5.0), 40)
    hu[:] = 0
    hu[:, :, 4] = 100  # slices of 3 mm are centred on voxels 0, 2, 4, ... and reach half a voxel into the next ones
    assert np.allclose(_thick_slices(hu, 3.0)[0, 0, 3:6], [25, 50, 25])
    assert _thick_slices(hu, 1.5) is hu


def test_written_case_reads_back(tmp_path, scene):
    case = read_case(write_scene_case(tmp_path / "scene_3", scene))
    assert case.names == scene.names
    assert np.array_equal(case.volume.array_ijk, scene.volume.array_ijk)
    assert np.array_equal(case.mask(scene.names[4]), scene.labels_ijk == 5)
