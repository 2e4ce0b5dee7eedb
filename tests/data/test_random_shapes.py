"""Trees stay in their box and branch; quadrics are distances, and cells go to the smallest."""

import numpy as np
import pytest

from ctsam3d.data.random_shapes import capsules, nearest, quadric, tree


def test_a_tree_grows_in_its_box_and_thins():
    low, high = np.array([-40.0, -50, -60]), np.array([40.0, 50, 60])
    branches = tree(np.random.default_rng(0), (0, 0, -60), (0, 0, 1), 5.0, low, high, most=9)
    assert 2 <= len(branches) <= 9
    assert branches[0][0] == pytest.approx([0, 0, -60, 5.0])
    for path in branches:
        reach = path[:, 3:].max() + max(3.0, 0.7 * path[0, 3])  # the step that leaves the box is the last
        assert (path[:, :3] > low - reach).all() and (path[:, :3] < high + reach).all()
        assert (np.diff(path[:, 3]) <= 0).all()
    assert all(path[0, 3] < 5.0 for path in branches[1:])
    again = tree(np.random.default_rng(0), (0, 0, -60), (0, 0, 1), 5.0, low, high, most=9)
    assert all(np.array_equal(a, b) for a, b in zip(branches, again))


def test_capsules_join_the_points_of_a_path():
    path = np.array([[0, 0, 0, 2], [10, 0, 0, 3], [10, 8, 0, 1]], float)
    first, second = capsules(path, grow_mm=0.5)
    at = [np.array([[[v]]], np.float32) for v in (0, 2.5, 0)]
    assert first.distance(*at).item() == pytest.approx(0, abs=1e-5)
    at = [np.array([[[v]]], np.float32) for v in (10, 8, 1.5)]
    assert second.distance(*at).item() == pytest.approx(0, abs=1e-5)


def test_quadrics_by_hand():
    flat = quadric(np.eye(3), (10, 20, 5), (1, 2, 3))  # (x-1)²/100 + (y-2)²/400 + (z-3)²/25
    turned = quadric(np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]]), (10, 20, 5), (1, 2, 3), bias=7)

    def value(q, x, y, z):
        return q @ [1, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z]

    assert value(flat, 1, 2, 3) == pytest.approx(0)
    assert value(flat, 11, 2, 3) == pytest.approx(1)
    assert value(flat, 11, 22, 8) == pytest.approx(3)
    assert value(turned, 11, 2, 3) == pytest.approx(7 + 1 / 4)  # now x is the long axis


def test_cells_go_to_the_nearest_and_the_gap_is_in_radii():
    balls = np.array([quadric(np.eye(3), (2, 2, 2), (x, 0, 0)) for x in (0, 10, 30)])
    positions = np.array([[0, 4, 9, 30], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    index, gap = nearest(positions, balls)
    assert index.tolist() == [0, 0, 1, 2]
    assert gap == pytest.approx([5, 1, 4, 10], abs=1e-3)
