"""Tissues: small hand-made bodies in any orientation, and phantoms whose tissues are known."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ctsam3d.data.body import body_region, ijk_from_zyx, turned, turned_spacing, zyx_from_ijk
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.data.tissues import (
    MUSCLE,
    OTHER,
    SUBCUTANEOUS,
    VISCERAL,
    find_body,
    find_tissues,
    labelled_share,
    noise_hu,
    smoothed,
)
from ctsam3d.volume import Volume

AIR, FAT, LEAN, BONE, LUNG = -1000, -100, 55, 700, -850
MM3 = (3.0, 3.0, 3.0)


def radius_mm(shape, spacing_mm, centre=None):
    """(Z, Y, X) distance in mm from an upright axis, through the middle of the slices by default."""
    _, ny, nx = shape
    cy, cx = centre or ((ny - 1) / 2, (nx - 1) / 2)
    y, x = np.arange(ny)[:, None] - cy, np.arange(nx)[None, :] - cx
    return np.broadcast_to(np.hypot(y * spacing_mm[1], x * spacing_mm[2]), shape)


def thigh(spacing_mm=MM3, length=20):
    """Marrow to 8 mm, bone to 14, muscle to 54, subcutaneous fat to 72, skin to 74."""
    n = [int(2 * 90 / s) for s in spacing_mm[1:]]
    r = radius_mm((length, *n), spacing_mm)
    hu = np.full(r.shape, AIR, np.int16)
    for limit, value in ((74, 20), (72, FAT), (54, LEAN), (14, BONE), (8, FAT)):
        hu[r < limit] = value
    return hu, r


def belly():
    """A trunk: bowel with gas among visceral fat to 81 mm, muscular wall to 99, subcutaneous fat to 129, skin."""
    r = radius_mm((12, 100, 100), MM3)
    hu = np.full(r.shape, AIR, np.int16)
    for limit, value in ((132, 20), (129, FAT), (99, LEAN), (81, FAT)):
        hu[r < limit] = value
    labels = np.zeros(hu.shape, np.uint8)
    for side in (-42, 0, 42):
        gut = radius_mm(hu.shape, MM3, (49.5 + abs(side) / 6, 49.5 + side / 3)) < 18
        hu[gut], labels[gut] = 30, VALUE_OF["colon"]
        hu[radius_mm(hu.shape, MM3, (49.5 + abs(side) / 6, 49.5 + side / 3)) < 12] = -950
    return hu, labels, r


def volume_of(hu_zyx, spacing_mm=MM3, codes="SPL"):
    """The scan whose array has the given axes, from an array in the order zyx; and how labels get there."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2]
    affine[3, 3] = 1
    turn = ornt_transform(axcodes2ornt("SPL"), axcodes2ornt(codes))
    array = apply_orientation(hu_zyx, turn)
    return Volume(array, affine @ inv_ornt_aff(turn, hu_zyx.shape)), turn


def dsc(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


# ---- body --------------------------------------------------------------------------------------------------------


def test_zyx_is_patient_aligned_and_goes_back():
    array = np.arange(24).reshape(2, 3, 4)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])  # RAS: i to Right, j to Anterior, k to Superior
    out = turned(array, zyx_from_ijk(affine))
    assert out.shape == (4, 3, 2)
    assert out[1, 0, 0] == array[1, 2, 1]  # z up; first y is the most anterior; first x is the rightmost
    assert turned_spacing((2.0, 3.0, 4.0), zyx_from_ijk(affine)) == (4.0, 3.0, 2.0)
    assert np.array_equal(turned(out, ijk_from_zyx(affine)), array)
    assert io_orientation(affine).tolist() == axcodes2ornt("RAS").tolist()


