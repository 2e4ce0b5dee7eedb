"""Where a structure goes on, by hand, and whole expansions with a network whose answers are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from ctsam3d import expansion
from ctsam3d.expansion import (
    QUIET,
    TAKEN_BACK,
    Patch,
    agrees,
    ahead,
    bars,
    blend,
    covered,
    depth,
    descendants,
    lasting,
    leads_to,
    neighbours,
    severed,
    without_islands,
)
from ctsam3d.resample import crop_hu
from ctsam3d.session import Session
from ctsam3d.volume import Box, Volume

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
    seed, touching, island = Box((5, 5, 5), (9, 9, 9)), Box((20, 5, 5), (30, 9, 9)), Box((40, 40, 40), (50, 50, 50))
    own, before = patch((0, 0, 0), seed, touching, island), patch((0, 0, 0), Box((18, 5, 5), (22, 9, 9)))
    left = without_islands(own.probability, (6, 6, 6), before.probability)
    assert np.array_equal(left, patch((0, 0, 0), seed, touching).probability)


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


# ---- whole expansions ----------------------------------------------------------------------------------------------


class Following:
    """S finds what is bright and connected to a click or to the previous mask; a negative click clears 8 voxels around.

    P clicks in the bright voxel nearest to the middle of all that is bright in the neighbour.
    """

    def __init__(self):
        self.info, self.batch = SimpleNamespace(spacing_mm=1.5, peak_threshold=0.5), 1
        self.opened = []

    def features(self, volume, box_zyx, crop):
        self.opened.append(box_zyx)
        return crop()

    def decode(self, features, prompts):
        bright, (positive, negative, previous) = features > 0, prompts.numpy()
        for place in np.argwhere(negative == 1):
            near = np.indices(bright.shape) - place.reshape(3, 1, 1, 1)
            bright &= (near**2).sum(0) > 8**2
        parts, _ = ndimage.label(bright)
        wanted = np.unique(parts[bright & ((positive == 1) | (previous > 0.5))])
        return np.where(np.isin(parts, wanted) & bright, 0.9, 0.1).astype(np.float32)

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        heatmaps = np.zeros((len(neighbours_hu_zyx), N, N, N), np.float32)
        for heatmap, hu in zip(heatmaps, neighbours_hu_zyx):
            places = np.argwhere(hu > 0)
            if len(places):
                heatmap[tuple(places[((places - places.mean(0)) ** 2).sum(1).argmin()])] = 1.0
        return heatmaps


def scan(shape, *bright):
    """Voxels of 1.5 mm; `bright` boxes in file order (ijk), which is xyz of the grid up to flips."""
    array = np.full(shape, -500, np.int16)
    for part in bright:
        array[part.slices()] = 500
    return Volume(array, np.diag([-1.5, -1.5, 1.5, 1.0]))  # LPS, as the grid


TUBE = Box((40, 40, 0), (50, 50, 300))
SHAPE = (100, 100, 300)


def tube_session(**options):
    volume = scan(SHAPE, TUBE)
    return Session(Following(), volume, **options), (volume.array_ijk > 0).astype(np.uint8)


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
    session._crops.clear()
    session.click((45, 205, 93))
    mask = session.mask()
    assert mask[part.slices()].all() and mask[152, 150, 113] and mask[152, 60, 113]
    assert not mask[leak.slices()].any()


def test_a_negative_click_deep_in_what_was_found_takes_the_expansion_back():
    """The tube leads into a block; only what a user clicked in is left, and no later click spreads until an undo."""
    block, root = Box((50, 20, 120), (110, 80, 180)), Box((40, 40, 0), (50, 50, 52))
    session = Session(Following(), scan((200, 100, 300), TUBE, block))
    session.click((45, 45, 20))
    found = session.mask()
    assert found[block.slices()].all() and found[TUBE.slices()].all()
    session.click((80, 50, 150), positive=False)
    assert session.expansion.ended == TAKEN_BACK and session.patches == 1 and not session.expanding
    assert not session.mask()[block.slices()].any() and session.mask()[root.slices()].all()
    session.click((45, 45, 280))
    mask = session.mask()
    assert mask[45, 45, 280] and mask[root.slices()].all() and not mask[45, 45, 150]
    assert session.expansion.ended == TAKEN_BACK and session.patches == 2
    again = Session(Following(), session.volume)
    again.set_clicks([(45, 45, 20)])
    again.set_clicks([(45, 45, 20)], [(80, 50, 150)])
    again.set_clicks([(45, 45, 20), (45, 45, 280)], [(80, 50, 150)])
    assert np.array_equal(again.mask(), mask)
    session.undo()
    session.undo()
    assert np.array_equal(session.mask(), found)


def test_a_deep_negative_click_in_a_clicked_patch_mends_it_too():
    block = Box((20, 20, 20), (80, 80, 280))
    session = Session(Following(), scan(SHAPE, block))
    session.click((50, 50, 50))
    assert session.mask()[50, 50, 200]
    session.click((50, 50, 62), positive=False)
    mask = session.mask()
    assert session.expansion.ended == TAKEN_BACK and not mask[50, 50, 200] and session.patches == 1
    assert mask[50, 50, 50] and not mask[50, 50, 60:65].any()


def leaking():
    """A session on the tube that leads into a block, a positive click far from it, and a negative one in its middle."""
    block = Box((50, 20, 120), (110, 80, 180))
    return Session(Following(), scan((200, 100, 300), TUBE, block)), (45, 45, 20), (80, 50, 150), block


def test_a_time_limit_lets_no_leak_back_that_a_click_is_against():
    """The click in the leak comes before the expansion has reached it."""
    session, inside, against, block = leaking()
    session.set_clicks([inside], [against], seconds=0)
    assert session.expanding
    session.go_on()
    assert session.expansion.ended == TAKEN_BACK and not session.mask()[block.slices()].any()
    unlimited = leaking()[0]
    unlimited.set_clicks([inside], [against])
    assert np.array_equal(session.mask(), unlimited.mask())


def test_a_flat_click_before_an_expansion_takes_nothing_back():
    session, inside, _, _ = leaking()
    session.set_clicks([inside], [(106, 50, 150)], seconds=0)
    session.go_on()
    assert session.expansion.ended == QUIET and session.mask()[80, 50, 150] and not session.mask()[106, 50, 150]


def test_a_click_before_an_expansion_that_has_ended_is_like_any_other():
    """The tube and, apart from it, a block with a negative click in its middle, which a positive one reaches later."""
    block = Box((90, 20, 120), (150, 80, 180))
    clicks = [(45, 45, 20)], [(120, 50, 150)]
    masks = []
    for seconds in (0, None):
        session = Session(Following(), scan((200, 100, 300), TUBE, block))
        session.set_clicks(*clicks, seconds=seconds)
        session.go_on()
        assert session.expansion.ended == QUIET
        session.click((92, 22, 122))
        assert session.expansion.ended == QUIET and session.expansion.early == ()
        masks.append(session.mask())
    assert np.array_equal(*masks)


def test_clicks_of_other_structures_take_no_expansion_back():
    session, inside, against, _ = leaking()
    session.set_clicks([inside], [against], elsewhere=[against])
    assert session.expansion.ended == QUIET and session.mask()[55, 50, 130] and not session.mask()[against]
    with pytest.raises(ValueError, match=r"elsewhere click \(900, 3, 4\)"):
        session.set_clicks([inside], elsewhere=[(900, 3, 4)])


def test_what_other_patches_had_mended_stays_mended():
    """A flat negative click lies in the clicked patch, but mends the one beside it, which is then taken back."""
    wide, block = Box((30, 30, 0), (60, 60, 300)), Box((60, 10, 120), (120, 90, 180))
    session = Session(Following(), scan((200, 100, 300), wide, block))
    session.click((45, 45, 20))
    session.click((45, 32, 48), positive=False)
    assert session.expansion.ended == QUIET and not session.mask()[45, 33, 48]
    session.click((90, 50, 150), positive=False)
    mask = session.mask()
    assert session.expansion.ended == TAKEN_BACK and mask[45, 45, 20] and not mask[45, 33, 48]


def test_what_the_last_click_had_mended_stays_mended_when_a_leak_is_reached_later():
    wide, block = Box((30, 30, 0), (60, 60, 300)), Box((60, 10, 120), (120, 90, 180))
    session = Session(Following(), scan((200, 100, 300), wide, block))
    session.click((45, 45, 20), seconds=0)
    session.go_on(seconds=0)
    session.click((90, 50, 150), positive=False, seconds=0)
    session.click((45, 32, 48), positive=False, seconds=0)
    session.go_on()
    mask = session.mask()
    assert session.expansion.ended == TAKEN_BACK and mask[45, 45, 20] and not mask[45, 33, 48]


@pytest.mark.parametrize(("x", "ended"), [(27, QUIET), (28, TAKEN_BACK)])
def test_how_deep_a_click_takes_back(x, ended):
    """From x = 20 on there is the mask, to the scan's end on the other side, which is no border of it."""
    session = Session(Following(), scan((80, 80, 300), Box((20, 0, 0), (80, 80, 300))))
    session.click((50, 50, 50))
    session.click((x - 1, 0, 200), positive=False)
    assert session.expansion.ended == ended


