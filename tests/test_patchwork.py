"""Whole expansions in sessions, with a network whose answers are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tests.following import SHAPE, TUBE, Following, scan, tube_session

from ctsam3d import expansion, patchwork
from ctsam3d.expansion import Patch, blend
from ctsam3d.patchwork import State
from ctsam3d.resample import crop_hu
from ctsam3d.session import Session
from ctsam3d.volume import Box, Volume


def test_one_click_follows_a_tube_from_edge_to_edge():
    session, truth = tube_session()
    session.click((45, 45, 20))
    assert np.array_equal(session.mask(), truth)
    own = session.expansion
    assert own.ended == "quiet" and own.proposed == own.segmented + own.rejected
    assert own.segmented == session.patches - 1 >= 6


def test_without_expansion_one_patch_is_segmented():
    session, truth = tube_session(expand=False)
    session.click((45, 45, 20))
    assert session.patches == 1 and session.mask().sum() < truth.sum() / 3
    assert (session.expansion.ended, session.expansion.proposed) == ("off", 0)


def test_a_scan_smaller_than_a_patch_has_no_neighbours():
    session = Session(Following(), scan((30, 40, 20), Box((10, 10, 0), (20, 20, 20))))
    session.click((15, 15, 10))
    assert session.expansion.ended == "quiet" and session.expansion.proposed == 0
    assert session.mask().sum() == 10 * 10 * 20


def test_a_budget_of_patches(monkeypatch):
    session, truth = tube_session()
    monkeypatch.setattr(expansion, "BUDGET", 2)
    session.click((45, 45, 20))
    assert (session.patches, session.expansion.ended, session.expanding) == (3, "patch budget", False)
    part = session.mask().sum()
    session.click((46, 45, 20))
    assert session.patches == 5 and part < session.mask().sum() < truth.sum()


def test_a_time_limit_is_taken_up_again():
    whole, truth = tube_session()
    whole.click((45, 45, 20))
    session, _ = tube_session()
    session.click((45, 45, 20), seconds=0)
    assert session.expanding and session.patches == 1 and session.expansion.ended == "time budget"
    sizes = []
    while session.expanding:
        session.go_on(seconds=0)
        sizes.append(session.patches)
    assert sizes[0] <= 2 and np.array_equal(session.mask(), truth)
    assert (session.patches, session.expansion) == (whole.patches, whole.expansion)
    session.go_on()
    assert session.patches == whole.patches
    session.undo()
    assert not session.expanding and not session.mask().any()
    session.redo()
    assert np.array_equal(session.mask(), truth)


def test_undo_through_an_expansion_is_exact():
    session, _ = tube_session()
    masks = [session.mask()]
    for click, sign in [((45, 45, 20), True), ((45, 45, 150), False), ((20, 20, 20), True), ((45, 45, 280), True)]:
        session.click(click, sign)
        masks.append(session.mask())
    for expected in masks[-2::-1]:
        assert session.undo() and np.array_equal(session.mask(), expected)
    for expected in masks[1:]:
        assert session.redo() and np.array_equal(session.mask(), expected)


def test_the_same_lists_give_the_same_mask():
    one, _ = tube_session()
    one.click((45, 45, 20))
    one.click((45, 45, 150), positive=False)
    other, _ = tube_session()
    other.set_clicks([(45, 45, 20)], [(45, 45, 150)])
    assert np.array_equal(one.mask(), other.mask())


def test_a_negative_click_far_away_stops_a_leak_for_good():
    """The tube leaks through a bridge into another one; one negative click in the bridge takes that away."""
    other, bridge = Box((150, 40, 0), (160, 50, 300)), Box((50, 42, 150), (150, 48, 156))
    volume = scan((200, 100, 300), TUBE, other, bridge)
    session = Session(Following(), volume)
    session.click((45, 45, 20))
    assert session.mask()[155, 45, 290] and session.mask()[155, 45, 10]
    session.click((100, 45, 153), positive=False)
    mask = session.mask()
    assert not mask[100, 45, 153] and not mask[other.slices()].any()
    assert mask[TUBE.slices()].all()
    session.click((45, 45, 280))
    assert not session.mask()[other.slices()].any() and session.mask()[TUBE.slices()].all()
    session.click((155, 45, 200))  # who wants it after all clicks in it
    assert session.mask()[155, 45, 200]


def test_a_leak_does_not_come_back_through_another_bridge():
    """A later click whose patches lie otherwise than the first one's, on a part with a way of its own to the leak."""
    leak, bridge = Box((150, 40, 0), (160, 50, 200)), Box((50, 42, 60), (150, 48, 66))
    part, way = (
        Box((40, 200, 0), (50, 210, 200)),
        (Box((50, 202, 110), (156, 208, 116)), Box((150, 50, 110), (156, 208, 116))),
    )
    volume = scan((200, 250, 200), Box((40, 40, 0), (50, 50, 200)), leak, bridge, part)
    session = Session(Following(), volume)
    session.click((45, 45, 20))
    assert session.mask()[leak.slices()].all()
    session.click((100, 45, 63), positive=False)
    assert not session.mask()[leak.slices()].any()
    for piece in way:  # which the network sees from now on
        volume.array_ijk[piece.slices()] = 500
    session._patchwork.forget_crops()
    session.click((45, 205, 93))
    mask = session.mask()
    assert mask[part.slices()].all() and mask[152, 150, 113] and mask[152, 60, 113]
    assert not mask[leak.slices()].any()