def test_body_is_two_legs_without_table_and_crumbs():
    shape = (20, 60, 100)
    legs = (radius_mm(shape, MM3, (25, 25)) < 45) | (radius_mm(shape, MM3, (25, 70)) < 40)
    hu = np.where(legs, LEAN, AIR)
    hu[:, 40:42, :] = 100  # the table, 6 mm thick, touches both
    hu[:, 55:58, 3:6] = 0  # a tube on it: too small
    body = body_region(hu.astype(np.float32), MM3)
    assert (body & legs).sum() == legs.sum()
    assert not body[:, 55:58].any()
    assert np.count_nonzero(body & ~legs) < 0.15 * np.count_nonzero(hu == 100)  # where it carries the legs


def test_lungs_and_gas_belong_to_the_body():
    hu, _, r = belly()
    assert np.array_equal(body_region(hu.astype(np.float32), MM3), r < 132)


@pytest.mark.parametrize("cut", [np.s_[:, :, 34:66], np.s_[:, 34:66, :]])
def test_lungs_that_the_sides_of_the_scan_cut_belong_to_the_body(cut):
    hu = np.full((12, 100, 100), AIR, np.float32)
    r = radius_mm(hu.shape, MM3)
    hu[r < 120], hu[r < 100], hu[r < 25] = LEAN, LUNG, LEAN
    assert np.array_equal(body_region(hu[cut], MM3), (r < 120)[cut])


def test_nothing_but_air_has_no_body():
    assert not body_region(np.full((3, 20, 20), AIR, np.float32), MM3).any()
    found = find_tissues(volume_of(np.full((3, 20, 20), AIR, np.int16))[0], np.zeros((3, 20, 20), np.uint8))
    assert not found.labels_ijk.any() and not found.body_ijk.any()


# ---- tissues -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [MM3, (5.0, 1.5, 1.5), (1.5, 2.0, 1.0)])
def test_a_limb_has_muscle_and_subcutaneous_fat_alone(spacing_mm):
    hu, r = thigh(spacing_mm)
    found = find_tissues(volume_of(hu, spacing_mm)[0], np.zeros(hu.shape, np.uint8)).labels_ijk
    assert not (found == VISCERAL).any()
    assert not found[r < 14].any()  # bone and marrow
    assert not found[r > 75].any()
    assert dsc(found == MUSCLE, (r < 54) & (r > 14)) > 0.95
    assert dsc(found == SUBCUTANEOUS, (r < 72) & (r > 54)) > 0.93


@pytest.mark.parametrize("gap_mm", [4, 6])
def test_fat_of_two_legs_that_do_not_touch_is_subcutaneous_all_around(gap_mm):
    """Their muscles are 36 or 38 mm apart, as the muscles on both sides of a gap in the wall of a belly may be."""
    shape, apart = (12, 60, 110), (148 + gap_mm) / 3
    r = np.minimum(*(radius_mm(shape, MM3, (30, 54.5 + side * apart / 2)) for side in (-1, 1)))
    hu = np.full(shape, AIR, np.int16)
    for limit, value in ((74, 20), (72, FAT), (58, LEAN), (14, BONE), (8, FAT)):
        hu[r < limit] = value
    found = find_tissues(volume_of(hu)[0], np.zeros(shape, np.uint8)).labels_ijk
    fat = (r < 69) & (r > 60)
    between = fat & (np.abs(np.arange(shape[1])[:, None] - 30) < 8) & (np.abs(np.arange(shape[2]) - 54.5) < 8)
    assert np.count_nonzero(between) > 200
    assert (found[between] == SUBCUTANEOUS).mean() > 0.95 and (found[fat] == SUBCUTANEOUS).mean() > 0.95
    assert dsc(found == MUSCLE, (r < 58) & (r > 14)) > 0.95


def test_a_navel_opens_no_wall():
    """A dimple of the skin over the gap between the straight muscles of the belly."""
    hu, labels, r = belly()
    y, x = np.arange(100)[:, None] - 49.5, np.arange(100) - 49.5
    middle = (y < 0) & (np.abs(x) * 3 < 14)
    hu[:, middle & (r[0] < 99) & (r[0] > 81)] = FAT  # the gap, 28 mm
    dimple = (y < 0) & (np.abs(x) * 3 < 7) & (r[0] > 103)
    hu[:, dimple] = AIR
    found = find_tissues(volume_of(hu)[0], labels).labels_ijk
    inside = (r < 78) & (labels == 0)
    assert (found[inside] == VISCERAL).mean() > 0.95
    assert dsc(found == SUBCUTANEOUS, (r < 129) & (r > 99) & (hu == FAT)) > 0.9