def test_a_flat_negative_click_takes_nothing_back():
    block = Box((20, 20, 20), (80, 80, 280))
    session = Session(Following(), scan(SHAPE, block))
    session.click((50, 50, 50))
    session.click((50, 50, 274), positive=False)  # 6 voxels from the end
    assert session.expansion.ended == QUIET and session.mask()[50, 50, 200] and not session.mask()[50, 50, 274]


def test_depth_in_a_mask():
    mask = np.zeros((9, 9, 30), bool)
    mask[2:7, 2:7, :20] = True
    assert depth(mask, (4, 4, 0)) == 3 and depth(mask, (4, 4, 19)) == 1 and depth(mask, (0, 0, 0)) == 0
    assert depth(np.ones((3, 4, 5), bool), (1, 1, 1)) == 5


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

    monkeypatch.setattr(session._segmenter, "decode", bright)
    session.click((45, 45, 10))
    before = session.mask()
    opened = next(own for own in session.state.patches if own.source and own.box_zyx.contains((72, 72, 72)))
    z, y, x = opened.seed_zyx
    session.click((x, y, z), positive=False)
    assert not before[island.slices()].any() and not session.mask()[x, y, z]
    assert not (session.mask() & ~before).any()


def test_an_error_half_way_changes_nothing(monkeypatch):
    session, truth = tube_session()
    propose, calls = session._segmenter.propose_batch, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return propose(*arguments)

    monkeypatch.setattr(session._segmenter, "propose_batch", failing)
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
    decode, flooding = session._segmenter.decode, [True]

    def flood(features, prompts):
        return (
            np.full((N,) * 3, 0.9, np.float32)
            if flooding
            else decode(features, prompts * np.r_[1, 1, 0][:, None, None, None])
        )

    monkeypatch.setattr(session._segmenter, "decode", flood)
    session.click((45, 45, 20))
    assert session.mask().mean() > 0.9
    flooding.clear()
    session.click((46, 45, 20))
    assert np.array_equal(session.mask(), truth)