def test_a_negative_click_beside_the_patches_that_are_there():
    """Its own patch reaches beyond all of them, and takes away what it says."""
    session, _ = tube_session()
    session.click((45, 45, 20))
    session.click((95, 95, 150), positive=False)
    assert not session.mask()[95, 95, 150] and session.mask()[45, 45, 280]


def test_a_negative_click_beside_the_only_positive_one_keeps_the_rest():
    session, _ = tube_session()
    session.click((45, 45, 20))
    session.click((46, 45, 20), positive=False)
    mask = session.mask()
    assert mask[45, 45, 20] and not mask[46, 45, 20] and mask[45, 45, 200]


def test_a_negative_click_on_p_s_own_click_adds_nothing(monkeypatch):
    """Nor does it bring back islands that were dropped when the patch was opened."""
    island = Box((70, 70, 70), (74, 74, 74))
    session = Session(Following(), scan(SHAPE, TUBE, island))

    def bright(features, prompts):
        return np.where((features > 0) & (prompts[1].numpy() < 0.5), 0.9, 0.1).astype(np.float32)

    monkeypatch.setattr(session._patchwork._segmenter, "decode", bright)
    session.click((45, 45, 10))
    before = session.mask()
    opened = next(own for own in session.state.patches if own.source and own.box_zyx.contains((72, 72, 72)))
    z, y, x = opened.seed_zyx
    session.click((x, y, z), positive=False)
    assert not before[island.slices()].any() and not session.mask()[x, y, z]
    assert not (session.mask() & ~before).any()


