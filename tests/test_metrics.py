"""Scores against values computed by hand."""

import numpy as np
import pytest
import surface_distance
from scipy import ndimage

from ctsam3d.metrics import dice, normalised_surface_dice, surface, surface_dice


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


# --- the surfaces -----------------------------------------------------------------------------------------------------


def blob(seed, shape):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5) > 0.02


@pytest.mark.parametrize(
    "spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 1.25, 0.8)]
)  # in the last, 5 mm is a distance
def test_surfaces_and_scores_are_those_of_the_library(spacing_mm):
    tolerances_mm = (0.0, 1.0, 2.0, 5.0)  # 5 mm is a distance on the last grid: 3 and 5 x 0.8 mm aside
    for seed in range(4):
        a, b = blob(seed, (22, 18, 20)), blob(seed + 10, (22, 18, 20))
        distances = surface_distance.compute_surface_distances(a, b, spacing_mm)
        expected = [surface_distance.compute_surface_dice_at_tolerance(distances, t) for t in tolerances_mm]
        own = surface(a, spacing_mm)
        assert own.areas_mm2.sum() == pytest.approx(distances["surfel_areas_gt"].sum())
        assert surface_dice(surface(b, spacing_mm), own, tolerances_mm) == pytest.approx(expected, abs=1e-12)


def test_a_surface_does_not_depend_on_the_box_it_was_cut_from():
    mask = np.pad(blob(0, (12, 10, 8)), 3)
    whole, cut = surface(mask, (1.0, 2.0, 3.0)), surface(mask[3:-3, 3:-3, 3:-3], (1.0, 2.0, 3.0), (3, 3, 3))
    assert np.array_equal(whole.corners, cut.corners) and np.array_equal(whole.areas_mm2, cut.areas_mm2)
    assert (np.diff(whole.keys) > 0).all()


def test_one_voxel_has_eight_corners():
    own = surface(block((5, 5, 5), (1, 2, 3), (2, 3, 4)), (1.0, 2.0, 4.0))
    assert own.corners.tolist() == [[i, j, k] for i in (1, 2) for j in (2, 3) for k in (3, 4)]
    assert own.points_mm[-1].tolist() == [2.0, 6.0, 16.0]
    assert len(surface(np.zeros((3, 3, 3), bool), (1.0, 1.0, 1.0))) == 0


def test_a_shift_by_one_voxel_is_seen_at_its_tolerance_and_not_below():
    # A cube of 6 voxels, 2 x 1 x 2.5 mm each, moved by one along k: DSC is 5 of 6, surfaces are at most 2.5 mm apart.
    a, b = block((10, 10, 12), (2, 2, 2), (8, 8, 8)), block((10, 10, 12), (2, 2, 3), (8, 8, 9))
    spacing_mm = (2.0, 1.0, 2.5)
    assert dice(a, b) == pytest.approx(5 / 6)
    below, at = surface_dice(surface(a, spacing_mm), surface(b, spacing_mm), (2.49, 2.5))
    assert at == 1.0 and 0.5 < below < 1.0


def test_scores_of_empty_surfaces():
    empty, own = (
        surface(np.zeros((4, 4, 4), bool), (1, 1, 1)),
        surface(block((4, 4, 4), (1, 1, 1), (2, 2, 2)), (1, 1, 1)),
    )
    assert surface_dice(empty, empty, (5.0, 2.0)) == (1.0, 1.0)
    assert surface_dice(own, empty, (5.0, 2.0)) == surface_dice(empty, own, (5.0, 2.0)) == (0.0, 0.0)


def test_what_is_farther_than_every_tolerance_counts_as_far():
    a, b = block((40, 8, 8), (1, 1, 1), (4, 7, 7)), block((40, 8, 8), (30, 1, 1), (33, 7, 7))
    assert surface_dice(surface(a, (1, 1, 1)), surface(b, (1, 1, 1)), (5.0, 2.0)) == (0.0, 0.0)