def test_fat_inside_the_wall_is_visceral_and_outside_subcutaneous():
    hu, labels, r = belly()
    found = find_tissues(volume_of(hu)[0], labels).labels_ijk
    assert not found[labels > 0].any()
    assert dsc(found == SUBCUTANEOUS, (r < 129) & (r > 99)) > 0.95
    assert dsc(found == MUSCLE, (r < 99) & (r > 81)) > 0.95
    assert dsc(found == VISCERAL, (r < 81) & (labels == 0)) > 0.95


def test_gas_shows_the_organs_where_nothing_is_labelled():
    hu, labels, r = belly()
    found = find_tissues(volume_of(hu)[0], np.zeros_like(labels)).labels_ijk
    assert dsc(found == VISCERAL, (r < 81) & (labels == 0)) > 0.9
    assert dsc(found == MUSCLE, (r < 99) & (r > 81)) > 0.9


def test_fat_between_muscles_and_a_vein_in_fat_have_no_label():
    hu, r = thigh()
    gap = (np.abs(r - 34) < 5) & (np.arange(hu.shape[1])[:, None] < 30)
    hu[gap] = FAT
    vein = radius_mm(hu.shape, MM3, (30, 50)) < 1.6
    hu[vein] = 40
    found = find_tissues(volume_of(hu)[0], np.zeros(hu.shape, np.uint8)).labels_ijk
    assert not np.isin(found[gap], (VISCERAL, SUBCUTANEOUS)).any()
    assert not (found[vein] == MUSCLE).any()


@pytest.mark.parametrize(("inner", "cortex"), [(8, BONE), (5, BONE), (6, 130)])
def test_marrow_as_dense_as_muscle_is_none(inner, cortex):
    hu, r = thigh()
    hu[r < 14], hu[r < inner] = BONE, LEAN
    hu[(r < 14) & (r >= inner) & (np.arange(hu.shape[1])[:, None] < 27)] = cortex  # thin: partial volume
    found = find_tissues(volume_of(hu)[0], np.zeros(hu.shape, np.uint8)).labels_ijk
    assert not found[r < inner].any()
    assert dsc(found == MUSCLE, (r < 54) & (r > 14)) > 0.95


def test_shoulders_beside_the_tips_of_lungs_are_muscle():
    hu = np.full((40, 100, 100), AIR, np.int16)
    r = radius_mm(hu.shape, MM3)
    hu[r < 130], hu[r < 128], hu[r < 110] = 20, FAT, LEAN
    hu[:30][r[:30] < 100], hu[30:][r[30:] < 30] = LUNG, LUNG
    found = find_tissues(volume_of(hu)[0], np.zeros(hu.shape, np.uint8)).labels_ijk
    assert dsc(found[32:] == MUSCLE, (r[32:] < 110) & (r[32:] > 30)) > 0.95


def test_thin_fat_beside_a_bright_organ_that_is_labelled_is_fat():
    hu, labels, r = belly()
    kidney = radius_mm(hu.shape, MM3, (70, 49.5)) < 24
    hu[kidney], labels[kidney] = 200, VALUE_OF["kidney_left"]
    hu[hu > AIR] += np.random.default_rng(0).normal(0, 30, np.count_nonzero(hu > AIR)).astype(np.int16)
    beside = (radius_mm(hu.shape, MM3, (70, 49.5)) < 27) & (r < 81) & (labels == 0)
    found = find_tissues(volume_of(hu)[0], labels).labels_ijk
    assert beside.any() and (found[beside] == VISCERAL).mean() > 0.95  # else two thirds


