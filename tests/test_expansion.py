"""Where a structure goes on, what joins the mask and what is cut off it, by hand."""

import numpy as np
import pytest

from ctsam3d.expansion import (
    Patch,
    agrees,
    ahead,
    bars,
    covered,
    depth,
    descendants,
    lasting,
    leads_to,
    neighbours,
    severed,
    without_islands,
)
from ctsam3d.volume import Box

N = 64
GRID = Box((0, 0, 0), (200, 200, 200))


def box(*start):
    return Box(start, tuple(a + N for a in start))


def patch(start, *filled, source=None):
    """A patch whose mask is the boxes `filled`, given on the grid."""
    own = box(*start)
    probability = np.zeros((N,) * 3, np.float16)
    for part in filled:
        probability[part.intersection(own).slices(own)] = 0.9
    return Patch(own, probability, np.ones_like(probability), source=source)


# ---- where next ----------------------------------------------------------------------------------------------------


def test_neighbours_lie_a_stride_away_nearest_first():
    found = neighbours(box(64, 64, 64), GRID, stride=32)
    steps = [tuple((a - 64) // 32 for a in own.start) for own in found]
    assert len(set(steps)) == 26 and all(set(step) <= {-1, 0, 1} for step in steps)
    aside = [sum(map(abs, step)) for step in steps]
    assert aside == sorted(aside) and aside.count(1) == 6 and aside.count(3) == 8


def test_neighbours_stay_inside_the_scan():
    assert {own.start[0] for own in neighbours(box(0, 64, 64), GRID, 32)} == {0, 32}
    assert {own.start[2] for own in neighbours(box(64, 64, 130), GRID, 32)} == {98, 130, 136}
    assert {own.start[1] for own in neighbours(box(64, 89, 64), GRID, 32)} == {57, 89, 136}  # 121 leaves 15 voxels
    assert {own.start[1] for own in neighbours(box(64, 88, 64), GRID, 32)} == {56, 88, 120}
    assert {own.start[1] for own in neighbours(box(64, 47, 64), GRID, 32)} == {0, 47, 79}
    assert neighbours(Box((-10, -10, -10), (54, 54, 54)), Box((0, 0, 0), (40, 40, 40))) == []


@pytest.mark.parametrize(
    ("filled", "leads"),
    [
        (Box((80, 80, 80), (112, 112, 112)), []),  # 16 voxels from every face
        (Box((100, 90, 90), (113, 100, 100)), [(96, 64, 64)]),  # one voxel within the last 16
        (Box((100, 90, 90), (112, 100, 100)), []),
        (Box((90, 90, 70), (95, 95, 80)), [(64, 64, 32)]),
        (Box((120, 120, 90), (128, 128, 100)), [(96, 64, 64), (64, 96, 64), (96, 96, 64)]),  # faces, and their edge
    ],
)
def test_a_mask_leads_to_the_neighbours_whose_faces_it_comes_near(filled, leads):
    own = patch((64, 64, 64), filled)
    found = [other.start for other in neighbours(own.box_zyx, GRID, 32) if leads_to(own, other, reach=16)]
    assert sorted(found) == sorted(leads)


def test_what_is_there_is_not_looked_at_again():
    own = patch((64, 64, 64), box(64, 64, 64))
    everywhere = [other for _, other in ahead(own, GRID, [own])]
    assert len(everywhere) == 26
    assert [other for _, other in ahead(own, GRID, [own, patch(everywhere[0].start)])] == everywhere[1:]


def test_covered():
    assert covered(box(0, 0, 0), [box(6, 0, 0), box(80, 80, 80)])  # 58 of 64 layers
    assert not covered(box(0, 0, 0), [box(7, 0, 0)])
    assert covered(box(0, 0, 0), [box(32, 0, 0), box(-30, 0, 0)])  # 66 of 64, together


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 4)])
def test_a_lasting_array_is_a_copy(shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.float16)
    copy = lasting(array)
    assert np.array_equal(copy, array) and copy.dtype == array.dtype and copy.shape == shape
    array += 1
    assert not array.size or copy.flat[0] == 0


