"""Sessions on a segmenter whose answers are known: a ball around the clicks, or the image itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.geometry import MODEL_MM, PATCH, lps_of_ijk, lps_of_model_voxel, volumes

from ctsam3d.checkpoint import Checkpoint
from ctsam3d.expansion import Patch, blend
from ctsam3d.model import build
from ctsam3d.patchwork import State
from ctsam3d.segmenter import Segmenter
from ctsam3d.session import Session
from ctsam3d.volume import Box, ModelGrid, Volume


class BallSegmenter:
    """Says 0.9 within `radius` model voxels of a positive click, keeps the previous mask, and clears negatives.

    Its P proposes nothing.
    """

    def __init__(self, radius=4.0):
        self.info, self.batch = SimpleNamespace(spacing_mm=1.5, peak_threshold=0.5), 1
        self.radius, self.calls, self.kept = radius, [], {}

    def features(self, volume, box_zyx, crop, mirrored):
        if box_zyx not in self.kept:
            self.kept[box_zyx] = self.encode(crop())
        return self.kept[box_zyx]

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        self.calls.append("propose")
        return np.zeros((len(neighbours_hu_zyx), 64, 64, 64), np.float32)

    def encode(self, hu_zyx):
        self.calls.append("encode")
        return hu_zyx

    def decode(self, features, prompts):
        self.calls.append("decode")
        out = prompts[2].numpy().copy()
        grid = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"))
        for sign in (0, 1):
            for peak in np.argwhere(prompts[sign].numpy() == 1):
                near = ((grid - peak.reshape(3, 1, 1, 1)) ** 2).sum(0) <= self.radius**2
                out[near] = 0.1 if sign else 0.9
        return out


class IdentitySegmenter(BallSegmenter):
    """Returns the image, so that any stitching of patches must return it too."""

    def encode(self, hu_zyx):
        return hu_zyx

    def decode(self, features, prompts):
        return features


def scan(shape=(150, 140, 130), spacing=(1.5, 1.5, 1.5), array=None):
    affine = np.diag([*spacing, 1.0])
    return Volume(np.zeros(shape, np.int16) if array is None else array, affine)


@pytest.fixture
def session():
    return Session(BallSegmenter(), scan())


def test_clicks_make_and_unmake(session):
    session.click((60, 60, 60))
    mask = session.mask()
    assert mask.dtype == np.uint8 and mask.shape == (150, 140, 130)
    assert mask[60, 60, 60] == mask[63, 60, 60] == 1 and mask[66, 60, 60] == 0
    session.click((66, 60, 60), positive=False)
    assert session.mask()[66, 60, 60] == 0 and session.mask()[64, 60, 60] == 0 and session.mask()[57, 60, 60] == 1


def test_mask_is_a_copy(session):
    session.click((60, 60, 60))
    session.mask()[:] = 0
    assert session.mask()[60, 60, 60] == 1


def test_click_inside_a_patch_refines_it_and_outside_opens_one(session):
    session.click((75, 70, 65))
    session.click((90, 70, 65))
    assert session.patches == 1
    session.click((130, 70, 65))
    assert session.patches == 2
    assert [session.mask()[c] for c in [(75, 70, 65), (90, 70, 65), (130, 70, 65)]] == [1, 1, 1]


def test_encode_once_per_patch(session):
    session.click((75, 70, 65))
    session.click((80, 70, 65))
    session.click((80, 75, 65), positive=False)
    assert session._patchwork._segmenter.calls == ["encode", "decode", "decode", "decode"]


def test_undo_and_redo_are_exact(session):
    masks = [session.mask()]
    for click, sign in [((75, 70, 65), True), ((80, 72, 66), False), ((130, 70, 65), True), ((100, 70, 65), False)]:
        session.click(click, sign)
        masks.append(session.mask())
    for expected in masks[-2::-1]:
        assert session.undo()
        assert np.array_equal(session.mask(), expected)
    assert not session.undo()
    for expected in masks[1:]:
        assert session.redo()
        assert np.array_equal(session.mask(), expected)
    assert not session.redo()


def test_a_new_click_ends_redo(session):
    session.click((75, 70, 65))
    session.undo()
    session.click((30, 30, 30))
    assert not session.redo() and len(session.clicks) == 1


def test_set_clicks_runs_what_is_new(session):
    a, b, c = (75, 70, 65), (80, 72, 66), (20, 20, 20)
    session.set_clicks([a], [])
    session.set_clicks([a], [b])
    session.set_clicks([a, c], [b])
    assert session._patchwork._segmenter.calls.count("decode") == 3
    assert [x.ijk for x in session.clicks] == [a, b, c]
    session.set_clicks([a], [b])  # shorter: back to what was run, nothing new
    assert session._patchwork._segmenter.calls.count("decode") == 3 and [x.ijk for x in session.clicks] == [a, b]
    session.set_clicks([a, c], [])  # b is gone: from (a) on
    assert session._patchwork._segmenter.calls.count("decode") == 4 and [x.ijk for x in session.clicks] == [a, c]
    other = Session(BallSegmenter(), session.volume)
    other.set_clicks([a, c], [])
    assert np.array_equal(other.mask(), session.mask())
    session.set_clicks([], [])
    assert not session.mask().any() and session.patches == 0


def test_replay_is_positives_then_negatives(session):
    a, b, c = (75, 70, 65), (80, 72, 66), (78, 70, 65)
    session.set_clicks([a, c], [b])
    assert [(x.ijk, x.positive) for x in session.clicks] == [(a, True), (c, True), (b, False)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.click((150, 0, 0)), ValueError, r"click \(150, 0, 0\) is outside the volume \(150, 140, 130\)"),
        (lambda s: s.click((-1, 0, 0)), ValueError, "outside the volume"),
        (lambda s: s.click((1, 2)), ValueError, "three voxel indices"),
        (lambda s: s.click((1.5, 2, 3)), ValueError, "whole"),
        (lambda s: s.click((float("nan"), 2, 3)), ValueError, "finite"),
        (lambda s: s.click("abc"), TypeError, "'abc'"),
        (lambda s: s.click((75, 70, 65), positive=False), ValueError, "both positive and negative"),
        (lambda s: s.set_clicks([(1, 1, 1), (999, 1, 1)], []), ValueError, r"positive click \(999, 1, 1\)"),
        (lambda s: s.set_clicks([(1, 1, 1)], [(1, 1, 1)]), ValueError, "both"),
        (lambda s: s.set_clicks("abc", []), TypeError, "positive must be a list"),
    ],
)
def test_a_bad_click_changes_nothing(session, call, error, words):
    session.click((75, 70, 65))
    before, clicks = session.mask(), session.clicks
    with pytest.raises(error, match=words):
        call(session)
    assert session.clicks == clicks and np.array_equal(session.mask(), before)


def test_a_failing_network_changes_nothing(session):
    session.click((75, 70, 65))
    before, clicks = session.mask(), session.clicks
    session._patchwork._segmenter.decode = None
    with pytest.raises(TypeError):
        session.set_clicks([(75, 70, 65), (20, 20, 20)], [])
    assert session.clicks == clicks and np.array_equal(session.mask(), before)


def test_negative_clicks_alone_add_nothing(session):
    session.set_clicks([], [(30, 30, 30)])
    assert not session.mask().any() and session._patchwork._segmenter.calls == []
    session._patchwork._segmenter.decode = lambda features, prompts: np.ones((64, 64, 64), np.float32)
    session.set_clicks([(20, 20, 20)], [])
    session.click((140, 130, 120), positive=False)  # a patch of its own, which holds no foreground
    assert session.mask()[120, 120, 120] == 0


def test_a_negative_click_elsewhere_starts_from_the_mask_so_far():
    session = Session(BallSegmenter(radius=20), scan())
    session.click((75, 70, 65))
    count = session.mask().sum()
    session.click((75, 70, 84), positive=False)
    assert 0.5 * count < session.mask().sum() < count and session.mask()[75, 70, 65] == 1


def test_the_clicked_voxel_obeys_even_when_the_network_does_not(session):
    session._patchwork._segmenter.decode = lambda features, prompts: np.zeros((64, 64, 64), np.float32)
    session.set_clicks([(75, 70, 65)], [])
    assert session.mask()[75, 70, 65] == 1 and session.mask().sum() == 1
    session._patchwork._segmenter.decode = lambda features, prompts: np.ones((64, 64, 64), np.float32)
    session.click((78, 70, 65), positive=False)
    assert session.mask()[78, 70, 65] == 0 and session.mask()[77, 70, 65] == 1


@settings(max_examples=60, deadline=None)
@given(volume=volumes(), data=st.data())
def test_the_mask_lands_on_the_click(volume, data):
    click = tuple(data.draw(st.integers(0, n - 1)) for n in volume.shape_ijk)
    session = Session(BallSegmenter(radius=5.0), volume)
    session.click(click)
    mask = session.mask()
    assert mask[click] == 1
    # A ball of 5 model voxels, plus half a model voxel of rounding, plus half a voxel of interpolation.
    offsets_mm = (np.argwhere(mask) - click) @ volume.affine_ras_mm[:3, :3].T
    reach_mm = np.linalg.norm(offsets_mm, axis=1).max()
    assert reach_mm <= (5.0 + np.sqrt(3) * 0.5 + 1.0) * 1.5 + max(volume.spacing_ijk_mm) / 2


@settings(max_examples=400, deadline=None)
@given(volume=volumes(), data=st.data())
def test_a_patch_lands_on_the_scan_to_half_a_model_voxel(volume, data):
    """A patch that holds a world coordinate, put on the scan, gives each voxel its own: 3 axes x 400 scans."""
    click = tuple(data.draw(st.integers(0, n - 1)) for n in volume.shape_ijk)
    session = Session(BallSegmenter(), volume)
    box = session.grid.patch_zyx(session.grid.voxel_zyx(click), PATCH)
    middle = [a + PATCH // 2 for a in box.start]
    middle_lps_mm = lps_of_model_voxel(volume.affine_ras_mm, volume.shape_ijk, middle, MODEL_MM)
    around = Box(tuple(max(0, v - 1) for v in click), tuple(min(n, v + 2) for v, n in zip(click, volume.shape_ijk)))
    voxels = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(around.start, around.stop)], indexing="ij"), -1)
    for axis in range(3):
        offset_mm = (np.arange(PATCH) - PATCH // 2) * MODEL_MM
        field = np.broadcast_to(
            (0.5 + offset_mm / 200).reshape([-1 if a == axis else 1 for a in range(3)]), (PATCH,) * 3
        )
        patch = Patch(box, field.astype(np.float16), np.ones((PATCH,) * 3, np.float16))
        session._history = [State((), (patch,))]
        found_mm = (session.probability(around) - 0.5) * 200
        expected_mm = (lps_of_ijk(volume.affine_ras_mm, voxels) - middle_lps_mm)[..., 2 - axis]
        assert np.abs(found_mm - expected_mm).max() <= 0.75 + 0.06  # half precision of the patch: 0.05 mm here


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 3.0)])
def test_an_identity_stitches_to_the_identity(spacing):
    shape = tuple(int(200 / s) for s in spacing)
    rng = np.random.default_rng(0)
    array = rng.random(shape).astype(np.float32)
    session = Session(IdentitySegmenter(), scan(shape, spacing, array))
    clicks = [tuple(int(rng.integers(n)) for n in shape) for _ in range(20)]
    clicks += [tuple(n // 2 for n in shape)]
    for click in clicks:
        session.click(click)
    region = session.grid.box_zyx
    once = blend(session.state.patches, region)
    from ctsam3d.resample import crop_hu

    truth = crop_hu(session.volume, session.grid, region).astype(np.float16).astype(np.float32)
    covered = np.zeros(region.shape, bool)
    for patch in session.state.patches:
        covered[patch.box_zyx.intersection(region).slices()] = True
    assert session.patches > 3 and covered.mean() > 0.5
    assert np.array_equal(once[covered], truth[covered]) and not once[~covered].any()


def test_overlapping_patches_blend_smoothly():
    session = Session(BallSegmenter(), scan())
    session._patchwork._segmenter.decode = lambda features, prompts: np.full((64, 64, 64), 0.2, np.float32)
    session.click((50, 70, 65))
    session._patchwork._segmenter.decode = lambda features, prompts: np.full((64, 64, 64), 0.8, np.float32)
    session.click((90, 70, 65))
    line = blend(session.state.patches, session.grid.box_zyx)[65, 70]
    steps = np.abs(np.diff(line[line > 0]))
    assert steps.max() < 0.1 and np.isclose(line, 0.2, atol=1e-3).any() and np.isclose(line, 0.8, atol=1e-3).any()


def test_probability_matches_the_mask(session):
    session.set_clicks([(75, 70, 65), (130, 70, 65)], [(78, 70, 65)])
    box = Box((60, 60, 60), (140, 80, 70))
    assert np.array_equal(session.probability(box) > 0.5, session.mask()[box.slices()] > 0)
    outside = session.mask()
    outside[session.mask_box_ijk.slices()] = 0
    assert not outside.any()
    with pytest.raises(ValueError, match="box_ijk"):
        session.probability(Box((0, 0, 0), (151, 1, 1)))


def test_many_clicks_in_one_patch():
    session = Session(BallSegmenter(), scan())
    clicks = [(60 + n % 8, 60 + n // 8, 60) for n in range(40)]
    session.set_clicks(clicks, [])
    assert all(session.mask()[c] == 1 for c in clicks)


def test_grid_covers_small_volumes():
    session = Session(BallSegmenter(), scan((10, 300, 1), (1.5, 0.7, 5.0)))
    session.click((9, 299, 0))
    assert session.mask()[9, 299, 0] == 1
    assert ModelGrid.of(session.volume, 1.5).shape_zyx == (4, 140, 10)


def test_a_far_negative_click_opens_no_patch_for_later_clicks():
    session = Session(BallSegmenter(), scan((300, 100, 100)))
    session.click((30, 50, 50))
    session.click((200, 50, 50), positive=False)
    assert session.patches == 1
    session.click((230, 50, 50))  # its own patch, with room around it
    assert session.patches == 2 and session.state.patches[-1].box_zyx.depth(session.grid.voxel_zyx((230, 50, 50))) > 25
    assert session.mask()[200, 50, 50] == 0


def test_what_was_undone_by_lists_is_forgotten():
    a, b, c = (75, 70, 65), (80, 72, 66), (20, 20, 20)
    session, fresh = Session(BallSegmenter(), scan()), Session(BallSegmenter(), scan())
    for lists in ([a], []), ([a], [b]), ([a], []), ([a, c], [b]):
        session.set_clicks(*lists)
    for lists in ([a], []), ([a, c], [b]):
        fresh.set_clicks(*lists)
    assert session.clicks == fresh.clicks and np.array_equal(session.mask(), fresh.mask())


@pytest.mark.parametrize("passes", [0, 2])
def test_feedback_shows_the_network_its_own_answer(passes, monkeypatch):
    torch.manual_seed(0)
    segmenter = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0), feedback=passes), precision="float32")
    seen, said, decode = [], [], segmenter.network.decode

    def spy(features, prompts):
        seen.append(prompts.clone())
        said.append(decode(features, prompts))
        return decode(features, prompts)

    monkeypatch.setattr(segmenter.network, "decode", spy)
    session = segmenter.session(scan((64, 64, 64)))
    session.click((30, 30, 30))
    assert len(seen) == 1 + passes + (3 if passes else 0)  # the last pass sees three mirrors as well
    seen, views = seen[: 1 + passes], said[passes:]
    assert all(torch.equal(prompts[:, :2], seen[0][:, :2]) for prompts in seen) and not seen[0][:, 2].any()
    assert all(torch.equal(prompts[:, 2:], torch.sigmoid(before)) for prompts, before in zip(seen[1:], said))
    views = [view.flip(axes) for view, axes in zip(views, ((), (2,), (3,), (4,)))]
    last = torch.sigmoid(sum(views) / len(views))[0, 0].numpy().astype(np.float16)
    assert np.array_equal(session.state.patches[-1].probability, last)
