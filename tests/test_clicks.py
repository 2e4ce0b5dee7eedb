"""The simulated user's next click, against points found by hand and by brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctsam3d.clicks import USERS, _next_click_on_device, first_click, next_click, next_clicks, squared_depth, user_click


def masks(shape, *boxes):
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[tuple(slice(a, b) for a, b in box)] = True
    return mask


def deepest_by_brute_force(prediction, target, spacing):
    """Largest distance, over all error voxels, to the nearest voxel of another region; beyond the array is another."""
    kinds = np.pad(np.where(prediction == target, 0, np.where(target, 1, 2)), 1)
    places = np.array(list(np.ndindex(kinds.shape)))
    best = {}
    for place in map(tuple, np.argwhere(kinds)):
        others = places[(kinds != kinds[place]).ravel()]
        best[tuple(int(v) - 1 for v in place)] = np.linalg.norm((others - place) * spacing, axis=1).min()
    return best


def test_the_middle_of_what_is_missed_is_clicked_positive():
    target = masks((9, 11), ((2, 7), (3, 8)))  # 5 by 5, its middle is (4, 5)
    assert next_click(np.zeros_like(target), target, spacing=(1.0, 1.0)) == ((4, 5), True)


def test_the_middle_of_what_is_wrong_is_clicked_negative():
    prediction = masks((9, 9, 9), ((1, 4), (1, 4), (5, 8)))
    assert next_click(prediction, np.zeros_like(prediction)) == ((2, 2, 6), False)


def test_the_deeper_region_is_clicked_and_not_the_larger():
    target = masks((20, 20), ((0, 2), (0, 20)), ((10, 15), (10, 15)))  # 40 voxels of depth 1, 25 of depth 3
    assert next_click(np.zeros_like(target), target, spacing=(1.0, 1.0)) == ((12, 12), True)


def test_missed_and_wrong_foreground_that_touch_are_regions_of_their_own():
    # 3 and 5 columns side by side, 5 rows: depth 2 and 3; as one region its first deepest point would be (3, 3).
    target, prediction = masks((7, 10), ((1, 6), (1, 4))), masks((7, 10), ((1, 6), (4, 9)))
    assert next_click(prediction, target, spacing=(1.0, 1.0)) == ((3, 6), False)


def test_the_border_of_the_array_bounds_a_region():
    target = masks((7, 7), ((0, 7), (0, 7)))
    assert next_click(np.zeros_like(target), target, spacing=(1.0, 1.0)) == ((3, 3), True)


def test_depth_is_in_millimetres():
    # A plate 19 x 19 x 3 and a rod 3 x 3 x 9: with slices of 5 mm the plate is 10 mm deep, the rod 2 across its axis.
    plate, rod = ((1, 20), (1, 20), (1, 4)), ((24, 27), (4, 7), (1, 10))
    target = masks((30, 22, 12), plate, rod)
    assert next_click(np.zeros_like(target), target, spacing=(1.0, 1.0, 5.0)) == ((10, 10, 2), True)
    # With slices of 0.5 mm the plate is 1 mm deep, the rod 2 mm along its axis, from the fourth slice to the sixth.
    assert next_click(np.zeros_like(target), target, spacing=(1.0, 1.0, 0.5)) in [((25, 5, k), True) for k in (4, 5, 6)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 1.0, 0.5)])
def test_agrees_with_brute_force(spacing):
    rng = np.random.default_rng(3)
    for _ in range(5):
        blocks = rng.random((2, 3, 3, 3)) < 0.5
        prediction, target = (np.kron(b, np.ones((3, 2, 3))).astype(bool) for b in blocks)
        depths = deepest_by_brute_force(prediction, target, spacing)
        index, positive = next_click(prediction, target, spacing)
        assert depths[index] == pytest.approx(max(depths.values()), rel=1e-5)
        assert positive == target[index] != prediction[index]


def test_no_click_where_the_masks_agree():
    target = masks((6, 6, 6), ((1, 4), (1, 4), (1, 4)))
    assert next_click(target, target.copy()) is None
    assert next_click(np.zeros_like(target), np.zeros_like(target)) is None


def test_an_imprecise_user_stays_in_the_deep_half_and_is_repeatable():
    target = masks((30, 30), ((2, 27), (2, 27)))  # depth 13 in the middle
    empty = np.zeros_like(target)
    seen = {next_click(empty, target, (1.0, 1.0), s / 40) for s in range(40)}
    assert len(seen) > 10
    assert all(sign and min(i - 1, 27 - i, j - 1, 27 - j) >= 6.5 for (i, j), sign in seen)
    assert next_click(empty, target, (1.0, 1.0), 0.3) == next_click(empty, target, (1.0, 1.0), 0.3)


def test_first_click_takes_every_voxel_of_the_structure_and_no_other_equally_often():
    target = masks((3, 4, 5), ((0, 2), (1, 3), (4, 5)))
    rng = np.random.default_rng(0)
    drawn = [first_click(target, rng) for _ in range(4000)]
    counts = [drawn.count(place) for place in itertools.product((0, 1), (1, 2), (4,))]
    assert sum(counts) == 4000
    assert all(abs(n - 1000) < 110 for n in counts)  # four standard deviations


def test_first_click_is_decided_by_the_generator():
    target = np.ones((20, 20, 20), bool)
    assert first_click(target, np.random.default_rng(5)) == first_click(target, np.random.default_rng(5))
    assert len({first_click(target, np.random.default_rng(s)) for s in range(10)}) > 5


def test_first_click_needs_a_structure():
    with pytest.raises(ValueError, match="empty mask of shape \\(2, 3, 4\\)"):
        first_click(np.zeros((2, 3, 4), bool), np.random.default_rng(0))


# --- batches, and the way of the GPU ---------------------------------------------------------------------------------


def blobs(seed, shape=(20, 24, 28)):
    """A target and a prediction of smooth random shape, which err in both ways."""
    rng = np.random.default_rng(seed)
    return [ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0 for _ in range(2)]


def test_squared_depth_is_the_distance_transform():
    regions = np.stack([blobs(0)[0], np.ones((20, 24, 28), bool), np.zeros((20, 24, 28), bool)])
    depth = squared_depth(torch.from_numpy(regions)).numpy()
    for region, own in zip(regions, depth):
        truth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1, 1:-1]
        assert np.allclose(np.sqrt(own), truth, atol=1e-5)


@pytest.mark.parametrize("imprecise", [None, 0.0, 0.4, 0.999])
def test_the_gpu_clicks_where_the_cpu_does(imprecise):
    for seed in range(8):
        prediction, target = blobs(seed)
        on_device = _next_click_on_device(torch.from_numpy(prediction), torch.from_numpy(target), imprecise)
        assert on_device == next_click(prediction, target, imprecise=imprecise)


def test_no_click_on_the_gpu_where_the_masks_agree():
    target = torch.from_numpy(blobs(0)[0])
    assert _next_click_on_device(target, target.clone(), None) is None
    assert _next_click_on_device(target, target.clone(), 0.5) is None


def test_a_batch_is_clicked_patch_by_patch():
    pairs = [blobs(seed) for seed in range(3)]
    predictions, targets = (torch.from_numpy(np.stack(masks)) for masks in zip(*pairs))
    expected = [next_click(p, t, imprecise=i) for (p, t), i in zip(pairs, (None, 0.2, None))]
    assert next_clicks(predictions, targets, [None, 0.2, None]) == expected


# --- users who are less than perfect ----------------------------------------------------------------------------------


def drawn(user, prediction, target, spacing_mm=(1.0, 1.0, 1.0), times=200):
    rng = np.random.default_rng(7)
    return [user_click(user, prediction, target, spacing_mm, rng) for _ in range(times)]


def test_the_papers_user_clicks_the_deepest_point_and_draws_nothing():
    prediction, target = blobs(1)
    assert set(drawn("deepest", prediction, target, times=3)) == {next_click(prediction, target)}
    rng = np.random.default_rng(0)
    user_click("deepest", prediction, target, (1.0, 1.0, 1.0), rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_a_jittered_user_misses_the_deepest_point_by_millimetres_and_stays_in_its_error():
    # A slab of 40 x 40 mm, 3 slices of 4 mm thick: 5 mm are five voxels in its plane and one slice across it.
    target = masks((44, 44, 9), ((2, 42), (2, 42), (3, 6)))
    deepest, _ = next_click(np.zeros_like(target), target, (1.0, 1.0, 4.0))
    seen = drawn("jittered", np.zeros_like(target), target, (1.0, 1.0, 4.0), 2000)
    apart_mm = [np.linalg.norm((np.subtract(place, deepest)) * (1.0, 1.0, 4.0)) for place, _ in seen]
    assert min(apart_mm) > 0 and 4.5 < max(apart_mm) <= 5.0
    assert all(positive and target[place] for place, positive in seen)
    # In the plane 80 voxels lie within 5 mm; in each of the two slices beside it, 4 mm away, 29 within 3 mm.
    assert len(set(seen)) == 80 + 2 * 29
    assert sum(place[2] == deepest[2] for place, _ in seen) == pytest.approx(2000 * 80 / 138, abs=90)


def test_a_jittered_user_keeps_to_one_kind_of_error():
    # Missed and wrong foreground side by side: the click in the wrong one may not slip into the missed one.
    target, prediction = masks((7, 7, 10), ((1, 6), (1, 6), (1, 4))), masks((7, 7, 10), ((1, 6), (1, 6), (4, 9)))
    assert all(not positive and prediction[place] for place, positive in drawn("jittered", prediction, target))


def test_a_jittered_user_has_no_choice_in_an_error_of_one_voxel():
    target = masks((5, 5, 5), ((2, 3), (2, 3), (2, 3)), ((0, 1), (0, 1), (0, 1)))  # the other one is 3.5 voxels away
    assert set(drawn("jittered", np.zeros_like(target), target, (2.0, 2.0, 2.0))) == {((0, 0, 0), True)}


def test_a_wrong_sign_user_errs_in_a_tenth_of_the_clicks():
    prediction, target = blobs(2)
    place, positive = next_click(prediction, target)
    seen = drawn("wrong-sign", prediction, target, times=2000)
    assert {index for index, _ in seen} == {place}
    assert sum(sign != positive for _, sign in seen) == pytest.approx(200, abs=55)  # four standard deviations


def test_a_random_user_clicks_every_voxel_of_the_error_equally_often():
    target, prediction = masks((4, 4, 4), ((0, 1), (0, 1), (0, 3))), masks((4, 4, 4), ((3, 4), (3, 4), (2, 4)))
    prediction[0, 0, 1] = True  # right already
    seen = drawn("random", prediction, target, times=4000)
    expected = [((0, 0, 0), True), ((0, 0, 2), True), ((3, 3, 2), False), ((3, 3, 3), False)]
    counts = [seen.count(click) for click in expected]
    assert sum(counts) == 4000 and all(abs(n - 1000) < 110 for n in counts)  # four standard deviations


@pytest.mark.parametrize("user", USERS)
def test_no_user_clicks_where_the_masks_agree(user):
    target = blobs(0)[0]
    assert user_click(user, target, target.copy(), (1.0, 1.0, 1.0), np.random.default_rng(0)) is None


def test_users_are_named():
    with pytest.raises(ValueError, match="user must be one of deepest, jittered, wrong-sign, random, got 'perfect'"):
        user_click("perfect", *blobs(0), (1.0, 1.0, 1.0), np.random.default_rng(0))
