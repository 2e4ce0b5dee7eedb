"""Scores against values computed by hand."""

import numpy as np
import pytest

from ctsam3d.metrics import dice, normalised_surface_dice


def block(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop))] = True
    return mask


def test_dice_of_overlapping_blocks():
    a, b = block((4, 4, 4), (0, 0, 0), (2, 2, 2)), block((4, 4, 4), (1, 0, 0), (4, 2, 2))  # 8 and 12 voxels, 4 shared
    assert dice(a, b) == dice(b, a) == pytest.approx(2 * 4 / (8 + 12))


def test_dice_of_equal_and_of_disjoint_masks():
    a = block((4, 4), (0, 0), (2, 2))
    assert dice(a, a) == 1.0
    assert dice(a, ~a) == 0.0


def test_dice_of_empty_masks():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == dice(full, empty) == 0.0


def test_dice_takes_label_maps_of_zero_and_one():
    a = block((4, 4), (0, 0), (2, 2))
    assert dice(a.astype(np.uint8), a.astype(np.float32)) == 1.0


@pytest.mark.parametrize("score", [dice, lambda a, b: normalised_surface_dice(a, b, (1, 1, 1), 1.0)])
def test_shapes_must_agree(score):
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 3, 5\)"):
        score(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))


@pytest.mark.parametrize(("axis", "shift_mm"), [(0, 1.0), (1, 2.0), (2, 5.0)])
def test_nsd_of_a_shifted_plate_counts_the_shift_in_millimetres(axis, shift_mm):
    # A plate across the whole array, moved by one voxel: all of both surfaces is one spacing away, none is nearer.
    shape = (12, 12, 12)
    a, b = np.zeros(shape, bool), np.zeros(shape, bool)
    for mask, first in ((a, 4), (b, 5)):
        mask[tuple(slice(first, first + 3) if x == axis else slice(None) for x in range(3))] = True
    spacing_mm = (1.0, 2.0, 5.0)
    inner = normalised_surface_dice(a, b, spacing_mm, shift_mm * 1.01)
    assert inner == pytest.approx(1.0)
    rim = normalised_surface_dice(a, b, spacing_mm, shift_mm * 0.9)  # only the plate's rim at the array's border agrees
    assert rim < 0.75
    assert rim < inner


def test_nsd_of_a_thick_block_that_grows_on_one_side():
    # Sides 40 mm; one face of the prediction is 4 mm too far out: about 5 of 6 faces agree at 1 mm, all at 4 mm.
    a, b = block((30, 50, 20), (5, 5, 4), (25, 45, 12)), block((30, 50, 20), (5, 5, 4), (27, 45, 12))
    spacing_mm = (2.0, 1.0, 5.0)
    strict, loose = (normalised_surface_dice(a, b, spacing_mm, t) for t in (1.0, 4.0))
    assert strict == pytest.approx(5 / 6, abs=0.05)
    assert loose == pytest.approx(1.0)


def test_nsd_of_equal_and_of_empty_masks():
    empty, a = np.zeros((8, 8, 8), bool), block((8, 8, 8), (2, 2, 2), (5, 5, 5))
    spacing_mm = (0.7, 0.7, 5.0)
    assert normalised_surface_dice(a, a, spacing_mm, 0.0) == 1.0
    assert normalised_surface_dice(empty, empty, spacing_mm, 2.0) == 1.0
    assert normalised_surface_dice(a, empty, spacing_mm, 2.0) == 0.0
    assert normalised_surface_dice(empty, a, spacing_mm, 2.0) == 0.0


def test_nsd_of_masks_at_the_border_is_that_of_masks_inside():
    a, b = block((6, 6, 6), (0, 0, 0), (4, 4, 4)), block((6, 6, 6), (0, 0, 0), (5, 4, 4))
    inside = [np.pad(m, 5) for m in (a, b)]
    for tolerance_mm in (0.5, 1.0, 2.0):
        expected = normalised_surface_dice(*inside, (1.0, 1.0, 3.0), tolerance_mm)
        assert normalised_surface_dice(a, b, (1.0, 1.0, 3.0), tolerance_mm) == pytest.approx(expected)


def test_nsd_of_one_voxel_moved_by_one():
    a, b = block((9, 9, 9), (4, 4, 4), (5, 5, 5)), block((9, 9, 9), (4, 4, 5), (5, 5, 6))
    assert normalised_surface_dice(a, b, (1.0, 1.0, 3.0), 3.0) == pytest.approx(1.0)
    # At 1 mm, the half of each voxel's surface that faces the other touches it, the other half is 3 mm away.
    assert normalised_surface_dice(a, b, (1.0, 1.0, 3.0), 1.0) == pytest.approx(0.5)
