"""Random masses and tubes: one piece around the anchor, pasted at the right place, of the drawn brightness."""

import numpy as np
import pytest
from scipy import ndimage

from ctsam3d.training.lesions import Lesion, draw_lesion, paste


def lesion(shape=(5, 5, 5), change=50.0, cover=0.0):
    voxels = np.ones(shape, bool)
    return Lesion(-(np.array(shape) // 2), voxels, voxels.astype(np.float32), np.full(shape, change, np.float32), cover)


@pytest.mark.parametrize("seed", range(8))
def test_a_lesion_is_one_piece_around_its_anchor(seed):
    found = draw_lesion(np.random.default_rng(seed))
    assert found.voxels[tuple(-found.start)]
    assert ndimage.label(found.voxels, np.ones((3, 3, 3)))[1] == 1
    assert found.voxels.shape == found.share.shape == found.change_hu.shape
    assert found.share[found.voxels].mean() > 0.4 and found.share.max() <= 1.001


def test_masses_and_tubes_of_all_sizes():
    found = [draw_lesion(np.random.default_rng(seed)) for seed in range(60)]
    tubes = [own for own in found if own.voxels.shape == (145,) * 3]
    assert 8 < len(tubes) < 30
    for tube in tubes:  # from one side of the patch to another
        faces = [tube.voxels.take(side, axis).any() for axis in range(3) for side in (0, 1, -1, -2)]
        assert sum(faces) >= 2
    sizes = [own.voxels.sum() for own in found if own.voxels.shape != (145,) * 3]
    assert min(sizes) < 500 and max(sizes) > 10_000


def test_it_is_pasted_where_the_patch_shows_the_anchor():
    hu, mask = paste(lesion(), np.zeros((8, 8, 8), np.float32), np.array([-4, -1, -7]))
    expected = np.zeros((8, 8, 8), bool)
    expected[2:7, 0:4, 5:8] = True  # the anchor is voxel (4, 1, 7); it reaches 2 voxels around it
    assert np.array_equal(mask, expected) and np.array_equal(hu, np.where(expected, 50, 0))


def test_a_patch_elsewhere_stays_as_it_is():
    before = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    hu, mask = paste(lesion(), before, np.array([3, 0, 0]))
    assert np.array_equal(hu, before) and not mask.any()


def test_cover_takes_the_texture_below_away():
    before = np.random.default_rng(0).normal(30, 10, size=(9, 9, 9)).astype(np.float32)
    for cover, spread in ((0.0, before[2:7, 2:7, 2:7].std()), (1.0, 0.0)):
        hu, mask = paste(lesion(cover=cover), before, np.array([-4, -4, -4]))
        assert hu[mask].std() == pytest.approx(spread, abs=1e-4)
        assert np.median(hu[mask]) == pytest.approx(np.median(before[mask]) + 50, abs=1e-3)
    assert np.array_equal(hu[~mask], before[~mask])
