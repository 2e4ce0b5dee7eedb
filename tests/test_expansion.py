"""The patches beside a patch, by hand."""

import numpy as np

from ctsam3d.expansion import neighbours, peak
from ctsam3d.volume import Box


def cube(start, size=64):
    return Box(tuple(start), tuple(a + size for a in start))


GRID = Box((0, 0, 0), (300, 300, 300))


def test_a_patch_inside_has_26_neighbours():
    found = neighbours(cube((100, 110, 120)), GRID, stride=32)
    assert len(found) == len(set(found)) == 26
    starts = {box.start for box in found}
    assert {(68, 110, 120), (132, 142, 152), (68, 78, 88), (100, 110, 152)} <= starts
    assert (100, 110, 120) not in starts
    assert all(box.shape == (64, 64, 64) for box in found)


def test_neighbours_stay_in_the_grid():
    found = neighbours(cube((0, 236, 100)), GRID, stride=32)  # at the low face in z, at the high face in y
    assert {box.start for box in found} == {
        (z, y, x) for z in (0, 32) for y in (204, 236) for x in (68, 100, 132) if (z, y, x) != (0, 236, 100)
    }


def test_neighbours_near_a_face_are_moved_inside():
    found = neighbours(cube((10, 100, 100)), GRID, stride=32)
    assert min(box.start[0] for box in found) == 0 and len(found) == 26


def test_an_axis_shorter_than_a_patch_has_no_neighbours_along_it():
    grid = Box((0, 0, 0), (40, 300, 300))
    found = neighbours(cube((-12, 100, 100)), grid, stride=32)
    assert {box.start[0] for box in found} == {-12} and len(found) == 8
    assert neighbours(cube((-12, -12, -12)), Box((0, 0, 0), (40, 40, 40)), stride=32) == []


def test_peak():
    heatmap = np.full((4, 5, 6), -1.0, np.float32)
    heatmap[1, 2, 3] = 0.25
    assert peak(heatmap) == ((1, 2, 3), 0.25)