# ---- what joins ----------------------------------------------------------------------------------------------------


def test_patches_agree_where_they_overlap():
    tube = Box((0, 90, 90), (200, 100, 100))
    one = patch((64, 64, 64), tube)
    assert agrees(patch((96, 64, 64), tube), [one])
    assert not agrees(patch((96, 64, 64), Box((96, 70, 70), (160, 120, 120))), [one])  # floods
    assert not agrees(patch((96, 64, 64), Box((130, 90, 90), (160, 100, 100))), [one])  # begins too late
    assert agrees(patch((96, 64, 64)), [patch((64, 64, 64))])  # nothing on both sides
    # In the outermost 8 voxels of either they may differ.
    assert agrees(patch((112, 64, 64), Box((113, 64, 64), (119, 128, 128))), [one])


def test_islands_are_dropped():
    touching, island = Box((20, 5, 5), (30, 9, 9)), Box((40, 40, 40), (50, 50, 50))
    own, before = patch((0, 0, 0), touching, island), patch((0, 0, 0), Box((18, 5, 5), (22, 9, 9)))
    left = without_islands(own.probability, before.probability)
    assert np.array_equal(left, patch((0, 0, 0), touching).probability)


def test_descendants():
    one, two, three, other = box(0, 0, 0), box(32, 0, 0), box(64, 0, 0), box(0, 32, 0)
    patches = [patch(one.start), patch(two.start, source=one), patch(three.start, source=two), patch(other.start)]
    assert descendants(one, patches) == {two, three} and descendants(three, patches) == set()


def test_what_a_negative_click_cuts_off():
    before = np.zeros((3, 3, 12), bool)
    before[1, 1, :9] = before[1, 1, 11] = True  # a bar with the click at its left end, and a part that stood alone
    after = before.copy()
    after[1, 1, 4] = False
    lost = severed(before, after, [(1, 1, 0)])
    assert [tuple(place) for place in np.argwhere(lost)] == [(1, 1, x) for x in range(5, 9)]
    assert not severed(before, after, [(1, 1, 0), (1, 1, 8)]).any()
    assert not severed(before, before, [(1, 1, 0)]).any()


def test_a_positive_click_that_left_the_mask_cuts_nothing():
    bar = np.ones((1, 1, 9), bool)
    after = bar.copy()
    after[0, 0, 3:5] = False
    assert not severed(bar, after, [(0, 0, 3)]).any() and not severed(bar, after, [(0, 0, 0), (0, 0, 3)]).any()
    assert not severed(bar, after, []).any()


def test_what_is_barred():
    lost, kept = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    lost[10:14, 10, 10] = lost[2, 2, 2] = True
    kept[8, 10, 10] = True
    one, other = sorted(bars(lost, kept, Box((100, 0, 0), (120, 20, 20))), key=lambda own: own.box_zyx.start)
    assert one.holds((102, 2, 2)) and one.holds((99 + 1, 2, 2)) and not one.holds((106, 2, 2))
    assert other.holds((110, 10, 10)) and other.holds((116, 10, 10)) and not other.holds((117, 10, 10))
    assert not other.holds((108, 10, 10))  # of the mask
    whole = other.on(Box((100, 0, 0), (120, 20, 20)))
    assert whole[10:17, 10, 10].all() and not whole[2, 2, 2]


def test_depth_in_a_mask():
    mask = np.zeros((9, 9, 30), bool)
    mask[2:7, 2:7, :20] = True
    assert depth(mask, (4, 4, 0)) == 3 and depth(mask, (4, 4, 19)) == 1 and depth(mask, (0, 0, 0)) == 0
    assert depth(np.ones((3, 4, 5), bool), (1, 1, 1)) == 5