def test_a_later_click_recomputes_only_what_it_touches():
    session, _ = tube_session()
    session.click((45, 45, 20))
    session._segmenter.opened.clear()
    session.click((46, 46, 250))
    assert len(session._segmenter.opened) == 1


def test_what_p_does_not_see_or_s_contradicts_is_rejected(monkeypatch):
    session, _ = tube_session()
    monkeypatch.setattr(session._segmenter, "info", SimpleNamespace(spacing_mm=1.5, peak_threshold=2.0))
    session.click((45, 45, 20))
    assert session.patches == 1 and session.expansion.rejected == session.expansion.proposed == 1
    flooding, _ = tube_session()
    decode = flooding._segmenter.decode
    first = []

    def flood(features, prompts):
        first.append(1)
        return decode(features, prompts) if len(first) == 1 else np.full((N,) * 3, 0.9, np.float32)

    monkeypatch.setattr(flooding._segmenter, "decode", flood)
    flooding.click((45, 45, 20))
    assert flooding.patches == 1 and flooding.expansion.segmented == 0 < flooding.expansion.rejected


def test_islands_of_opened_patches_go_and_those_of_clicks_stay(monkeypatch):
    island = Box((70, 70, 80), (74, 74, 84))
    volume = scan(SHAPE, TUBE, island)
    session = Session(Following(), volume)
    bright = lambda features, prompts: np.where(features > 0, 0.9, 0.1).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(session._segmenter, "decode", bright)
    session.click((45, 45, 10))
    assert session.mask()[TUBE.slices()].all() and not session.mask()[island.slices()].any()
    session.click((72, 72, 82))
    assert session.mask()[island.slices()].all()


def test_an_identity_stitches_to_the_identity_through_expansions(monkeypatch):
    """Whatever patches are opened, and in whatever order they lie, the image comes back, bit for bit."""
    rng = np.random.default_rng(0)
    array = (0.6 + 0.3 * rng.random((150, 140, 130))).astype(np.float32)
    session = Session(Following(), Volume(array, np.diag([1.5, 1.5, 1.5, 1.0])))
    monkeypatch.setattr(session._segmenter, "decode", lambda features, prompts: np.clip(features, 0, 1))
    session.click((75, 70, 65))
    region = session.grid.box_zyx
    truth = crop_hu(session.volume, session.grid, region).astype(np.float16).astype(np.float32)
    assert session.patches > 8 and session.mask().all()
    assert np.array_equal(blend(session.state.patches, region), truth)


def test_batches_of_neighbours_open_the_same_tube():
    session, truth = tube_session()
    one, _ = tube_session()
    one.click((45, 45, 20))
    session._segmenter.batch = 26
    session.click((45, 45, 20))
    assert np.array_equal(session.mask(), truth)
    assert {own.box_zyx for own in session.state.patches} == {own.box_zyx for own in one.state.patches}
    assert session.expansion == one.expansion


def test_patches_are_never_changed():
    session, _ = tube_session()
    session.click((45, 45, 20))
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.state.patches[0].seed_zyx = None
