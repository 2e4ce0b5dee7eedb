"""Frames: what a click, a voxel of the model grid and a patch are in the world."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.geometry import MODEL_MM, ORIENTATIONS, PATCH, affine_of, lps_of_ijk, lps_of_model_voxel

from ctsam3d.volume import Box, Click, ModelGrid, Volume, check_click_ijk, one_axis_per_row

# ---- hand-computed -----------------------------------------------------------------------------------------------


def small_volume() -> Volume:
    """Shape (4, 3, 2); i steps 3 mm to the Right, j 1.5 mm to Anterior, k 6 mm to Superior; voxel 0 at (10, 20, 30)."""
    affine = np.array([[3.0, 0, 0, 10], [0, 1.5, 0, 20], [0, 0, 6.0, 30], [0, 0, 0, 1]])
    return Volume(np.zeros((4, 3, 2), np.int16), affine)


def test_model_grid_by_hand():
    grid = ModelGrid.of(small_volume(), 1.5)
    # z: 2 slices of 6 mm = 12 mm = 8 voxels; y: 3 of 1.5 mm = 3 voxels; x: 4 of 3 mm = 8 voxels.
    assert grid.shape_zyx == (8, 3, 8)
    # x grows to the Left, so i = 3, the rightmost, is at low x: its centre 1.5 mm = 1 voxel inside the corner, x = 0.5.
    # y grows to Posterior, so j = 2, the most anterior, is y = 0. Slice k = 0: 3 mm inside the corner, z = 2 - 0.5.
    assert grid.to_zyx((3, 2, 0)) == pytest.approx((1.5, 0.0, 0.5))
    assert grid.to_zyx((0, 2, 0)) == pytest.approx((1.5, 0.0, 6.5))  # only x changed: three steps of 3 mm
    assert grid.to_zyx((3, 0, 0)) == pytest.approx((1.5, 2.0, 0.5))  # only y
    assert grid.to_zyx((3, 2, 1)) == pytest.approx((5.5, 0.0, 0.5))  # only z: 6 mm are 4 voxels
    assert grid.voxel_zyx((0, 0, 1)) == (6, 2, 7)  # 5.5 and 6.5 round up
    back = grid.ijk_from_zyx @ np.array([5.5, 2.0, 6.5, 1])
    assert back == pytest.approx([0, 0, 1, 1])


def test_patch_and_box_by_hand():
    grid = ModelGrid.of(small_volume(), 1.5)
    patch = grid.patch_zyx((6, 2, 7), 4)
    # z: 6 - 2 = 4 to 8 fits; y: 3 voxels in a patch of 4, (3 - 4) // 2 = -1; x: 7 - 2 = 5 to 9 is moved to 4 to 8.
    assert patch == Box((4, -1, 4), (8, 3, 8))
    # x from 4 - 1 to 8 - 1 + 1: i from 3 - (8 - 0.5) / 2 to 3 - (3 - 0.5) / 2 = -0.75 to 1.75: voxels 0 to 2.
    # z from 3 to 8: k from (3 - 1.5) / 4 to (8 - 1.5) / 4 = 0.375 to 1.625: voxels 0 and 1. y covers all of j.
    assert grid.box_ijk_around(patch, (4, 3, 2)) == Box((0, 0, 0), (3, 3, 2))


def test_patch_stays_inside_a_large_grid():
    grid = ModelGrid.of(Volume(np.zeros((100, 100, 100), np.int8), np.diag([1.5, 1.5, 1.5, 1])), 1.5)
    assert grid.patch_zyx((50, 50, 50), 64) == Box((18, 18, 18), (82, 82, 82))
    assert grid.patch_zyx((0, 99, 50), 64) == Box((0, 36, 18), (64, 100, 82))


def test_header_rounding_counts_as_straight():
    affine = affine_of(ORIENTATIONS[9], (0.7, 0.8, 5.0), rotation_vector=(1e-7, -2e-7, 1e-7))
    assert one_axis_per_row(ModelGrid.of(Volume(np.zeros((512, 512, 60), np.int8), affine), 1.5).zyx_from_ijk)
    affine = affine_of(ORIENTATIONS[9], (0.7, 0.8, 5.0), rotation_vector=(0.01, 0, 0))
    assert not one_axis_per_row(ModelGrid.of(Volume(np.zeros((512, 512, 60), np.int8), affine), 1.5).zyx_from_ijk)


# A turn that moves no voxel of the scan by 0.001 model voxel counts as none, in each of two matrix entries per axis.
NEGLECTED_MM = 2 * 0.001 * MODEL_MM

# ---- any orientation ---------------------------------------------------------------------------------------------

spacings = st.tuples(*[st.floats(0.5, 5.0)] * 3)
angles = st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-0.6, 0.6)] * 3))
origins = st.tuples(*[st.floats(-500, 500)] * 3)
# From one voxel to several patches: at 1.5 mm a patch is 96 mm, 20 to 190 voxels.
shapes = st.tuples(*[st.one_of(st.integers(1, 12), st.integers(1, 300))] * 3)
places = st.tuples(*[st.floats(0, 1)] * 3)  # 0 and 1 are the scan's borders


def click_at(place, shape_ijk) -> tuple[int, int, int]:
    return tuple(round(f * (n - 1)) for f, n in zip(place, shape_ijk))


def bare_volume(shape_ijk, affine) -> Volume:
    """A volume of any shape that takes no memory."""
    return Volume(np.broadcast_to(np.int8(0), shape_ijk), affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@settings(max_examples=50)
@given(spacing=spacings, rotation=angles, origin=origins, shape=shapes, place=places)
def test_click_lands_on_its_model_voxel(orientation, spacing, rotation, origin, shape, place):
    """48 orientations x 50 scans: a click's model voxel is inside its patch and at the click's place in the world."""
    affine = affine_of(orientation, spacing, rotation, origin)
    grid = ModelGrid.of(bare_volume(shape, affine), MODEL_MM)
    click_ijk = click_at(place, shape)
    voxel_zyx = grid.voxel_zyx(click_ijk)

    patch_zyx = grid.patch_zyx(voxel_zyx, PATCH)
    assert patch_zyx.shape == (PATCH,) * 3
    assert patch_zyx.contains(voxel_zyx) and grid.box_zyx.contains(voxel_zyx)
    assert grid.box_ijk_around(patch_zyx, shape).contains(click_ijk)

    apart_mm = lps_of_model_voxel(affine, shape, voxel_zyx) - lps_of_ijk(affine, click_ijk)
    assert np.abs(apart_mm).max() <= 0.5 * MODEL_MM + NEGLECTED_MM


@settings(max_examples=300)
@given(st.sampled_from(ORIENTATIONS), spacings, angles, origins, shapes, places)
def test_frames_agree_and_invert(orientation, spacing, rotation, origin, shape, place):
    affine = affine_of(orientation, spacing, rotation, origin)
    grid = ModelGrid.of(bare_volume(shape, affine), MODEL_MM)
    index_ijk = np.add(click_at(place, shape), (0.2, 0.0, -0.4))
    zyx = grid.to_zyx(index_ijk)
    assert lps_of_model_voxel(affine, shape, zyx) == pytest.approx(lps_of_ijk(affine, index_ijk), abs=NEGLECTED_MM)
    assert (grid.ijk_from_zyx @ [*zyx, 1])[:3] == pytest.approx(index_ijk, abs=1e-6)


@pytest.mark.parametrize("rotation", [(0, 0, 0), (0.2, -0.1, 0.3)], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_frames_agree_exactly(orientation, rotation):
    affine, shape = affine_of(orientation, (0.7, 1.1, 4.0), rotation, (-100, 40, 7)), (120, 90, 33)
    grid = ModelGrid.of(bare_volume(shape, affine), MODEL_MM)
    for index_ijk in [(0, 0, 0), (119, 0, 0), (0, 89, 0), (0, 0, 32), (-200.5, 300.25, 55)]:
        there = lps_of_model_voxel(affine, shape, grid.to_zyx(index_ijk))
        assert there == pytest.approx(lps_of_ijk(affine, index_ijk), abs=1e-8)


@settings(max_examples=300)
@given(st.sampled_from(ORIENTATIONS), spacings, angles, shapes)
def test_grid_is_the_smallest_that_covers_the_scan(orientation, spacing, rotation, shape):
    affine = affine_of(orientation, spacing, rotation)
    grid = ModelGrid.of(bare_volume(shape, affine), MODEL_MM)
    corners_zyx = [
        grid.to_zyx((i, j, k))
        for i in (-0.5, shape[0] - 0.5)
        for j in (-0.5, shape[1] - 0.5)
        for k in (-0.5, shape[2] - 0.5)
    ]
    assert np.min(corners_zyx, axis=0) == pytest.approx([-0.5] * 3, abs=1e-6)
    spare = np.array(grid.shape_zyx) - 0.5 - np.max(corners_zyx, axis=0)
    assert (spare >= -1e-5).all() and (spare < 1 + 1e-5).all()


@settings(max_examples=200)
@given(st.sampled_from(ORIENTATIONS), spacings, angles, shapes, places, st.integers(1, 12))
def test_box_around_holds_every_voxel_near_the_box(orientation, spacing, rotation, shape, place, size):
    affine = affine_of(orientation, spacing, rotation)
    grid = ModelGrid.of(bare_volume(shape, affine), MODEL_MM)
    box_zyx = grid.patch_zyx(grid.voxel_zyx(click_at(place, shape)), size)
    box_ijk = grid.box_ijk_around(box_zyx, shape)
    rng = np.random.default_rng(0)
    for ijk in rng.integers(0, shape, (40, 3)):
        zyx = np.array(grid.to_zyx(ijk))
        if (zyx > np.array(box_zyx.start) - 1).all() and (zyx < np.array(box_zyx.stop)).all():
            assert box_ijk.contains(ijk)


# ---- boxes -------------------------------------------------------------------------------------------------------

boxes = st.builds(
    lambda start, size: Box(start, tuple(a + n for a, n in zip(start, size))),
    st.tuples(*[st.integers(-5, 5)] * 3),
    st.tuples(*[st.integers(0, 5)] * 3),
)


def test_box_by_hand():
    box = Box((1, 2, 3), (4, 6, 5))
    assert box.shape == (3, 4, 2) and not box.empty
    assert box.contains((1, 2, 3)) and box.contains((3, 5, 4))
    assert not box.contains((4, 5, 4)) and not box.contains((0, 2, 3))
    assert box.depth((2, 3, 3)) == 0 and Box((0, 0, 0), (9, 9, 9)).depth((4, 3, 4)) == 3
    assert box.depth((1, 2, 6)) == -2
    assert box.grown(2) == Box((-1, 0, 1), (6, 8, 7))
    assert box.slices() == (slice(1, 4), slice(2, 6), slice(3, 5))
    assert box.slices(Box((1, 1, 1), (9, 9, 9))) == (slice(0, 3), slice(1, 5), slice(2, 4))
    assert box.intersection(Box((3, 0, 4), (9, 3, 9))) == Box((3, 2, 4), (4, 3, 5))
    assert box.union(Box((0, 9, 4), (1, 10, 5))) == Box((0, 2, 3), (4, 10, 5))


@given(boxes, boxes)
def test_box_operations_agree_with_sets_of_voxels(a, b):
    def voxels(box):
        return {tuple(v + s for v, s in zip(index, box.start)) for index in np.ndindex(box.shape)}

    assert voxels(a.intersection(b)) == voxels(a) & voxels(b)
    assert voxels(a) | voxels(b) <= voxels(a.union(b))
    assert a.union(b) == b.union(a) or a.empty or b.empty
    assert a.intersection(b).empty == (not voxels(a) & voxels(b))


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_volume_knows_its_geometry():
    volume = small_volume()
    assert volume.shape_ijk == (4, 3, 2)
    assert volume.spacing_ijk_mm == (3.0, 1.5, 6.0)
    assert volume.box_ijk == Box((0, 0, 0), (4, 3, 2))
    assert Click((1, 2, 1)).positive


@pytest.mark.parametrize(
    ("array", "affine", "error", "message"),
    [
        (np.zeros((2, 2)), np.eye(4), ValueError, r"array_ijk must be 3D, got shape \(2, 2\)"),
        (np.zeros((2, 2, 2, 2)), np.eye(4), ValueError, r"array_ijk must be 3D, got shape \(2, 2, 2, 2\)"),
        (np.zeros((2, 0, 2)), np.eye(4), ValueError, r"array_ijk must not be empty, got shape \(2, 0, 2\)"),
        (np.zeros((2, 2, 2), complex), np.eye(4), TypeError, "array_ijk must hold real numbers, got dtype complex128"),
        (np.full((2, 2, 2), "a"), np.eye(4), TypeError, "array_ijk must hold real numbers"),
        (np.zeros((2, 2, 2)), np.eye(3), ValueError, r"affine_ras_mm must have shape \(4, 4\), got \(3, 3\)"),
        (np.zeros((2, 2, 2)), np.diag([1, 1, 0, 1]), ValueError, "affine_ras_mm must be invertible"),
        (np.zeros((2, 2, 2)), np.diag([1, math.nan, 1, 1]), ValueError, "affine_ras_mm must be finite"),
    ],
)
def test_volume_refuses(array, affine, error, message):
    with pytest.raises(error, match=message):
        Volume(array, affine)


@pytest.mark.parametrize(
    "click",
    [(1, 2, 1), [1, 2, 1], np.array([1, 2, 1]), (1.0, 2.0, 1.0), (np.int64(1), np.float32(2), Fraction(1)), range(3)],
    ids=repr,
)
def test_click_is_three_plain_ints(click):
    checked = check_click_ijk(click, (4, 3, 2)) if not isinstance(click, range) else check_click_ijk(click, (9, 9, 9))
    assert checked == tuple(int(v) for v in click)
    assert all(type(v) is int for v in checked)


@pytest.mark.parametrize(
    ("click", "error", "message"),
    [
        ((4, 0, 0), ValueError, r"click \(4, 0, 0\) is outside the volume \(4, 3, 2\)"),
        ((0, 3, 0), ValueError, r"click \(0, 3, 0\) is outside the volume \(4, 3, 2\)"),
        ((0, 0, 2), ValueError, r"click \(0, 0, 2\) is outside the volume \(4, 3, 2\)"),
        ((0, -1, 0), ValueError, r"click \(0, -1, 0\) is outside the volume \(4, 3, 2\)"),
        ((10**400, 0, 0), ValueError, "click .* is outside the volume"),
        ((1, 2), ValueError, r"click must be three voxel indices \(i, j, k\), got 2: \[1, 2\]"),
        ((1, 2, 1, 0), ValueError, "got 4"),
        ([], ValueError, "got 0"),
        ((0.5, 0, 0), ValueError, "click must hold whole voxel indices, got 0.5"),
        ((0, math.nan, 0), ValueError, "click must be finite, got nan"),
        ((0, math.inf, 0), ValueError, "click must be finite, got inf"),
        ((True, 0, 0), TypeError, "click must hold numbers, got True"),
        ((np.bool_(True), 0, 0), TypeError, "click must hold numbers"),
        (("1", 0, 0), TypeError, "click must hold numbers, got '1'"),
        ((None, 0, 0), TypeError, "click must hold numbers, got None"),
        ((1j, 0, 0), TypeError, "click must hold numbers"),
        ((np.complex64(1), 0, 0), TypeError, "click must hold numbers"),
        (([1], [2], [1]), TypeError, "click must hold numbers"),
        (([1], [2, 3], 1), TypeError, "click must hold numbers"),
        (np.array(5), TypeError, "click must be three voxel indices"),
        ("123", TypeError, "click must be three voxel indices"),
        (b"123", TypeError, "click must be three voxel indices"),
        (5, TypeError, "click must be three voxel indices"),
        (None, TypeError, "click must be three voxel indices"),
        ({0, 1, 2}, TypeError, "click must be three voxel indices"),
        ({"i": 1, "j": 2, "k": 1}, TypeError, "click must be three voxel indices"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_click_refused(click, error, message):
    with pytest.raises(error, match=message):
        check_click_ijk(click, (4, 3, 2))


def test_click_error_names_the_callers_argument():
    with pytest.raises(ValueError, match=r"negative\[2\] \(9, 0, 0\) is outside the volume \(4, 3, 2\)"):
        check_click_ijk((9, 0, 0), (4, 3, 2), argument="negative[2]")
