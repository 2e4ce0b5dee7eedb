"""The pictures: what stands where, in every orientation, and which pixels the clicks colour."""

import numpy as np
import pytest
from matplotlib.image import imread
from tests.geometry import ORIENTATIONS, affine_of

from ctsam3d.evaluation.overlay import draw_overlay, make_panels
from ctsam3d.volume import Click, Volume

SIZE_RAS = (5, 6, 7)
SPACING_RAS_MM = (1.0, 2.0, 5.0)


def laid_out(orientation):
    """Volume whose HU tell the place in the body, 100 r + 10 a + s, and a function from that place to its index."""
    r, a, s = np.meshgrid(*map(np.arange, SIZE_RAS), indexing="ij")
    axes = [int(np.flatnonzero(orientation[:, axis])[0]) for axis in range(3)]  # R, A or S, per axis of the file
    backwards = [orientation[axes[axis], axis] < 0 for axis in range(3)]
    array = np.flip((100 * r + 10 * a + s).transpose(axes), [axis for axis in range(3) if backwards[axis]])
    volume = Volume(array, affine_of(orientation, [SPACING_RAS_MM[axis] for axis in axes]))

    def index(place_ras):
        return tuple(
            SIZE_RAS[axis] - 1 - place_ras[axis] if back else place_ras[axis] for axis, back in zip(axes, backwards)
        )

    return volume, index


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(48))
def test_slices_are_radiological_whatever_the_order_of_the_file(orientation):
    volume, index = laid_out(orientation)
    mask = np.zeros(volume.shape_ijk, np.uint8)
    mask[index((3, 4, 6))] = 1
    clicks = [Click(index((3, 4, 6))), Click(index((1, 4, 2)), False)]
    axial, coronal, sagittal = make_panels(volume, mask, clicks, index((3, 4, 6)))

    # By hand: upper left is right-anterior, right-superior and anterior-superior; the highest r, a and s.
    assert (axial.hu[0, 0], axial.hu[0, -1], axial.hu[-1, 0]) == (456, 56, 406)
    assert (coronal.hu[0, 0], coronal.hu[0, -1], coronal.hu[-1, 0]) == (446, 46, 440)
    assert (sagittal.hu[0, 0], sagittal.hu[0, -1], sagittal.hu[-1, 0]) == (356, 306, 350)
    assert (axial.hu.shape, coronal.hu.shape, sagittal.hu.shape) == ((6, 5), (7, 5), (7, 6))
    assert [p.spacing_mm for p in (axial, coronal, sagittal)] == [(2.0, 1.0), (5.0, 1.0), (5.0, 2.0)]
    assert [p.ends for p in (axial, coronal, sagittal)] == [tuple("RLAP"), tuple("RLSI"), tuple("APSI")]
    assert axial.clicks == ((1, 1, True, True), (1, 3, False, False))
    assert coronal.clicks == ((0, 1, True, True), (4, 3, False, True))
    assert sagittal.clicks == ((0, 1, True, True), (4, 1, False, False))
    for panel in (axial, coronal, sagittal):
        row, column, _, _ = panel.clicks[0]
        assert panel.hu[row, column] == 346 and panel.mask[row, column] and panel.mask.sum() == 1


def test_an_oblique_scan_is_shown_along_its_nearest_axes():
    volume = Volume(np.zeros((4, 5, 6)), affine_of(np.diag([1.0, -1.0, 1.0]), (1, 1, 3), (0.2, -0.1, 0.3)))
    panels = make_panels(volume, np.zeros((4, 5, 6)), [], (0, 0, 5))
    assert [p.hu.shape for p in panels] == [(5, 4), (6, 4), (6, 5)]
    assert panels[1].spacing_mm == pytest.approx((3.0, 1.0))