def test_an_error_half_way_changes_nothing(monkeypatch):
    session, truth = tube_session()
    propose, calls = session._patchwork._segmenter.propose_batch, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return propose(*arguments)

    monkeypatch.setattr(session._patchwork._segmenter, "propose_batch", failing)
    with pytest.raises(RuntimeError):
        session.click((45, 45, 20))
    assert not session.mask().any() and session.clicks == () and session.patches == 0
    session.click((45, 45, 20))
    assert np.array_equal(session.mask(), truth)


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("spacing", [(0.9, 0.9, 3.0), (2.0, 1.0, 1.0)])
def test_an_expansion_on_other_grids(spacing, degrees):
    """A tube along world z in scans that are anisotropic and turned about x."""
    shape = tuple(int(n / s) for n, s in zip((120, 200, 330), spacing))
    turned = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned[1:3, 1:3] = [[c, -s], [s, c]]
    affine = turned @ np.diag([*spacing, 1.0])
    ijk = np.indices(shape).reshape(3, -1)
    middle = affine[:3, :3] @ (np.array(shape) / 2)
    x, y, _ = affine[:3, :3] @ ijk - middle[:, None]
    truth = ((x**2 + y**2) < 8**2).reshape(shape)
    session = Session(Following(), Volume(np.where(truth, 500, -500).astype(np.int16), affine))
    inside = np.argwhere(truth)
    session.click(tuple(inside[len(inside) // 3]))
    mask = session.mask() > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9 and session.expansion.ended == "quiet"


def test_a_negative_click_in_an_opened_patch_is_honoured():
    session, _ = tube_session()
    session.click((45, 45, 20))
    before = session.patches
    session.click((45, 45, 150), positive=False)
    mask = session.mask()
    assert not mask[40:50, 40:50, 148:152].any() and mask[40:50, 40:50, :140].all()
    assert not mask[40:50, 40:50, 170:].any(), "what lay behind is cut off"
    assert session.patches < before


def test_what_followed_from_a_mask_that_was_wrong_goes_with_it(monkeypatch):
    """The first answer floods, and so do the patches that it leads to; the second is right."""
    session, truth = tube_session()
    decode, flooding = session._patchwork._segmenter.decode, [True]

    def flood(features, prompts):
        return (
            np.full((64,) * 3, 0.9, np.float32)
            if flooding
            else decode(features, prompts * np.r_[1, 1, 0][:, None, None, None])
        )

    monkeypatch.setattr(session._patchwork._segmenter, "decode", flood)
    session.click((45, 45, 20))
    assert session.mask().mean() > 0.9
    flooding.clear()
    session.click((46, 45, 20))
    assert np.array_equal(session.mask(), truth)


def test_what_another_patch_leads_to_stays_and_so_does_what_followed_from_there(monkeypatch):
    """A new mask of `clicked` does not lead to `child` any more; `other` does, and `child` to `grandchild`."""
    session, _ = tube_session()
    boxes = [Box((40, 40, z), (104, 104, z + 64)) for z in (0, 40, 80)] + [Box((0, 40, 40), (64, 104, 104))]
    empty = np.zeros((64, 64, 64), np.float16)
    clicked, child, grandchild, other = (Patch(box, empty, empty) for box in boxes)
    child = dataclasses.replace(child, source=clicked.box_zyx)
    grandchild = dataclasses.replace(grandchild, source=child.box_zyx)
    new = dataclasses.replace(clicked, seed_zyx=(1, 2, 3))
    leads = {(clicked, child.box_zyx), (other, child.box_zyx)}

    def follows(one, patch):
        return (patch, one.box_zyx) in leads or (patch.box_zyx, one.box_zyx) == (child.box_zyx, grandchild.box_zyx)

    monkeypatch.setattr(patchwork, "_follows", follows)
    monkeypatch.setattr(session._patchwork, "_neighbours", lambda patch: boxes)
    state = State(patches=(grandchild, child, other, new))
    left = session._patchwork._without_followers(state, clicked, new).patches
    assert [patch.box_zyx for patch in left] == [own.box_zyx for own in state.patches]
    assert [patch.source for patch in left] == [child.box_zyx, other.box_zyx, None, None]


def test_views_of_a_mirror_are_for_clicks_alone(monkeypatch):
    session, _ = tube_session()
    segmenter, asked = session._patchwork._segmenter, []
    features = segmenter.features
    note = lambda volume, box, crop, mirrored: (asked.append(mirrored), features(volume, box, crop, mirrored))[1]  # noqa: E731
    monkeypatch.setattr(segmenter, "features", note)
    session.click((45, 45, 20))
    assert asked[0] and len(asked) > 3 and not any(asked[1:])


def test_a_later_click_recomputes_only_what_it_touches():
    session, _ = tube_session()
    session.click((45, 45, 20))
    session._patchwork._segmenter.opened.clear()
    session.click((46, 46, 250))
    assert len(session._patchwork._segmenter.opened) == 1


def test_what_p_does_not_see_or_s_contradicts_is_rejected(monkeypatch):
    session, _ = tube_session()
    monkeypatch.setattr(session._patchwork._segmenter, "info", SimpleNamespace(spacing_mm=1.5, peak_threshold=2.0))
    session.click((45, 45, 20))
    assert session.patches == 1 and session.expansion.rejected == session.expansion.proposed == 1
    flooding, _ = tube_session()
    decode = flooding._patchwork._segmenter.decode
    first = []

    def flood(features, prompts):
        first.append(1)
        return decode(features, prompts) if len(first) == 1 else np.full((64,) * 3, 0.9, np.float32)

    monkeypatch.setattr(flooding._patchwork._segmenter, "decode", flood)
    flooding.click((45, 45, 20))
    assert flooding.patches == 1 and flooding.expansion.segmented == 0 < flooding.expansion.rejected


def test_islands_of_opened_patches_go_and_those_of_clicks_stay(monkeypatch):
    island = Box((70, 70, 80), (74, 74, 84))
    volume = scan(SHAPE, TUBE, island)
    session = Session(Following(), volume)
    bright = lambda features, prompts: np.where(features > 0, 0.9, 0.1).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(session._patchwork._segmenter, "decode", bright)
    session.click((45, 45, 10))
    assert session.mask()[TUBE.slices()].all() and not session.mask()[island.slices()].any()
    session.click((72, 72, 82))
    assert session.mask()[island.slices()].all()


def test_an_expansion_does_not_leap_over_a_gap():
    near, far = Box((40, 40, 0), (50, 50, 58)), Box((40, 40, 66), (50, 50, 104))
    session = Session(Following(), scan(SHAPE, near, far))
    session.click((45, 45, 20))
    assert session.mask()[near.slices()].all() and not session.mask()[far.slices()].any()
    session.click((45, 45, 90))
    assert session.mask()[far.slices()].all()


def test_an_identity_stitches_to_the_identity_through_expansions(monkeypatch):
    """Whatever patches are opened, and in whatever order they lie, the image comes back, bit for bit."""
    rng = np.random.default_rng(0)
    array = (0.6 + 0.3 * rng.random((150, 140, 130))).astype(np.float32)
    session = Session(Following(), Volume(array, np.diag([1.5, 1.5, 1.5, 1.0])))
    monkeypatch.setattr(session._patchwork._segmenter, "decode", lambda features, prompts: np.clip(features, 0, 1))
    session.click((75, 70, 65))
    region = session.grid.box_zyx
    truth = crop_hu(session.volume, session.grid, region).astype(np.float16).astype(np.float32)
    assert session.patches > 8 and session.mask().all()
    assert np.array_equal(blend(session.state.patches, region), truth)


def test_batches_of_neighbours_open_the_same_tube():
    session, truth = tube_session()
    one, _ = tube_session()
    one.click((45, 45, 20))
    session._patchwork._segmenter.batch = 26
    session.click((45, 45, 20))
    assert np.array_equal(session.mask(), truth)
    assert {own.box_zyx for own in session.state.patches} == {own.box_zyx for own in one.state.patches}
    assert session.expansion == one.expansion


def test_patches_are_never_changed():
    session, _ = tube_session()
    session.click((45, 45, 20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.state.patches[0].seed_zyx = None
