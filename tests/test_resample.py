"""What a patch shows and where a probability lands, for scans of every orientation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from tests.geometry import MODEL_MM, ORIENTATIONS, PATCH, affine_of, lps_of_ijk, lps_of_model_voxel

from ctsam3d.resample import crop_hu, crop_labels, probability_on_scan
from ctsam3d.volume import OUTSIDE_HU, Box, ModelGrid, Volume

STRAIGHT, OBLIQUE = (0.0, 0.0, 0.0), (0.3, -0.2, 0.4)


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def scan_of(shape, orientation=ORIENTATIONS[0], spacing=(1.5, 1.5, 1.5), rotation=STRAIGHT, seed=0):
    volume = Volume(noise(shape, seed), affine_of(orientation, spacing, rotation, (-31.0, 12.5, 70.0)))
    return volume, ModelGrid.of(volume, MODEL_MM)


# ---- hand-computed -----------------------------------------------------------------------------------------------


def test_crop_by_hand():
    """Voxels of 3 mm to the Right, 1.5 mm to Anterior, 3 mm to Superior; HU = 100 i + 10 j + k, so each axis shows."""
    i, j, k = np.ogrid[:2, :3, :2]
    affine = np.array([[3.0, 0, 0, 5], [0, 1.5, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    volume = Volume((100 * i + 10 * j + k).astype(np.int16), affine)
    grid = ModelGrid.of(volume, MODEL_MM)
    assert grid.shape_zyx == (4, 3, 4)
    crop = crop_hu(volume, grid, grid.box_zyx)
    # Along z (Superior): k = -0.25, 0.25, 0.75, 1.25, held at the border: 0, 0.25, 0.75, 1.
    assert crop[:, 2, 3].tolist() == [0.0, 0.25, 0.75, 1.0]
    # Along y (Posterior): j falls from 2 to 0.
    assert crop[0, :, 3].tolist() == [20.0, 10.0, 0.0]
    # Along x (Left): i falls; 1.25, 0.75, 0.25, -0.25, held at the border.
    assert crop[0, 2, :].tolist() == [100.0, 75.0, 25.0, 0.0]
    assert crop[3, 0, 0] == 100 + 20 + 1  # Superior, anterior, right: the last voxel on every axis
    assert crop.dtype == np.float32


def test_probability_by_hand():
    """A ramp on the grid of the scan above, back on the scan: each axis with its direction."""
    volume = Volume(np.zeros((2, 3, 2), np.int16), np.diag([3.0, 1.5, 3.0, 1.0]))
    grid = ModelGrid.of(volume, MODEL_MM)
    z, y, x = np.ogrid[:4, :3, :4]
    ramp = (z + 10 * y + 100 * x).astype(np.float32)
    back = probability_on_scan(ramp, grid.box_zyx, grid, volume.box_ijk)
    # The centre of a 3 mm voxel lies between two model voxels: at 0.5 and 2.5 along z, at 2.5 and 0.5 along x.
    assert back[:, 2, 0].tolist() == [250.5, 50.5]
    assert back[1, :, 0].tolist() == [70.5, 60.5, 50.5]
    assert back[1, 2, :].tolist() == [50.5, 52.5]


def test_labels_by_hand():
    volume = Volume(np.zeros((2, 1, 1), np.int16), np.diag([3.0, 1.5, 1.5, 1.0]))
    grid = ModelGrid.of(volume, MODEL_MM)
    crop = crop_labels(np.array([3, 7], np.uint8).reshape(2, 1, 1), grid, Box((0, 0, -1), (1, 1, 5)))
    assert crop.ravel().tolist() == [0, 7, 7, 3, 3, 0] and crop.dtype == np.uint8


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_scan_on_the_models_grid_is_copied_bit_for_bit(orientation):
    """1.5 mm and straight: only transposed and flipped. R, A, S components tell which array axis goes where."""
    volume, grid = scan_of((7, 5, 6), orientation)
    expected = np.transpose(volume.array_ijk, [int(np.argmax(np.abs(orientation[axis]))) for axis in (2, 1, 0)])
    flips = [n for n, axis in enumerate((2, 1, 0)) if orientation[axis].sum() * (1 if axis == 2 else -1) < 0]
    expected = np.flip(expected, flips)
    assert grid.shape_zyx == expected.shape
    np.testing.assert_array_equal(crop_hu(volume, grid, grid.box_zyx), expected.astype(np.float32))
    np.testing.assert_array_equal(crop_labels(volume.array_ijk, grid, grid.box_zyx), expected)
    probability = np.ascontiguousarray(expected, dtype=np.float32)
    back = probability_on_scan(probability, grid.box_zyx, grid, volume.box_ijk)
    np.testing.assert_array_equal(back, volume.array_ijk.astype(np.float32))


def test_ras_scan_at_model_spacing_is_an_exact_flip():
    volume = Volume(noise((70, 80, 90)), np.diag([1.5, 1.5, 1.5, 1.0]))
    grid = ModelGrid.of(volume, MODEL_MM)
    crop = crop_hu(volume, grid, Box((10, 11, 12), (74, 75, 70)))
    expected = volume.array_ijk[::-1, ::-1, :].transpose(2, 1, 0)[10:74, 11:75, 12:70]
    np.testing.assert_array_equal(crop, expected.astype(np.float32))


# ---- content, in any orientation ---------------------------------------------------------------------------------


def paint_ball(volume: Volume, centre_ijk, radius_mm: float) -> None:
    ijk = np.moveaxis(np.indices(volume.shape_ijk), 0, -1)
    centre_mm = apply_affine(volume.affine_ras_mm, centre_ijk)
    volume.array_ijk[np.linalg.norm(apply_affine(volume.affine_ras_mm, ijk) - centre_mm, axis=-1) <= radius_mm] = 1000


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@settings(max_examples=3)
@given(
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    extent_mm=st.tuples(*[st.floats(4, 130)] * 3),
    place=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_a_ball_at_the_click_is_seen_there_and_comes_back(orientation, rotation, spacing, extent_mm, place):
    shape = tuple(min(60, max(1, round(mm / s))) for mm, s in zip(extent_mm, spacing))
    click_ijk = tuple(round(f * (n - 1)) for f, n in zip(place, shape))
    volume = Volume(np.full(shape, -100, np.int16), affine_of(orientation, spacing, rotation, (20, -30, 400)))
    paint_ball(volume, click_ijk, radius_mm=max(spacing) + 2 * MODEL_MM)

    grid = ModelGrid.of(volume, MODEL_MM)
    voxel_zyx = grid.voxel_zyx(click_ijk)
    patch_zyx = grid.patch_zyx(voxel_zyx, PATCH)
    crop = crop_hu(volume, grid, patch_zyx)
    assert crop.shape == (PATCH,) * 3 and crop.dtype == np.float32
    clicked = tuple(v - a for v, a in zip(voxel_zyx, patch_zyx.start))
    assert crop[clicked] > 800  # also where a thin scan's border runs between the two voxels

    # Put back a ball around the clicked model voxel: the clicked voxel of the scan is in the mask.
    zyx = np.indices(crop.shape).reshape(3, *crop.shape)
    ball = (sum((axis - c) ** 2 for axis, c in zip(zyx, clicked)) <= 9).astype(np.float32)
    box_ijk = grid.box_ijk_around(patch_zyx, shape)
    back = probability_on_scan(ball, patch_zyx, grid, box_ijk)
    assert back.shape == box_ijk.shape and back.dtype == np.float32
    assert back[tuple(v - a for v, a in zip(click_ijk, box_ijk.start))] == 1.0
    inside = np.argwhere(back > 0.5) + box_ijk.start
    apart_mm = lps_of_ijk(volume.affine_ras_mm, inside) - lps_of_model_voxel(volume.affine_ras_mm, shape, voxel_zyx)
    assert np.linalg.norm(apart_mm, axis=1).max() <= 4.5 * MODEL_MM


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=str)
def test_crop_of_a_linear_scan_is_exact(orientation, rotation):
    """Trilinear interpolation reproduces a linear function of world position, wherever the scan surrounds the voxel."""
    affine = affine_of(orientation, (0.9, 2.0, 4.0), rotation, (5, 6, 7))
    shape, slope = (50, 24, 11), np.array([1.0, -2.0, 3.0])
    hu = lps_of_ijk(affine, np.moveaxis(np.indices(shape), 0, -1)) @ slope
    volume = Volume(hu.astype(np.float32), affine)
    grid = ModelGrid.of(volume, MODEL_MM)
    crop = crop_hu(volume, grid, grid.box_zyx)
    checked = 0
    for zyx in np.random.default_rng(1).integers(0, grid.shape_zyx, (300, 3)):
        lps = lps_of_model_voxel(affine, shape, zyx)
        ijk = apply_affine(np.linalg.inv(affine), lps * [-1, -1, 1])
        if all(0 <= v <= n - 1 for v, n in zip(ijk, shape)):
            assert crop[tuple(zyx)] == pytest.approx(lps @ slope, abs=1e-2)
            checked += 1
    assert checked > 50


# ---- parts, borders, tiny scans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@settings(max_examples=40)
@given(orientation=st.sampled_from(ORIENTATIONS), cut=st.tuples(*[st.integers(1, 15)] * 3), seed=st.integers(0, 9))
def test_a_box_in_parts_is_the_box_whole(rotation, orientation, cut, seed):
    """Bit for bit, in both directions: undo relies on it."""
    volume, grid = scan_of((19, 14, 9), orientation, (0.8, 1.3, 3.1), rotation, seed)
    box_zyx = Box((-3, -2, -1), (13, 14, 15))
    whole_hu = crop_hu(volume, grid, box_zyx)
    whole_labels = crop_labels(volume.array_ijk, grid, box_zyx)
    probability = np.random.default_rng(seed).random(box_zyx.shape, dtype=np.float32)
    whole_probability = probability_on_scan(probability, box_zyx, grid, volume.box_ijk)
    for part in parts(box_zyx, cut):
        inside = part.slices(box_zyx)
        np.testing.assert_array_equal(crop_hu(volume, grid, part), whole_hu[inside])
        np.testing.assert_array_equal(crop_labels(volume.array_ijk, grid, part), whole_labels[inside])
    for part in parts(volume.box_ijk, cut):
        computed = probability_on_scan(probability, box_zyx, grid, part)
        np.testing.assert_array_equal(computed, whole_probability[part.slices()])


def parts(box: Box, cut) -> list[Box]:
    """The eight boxes, or fewer, into which a plane across each axis cuts `box`."""
    middle = [min(a + c, b) for a, c, b in zip(box.start, cut, box.stop)]
    spans = [[(a, m), (m, b)] for a, m, b in zip(box.start, middle, box.stop)]
    eight = [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z in spans[0] for y in spans[1] for x in spans[2]]
    return [part for part in eight if not part.empty]


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_a_patch_of_the_probability_is_enough_around_it(rotation):
    """What `box_ijk_around` leaves out does not change with the patch, so that only the changed box is written back."""
    volume, grid = scan_of((40, 30, 20), ORIENTATIONS[17], (1.1, 1.9, 3.0), rotation)
    before = np.random.default_rng(0).random(grid.shape_zyx, dtype=np.float32)
    after, changed_zyx = before.copy(), Box((18, 20, 17), (25, 25, 29))
    after[changed_zyx.slices()] += 1
    whole = [probability_on_scan(p, grid.box_zyx, grid, volume.box_ijk) for p in (before, after)]
    box_ijk = grid.box_ijk_around(changed_zyx, volume.shape_ijk)
    changed_ijk = np.argwhere(whole[0] != whole[1])
    assert len(changed_ijk) and all(box_ijk.contains(index) for index in changed_ijk)
    np.testing.assert_array_equal(probability_on_scan(after, grid.box_zyx, grid, box_ijk), whole[1][box_ijk.slices()])


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_outside_is_air(rotation):
    volume, grid = scan_of((12, 9, 7), ORIENTATIONS[3], (1.5, 2.0, 3.0), rotation)
    far = Box((-80, 3, 3), (-60, 9, 9))
    assert (crop_hu(volume, grid, far) == OUTSIDE_HU).all() and OUTSIDE_HU == -1024.0
    assert (crop_labels(np.ones(volume.shape_ijk, np.uint8), grid, far) == 0).all()
    near = grid.box_zyx.grown(3)
    crop = crop_hu(volume, grid, near)
    labels = crop_labels(np.ones(volume.shape_ijk, np.uint8), grid, near)
    np.testing.assert_array_equal(labels == 0, crop == OUTSIDE_HU)
    for zyx in np.ndindex(crop.shape):
        lps = lps_of_model_voxel(volume.affine_ras_mm, volume.shape_ijk, np.add(zyx, near.start))
        ijk = apply_affine(np.linalg.inv(volume.affine_ras_mm), lps * [-1, -1, 1])
        past_mm = max(max(-v, v - n + 1) * s for v, n, s in zip(ijk, volume.shape_ijk, volume.spacing_ijk_mm))
        if past_mm > 1.5 + 1e-3:  # half of the thickest voxel
            assert crop[zyx] == OUTSIDE_HU
        if all(-0.5 <= v <= n - 0.5 for v, n in zip(ijk, volume.shape_ijk)):
            assert crop[zyx] != OUTSIDE_HU


def test_the_border_of_thin_slices_shows_what_was_clicked():
    """21 slices of 0.5 mm are 7 model voxels; a 22nd needs an eighth, whose centre lies 0.25 mm past the last face."""
    volume = Volume(np.full((4, 4, 22), 50, np.int16), np.diag([1.5, 1.5, 0.5, 1.0]))
    grid = ModelGrid.of(volume, MODEL_MM)
    assert grid.shape_zyx == (8, 4, 4) and grid.voxel_zyx((1, 1, 21)) == (7, 2, 2)
    crop = crop_hu(volume, grid, Box((-1, 2, 2), (9, 3, 3)))
    assert crop.ravel().tolist() == [OUTSIDE_HU, *[50] * 8, OUTSIDE_HU]


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("shape", [(20, 16, 1), (1, 16, 20), (16, 1, 20), (1, 1, 1)])
@pytest.mark.parametrize("spacing", [(0.6, 0.7, 5.0), (5.0, 0.6, 0.7)])
def test_single_slice(shape, spacing, rotation):
    volume, grid = scan_of(shape, ORIENTATIONS[0], spacing, rotation)
    volume.array_ijk[:] = 77
    click_ijk = tuple(n // 2 for n in shape)
    patch_zyx = grid.patch_zyx(grid.voxel_zyx(click_ijk), PATCH)
    crop = crop_hu(volume, grid, patch_zyx)
    assert set(np.unique(crop)) == {np.float32(OUTSIDE_HU), np.float32(77)}
    box_ijk = grid.box_ijk_around(patch_zyx, shape)
    back = probability_on_scan(np.ones((PATCH,) * 3, np.float32), patch_zyx, grid, box_ijk)
    assert box_ijk.contains(click_ijk) and (back == 1).all()


@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_an_empty_box_is_an_empty_array(rotation):
    volume, grid = scan_of((12, 9, 7), rotation=rotation)
    empty = Box((2, 3, 4), (2, 6, 9))
    assert crop_hu(volume, grid, empty).shape == (0, 3, 5)
    assert crop_labels(volume.array_ijk, grid, empty).shape == (0, 3, 5)
    assert probability_on_scan(np.ones(grid.shape_zyx, np.float32), grid.box_zyx, grid, empty).shape == (0, 3, 5)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32, np.float32, np.float64, bool])
@pytest.mark.parametrize("rotation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_any_real_dtype_and_memory_order(dtype, rotation):
    array = np.random.default_rng(0).integers(0, 2, (9, 8, 7)).astype(dtype)
    affine = affine_of(ORIENTATIONS[30], (1, 2, 3), rotation)
    crops = []
    for layout in (np.ascontiguousarray(array), np.asfortranarray(array), array[::-1][::-1]):
        volume = Volume(layout, affine)
        grid = ModelGrid.of(volume, MODEL_MM)
        crops.append(crop_hu(volume, grid, grid.box_zyx))
    assert all(crop.dtype == np.float32 for crop in crops)
    np.testing.assert_array_equal(crops[0], crops[1])
    np.testing.assert_array_equal(crops[0], crops[2])


def test_only_the_voxels_under_the_box_are_read():
    """A large scan of which everything but the patch's surroundings is NaN: the patch is clean."""
    array = np.full((200, 180, 160), np.nan, np.float32)
    array[40:160, 40:160, 40:160] = 5
    volume = Volume(array, affine_of(ORIENTATIONS[0], (1.5, 1.5, 1.5), (0.0, 0.0, 0.1)))
    grid = ModelGrid.of(volume, MODEL_MM)
    crop = crop_hu(volume, grid, grid.patch_zyx(grid.voxel_zyx((100, 100, 100)), PATCH))
    assert (crop == 5).all()