def test_a_voxel_outside_or_another_shape_is_refused():
    volume = Volume(np.zeros((4, 5, 6)), np.eye(4))
    with pytest.raises(ValueError, match=r"at_ijk \(4, 0, 0\) is outside"):
        make_panels(volume, np.zeros((4, 5, 6)), [], (4, 0, 0))
    with pytest.raises(ValueError, match=r"mask_ijk .*\(4, 5, 6\), got \(4, 5, 5\)"):
        make_panels(volume, np.zeros((4, 5, 5)), [], (0, 0, 0))


def test_a_target_is_cut_as_the_mask_is():
    volume = Volume(np.zeros((4, 5, 6)), np.eye(4))
    target = np.zeros((4, 5, 6), bool)
    target[1, 2, 3] = True
    axial, coronal, sagittal = make_panels(volume, ~target, [], (1, 2, 3), target)
    for panel in (axial, coronal, sagittal):
        assert panel.target.sum() == 1 and np.array_equal(panel.target, ~panel.mask)
    assert make_panels(volume, target, [], (1, 2, 3))[0].target is None
    with pytest.raises(ValueError, match=r"target_ijk .*\(4, 5, 6\), got \(4, 5, 5\)"):
        make_panels(volume, target, [], (1, 2, 3), target[..., :5])


def places(pixels, red, green, blue):
    """Mean column and row, as shares of the picture, of the pixels close to a colour; None where there are none."""
    found = np.argwhere(np.abs(pixels[..., :3] - [red, green, blue]).max(axis=-1) < 0.15)
    return tuple((found.mean(axis=0) / pixels.shape[:2])[::-1]) if len(found) else None


def test_clicks_and_mask_are_drawn_where_they_are(tmp_path):
    volume = Volume(np.full((60, 60, 60), -1000, np.int16), np.eye(4))
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[5:20, 5:20, 5:20] = 1
    clicks = [Click((45, 45, 30)), Click((45, 15, 30), False)]
    path = draw_overlay(tmp_path / "new" / "o.png", volume, mask, clicks, (45, 45, 30), "a title")
    pixels = imread(path)
    green, red, blue = places(pixels, 0, 0.88, 0), places(pixels, 1, 0.13, 0.13), places(pixels, 0, 0.7, 1)
    assert green is not None and red is not None
    assert blue is None  # none of the three slices meets the mask
    axial = pixels[:, : pixels.shape[1] // 3]
    green, red = places(axial, 0, 0.88, 0), places(axial, 1, 0.13, 0.13)
    assert green[0] < 0.4 and red[0] < 0.4  # on the patient's right: at the left of the slice
    assert green[1] < 0.5 < red[1]  # anterior above posterior
    draw_overlay(path, volume, mask, clicks[:1], (10, 10, 10))
    assert places(imread(path), 0, 0.7, 1) is not None
    assert [p.name for p in path.parent.iterdir()] == ["o.png"]


def test_the_target_is_a_line_of_its_own_colour(tmp_path):
    volume = Volume(np.full((60, 60, 60), -1000, np.int16), np.eye(4))
    mask, target = np.zeros((2, 60, 60, 60), np.uint8)
    target[20:40, 20:40, 20:40] = 1
    drawn = imread(draw_overlay(tmp_path / "o.png", volume, mask, [], (30, 30, 30), target_ijk=target))
    assert places(drawn, 1, 0.61, 0.96) is not None and places(drawn, 0, 0.7, 1) is None
    assert places(imread(draw_overlay(tmp_path / "o.png", volume, mask, [], (30, 30, 30))), 1, 0.61, 0.96) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 30), (200, 2, 2)])
def test_thin_scans_can_be_drawn(tmp_path, shape):
    volume = Volume(np.zeros(shape, np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    assert draw_overlay(tmp_path / "o.png", volume, np.ones(shape, bool), [Click((0, 0, 0))], (0, 0, 0)).is_file()


def test_a_picture_is_a_png(tmp_path):
    volume = Volume(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(ValueError, match=r"\.png"):
        draw_overlay(tmp_path / "o.jpg", volume, np.zeros((4, 4, 4)), [], (0, 0, 0))
