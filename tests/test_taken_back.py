"""Negative clicks deep in the mask take an expansion back; others do not."""

import numpy as np
import pytest
from tests.following import SHAPE, TUBE, Following, leaking, scan

from ctsam3d.expansion import QUIET, TAKEN_BACK
from ctsam3d.session import Session
from ctsam3d.volume import Box


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