def test_blood_with_contrast_is_no_muscle():
    hu, _ = thigh()
    artery = radius_mm(hu.shape, MM3, (30, 42)) < 7
    hu[artery] = 145
    found = find_tissues(volume_of(hu)[0], np.zeros(hu.shape, np.uint8)).labels_ijk
    assert not found[radius_mm(hu.shape, MM3, (30, 42)) < 4].any()


@pytest.mark.parametrize("value", [VALUE_OF["femur_left"], VALUE_OF["gluteus_maximus_left"], OTHER, MUSCLE])
def test_what_is_labelled_is_kept_and_belongs_to_the_body(value):
    hu, _ = thigh()
    labels = np.zeros(hu.shape, np.uint8)
    labels[:, 25:35, 20:30] = value
    labels[:, :2, :2] = value  # in the air
    found = find_tissues(volume_of(hu)[0], labels)
    assert not found.labels_ijk[labels > 0].any()
    assert found.body_ijk[labels > 0].all()
    assert np.array_equal(find_body(volume_of(hu)[0], labels), found.body_ijk)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "IRP"])
def test_every_orientation_gives_the_same_voxels(codes):
    hu, labels, _ = belly()
    hu[:, :40, :20] += 30  # nothing symmetric is left
    straight, _ = volume_of(hu)
    expected = find_tissues(straight, labels)
    volume, turn = volume_of(hu, codes=codes)
    found = find_tissues(volume, np.ascontiguousarray(apply_orientation(labels, turn)))
    assert np.array_equal(found.labels_ijk, apply_orientation(expected.labels_ijk, turn))
    assert np.array_equal(found.body_ijk, apply_orientation(expected.body_ijk, turn))


@pytest.mark.parametrize("shape", [(1, 60, 60), (2, 7, 60), (5, 60, 1)])
def test_slices_and_slivers_of_a_limb(shape):
    hu, _ = thigh()
    cut = np.ascontiguousarray(hu[: shape[0], : shape[1], : shape[2]])
    found = find_tissues(volume_of(cut)[0], np.zeros(cut.shape, np.uint8))
    assert found.labels_ijk.shape == cut.shape
    if shape == (1, 60, 60):
        assert (found.labels_ijk == MUSCLE).any() and (found.labels_ijk == SUBCUTANEOUS).any()


def test_noise_is_measured_and_smoothed_away():
    rng = np.random.default_rng(0)
    flat = (40 + 30 * rng.standard_normal((20, 40, 40))).astype(np.int16)
    assert noise_hu(flat) == pytest.approx(30, rel=0.05)
    assert smoothed(flat, (1.0, 1.0, 1.0)).std() < 6
    edge = np.full((4, 4, 8), LEAN, np.int16)
    edge[..., 4:] = AIR
    assert np.allclose(smoothed(edge, (1.0, 1.0, 1.0))[..., :4], LEAN)  # air does not shine into tissue


def test_labelled_share():
    body = np.array([[[True, True, True, True, False]]])
    labels = np.array([[[0, 5, 107, 0, 3]]], np.uint8)
    assert labelled_share(labels, body) == 0.5
    assert labelled_share(labels, np.zeros_like(body)) == 0.0


def test_labels_must_fit():
    volume, _ = volume_of(thigh()[0])
    with pytest.raises(ValueError, match=r"labels_ijk must have the scan's shape \(20, 60, 60\), got \(2, 2, 2\)"):
        find_tissues(volume, np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="labels_ijk must be uint8, got int16"):
        find_tissues(volume, np.zeros(volume.shape_ijk, np.int16))


@pytest.mark.parametrize(("seed", "region", "spacing_mm"), [(0, "abdomen", (2.0, 2.0, 5.0))])
def test_tissues_of_a_phantom_whose_organs_are_labelled(seed, region, spacing_mm):
    phantom = make_phantom(seed, spacing_mm, region)
    truth = phantom.labels_ijk
    found = find_tissues(phantom.volume, np.where(truth >= MUSCLE, np.uint8(0), truth)).labels_ijk
    scores = {value: dsc(found == value, truth == value) for value in (MUSCLE, VISCERAL, SUBCUTANEOUS)}
    assert min(scores.values()) >= 0.9, scores
