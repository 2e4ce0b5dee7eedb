"""One structure in one scan, from clicks to mask: the same object serves users, evaluation and validation.

A `Segmenter` holds the network, `Session` the clicks on one structure. Clicks come in as voxel indices of the file
(ijk); patches and probabilities live on the model grid (zyx); the mask is kept on the scan's own grid.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence

import numpy as np

from ctsam3d import expansion
from ctsam3d.expansion import Expansion, blend
from ctsam3d.patchwork import PatchNetwork, Patchwork, State, Stopwatch
from ctsam3d.resample import probability_on_scan
from ctsam3d.volume import Box, Click, ModelGrid, Volume, check_click_ijk


class Session:
    """The clicks on one structure and the mask they give.

    Each click segments its patch, and from there P carries it on, patch by patch, as far as the structure goes, until
    a negative click deep in the mask takes all of that back: later clicks then segment their own patches alone. The
    mask depends on the clicks and their order alone, as long as no time limit cuts an expansion short. A click that
    cannot be used raises and changes nothing. Not safe for use by several threads at once.

    Attributes:
        seconds: per stage (crop, features, decode, propose, cut, write) of the last call that ran something.
    """

    def __init__(self, segmenter: PatchNetwork, volume: Volume, expand: bool = True):
        self.volume = volume
        self.grid = ModelGrid.of(volume, segmenter.info.spacing_mm)
        self.seconds: dict[str, float] = {}
        self._patchwork = Patchwork(segmenter, volume, self.grid, bool(expand))
        self._history = [State()]
        self._position = 0
        self._mask = np.zeros(volume.shape_ijk, np.uint8)

    # --- what it holds ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._history[self._position]

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The clicks in force, in the order in which they were run."""
        return self.state.clicks

    @property
    def patches(self) -> int:
        """Number of patches that make up the mask."""
        return len(self.state.patches)

    @property
    def expansion(self) -> Expansion:
        """How far the last click has spread, and why no farther."""
        return self.state.expansion

    @property
    def expanding(self) -> bool:
        """Whether a time limit cut the expansion short; `go_on` takes it up again."""
        return self.expansion.ended == expansion.TIME

    @property
    def nbytes(self) -> int:
        """About what this session holds in memory beside the scan; another thread may ask."""
        patches = {id(patch): patch for state in list(self._history) for patch in state.patches}
        kept = sum(patch.probability.nbytes + patch.weight.nbytes for patch in patches.values())
        return self._mask.nbytes + kept + self._patchwork.nbytes

    @property
    def mask_box_ijk(self) -> Box:
        """A box of the scan outside which the mask is empty."""
        box = Box((0, 0, 0), (0, 0, 0))
        for patch in self.state.patches:
            box = box.union(self.grid.box_ijk_around(patch.box_zyx, self.volume.shape_ijk))
        return box

    def mask(self, box_ijk: Box | None = None) -> np.ndarray:
        """The mask on the scan's grid, or on a box of it, uint8 (I, J, K) of 0 and 1; a copy.

        Raises:
            ValueError: the box reaches beyond the scan.
        """
        return self._mask[self._inside(box_ijk or self.volume.box_ijk).slices()].copy()

    def probability(self, box_ijk: Box) -> np.ndarray:
        """Foreground probability on a box of the scan, float32; exactly 1 and 0 at clicked voxels.

        Raises:
            ValueError: the box reaches beyond the scan.
        """
        if self._inside(box_ijk).empty:
            return np.zeros(box_ijk.shape, np.float32)
        return self._probability(self.state, box_ijk)

    def probability_zyx(self, box_zyx: Box) -> np.ndarray:
        """Foreground probability on a box of the model grid, float32, as the network gave it."""
        return blend(self.state.patches, box_zyx).astype(np.float32)

    def _inside(self, box_ijk: Box) -> Box:
        if box_ijk.intersection(self.volume.box_ijk) != box_ijk:
            raise ValueError(f"box_ijk {box_ijk} must lie inside the volume {self.volume.shape_ijk}")
        return box_ijk

    # --- what a user does ------------------------------------------------------------------------------------------

    def click(self, ijk, positive: bool = True, seconds: float | None = None) -> None:
        """Run one click.

        Args:
            ijk: voxel index in the file's own array order.
            positive: whether the voxel belongs to the structure.
            seconds: after which its expansion is to stop, see `go_on`; None for no limit.

        Raises:
            TypeError, ValueError: not a voxel of the scan, or already clicked with the other sign.
        """
        click = Click(check_click_ijk(ijk, self.volume.shape_ijk), bool(positive))
        _check_signs([*self.clicks, click])
        self._run([click], self._position, seconds)

    def set_clicks(
        self, positive: Sequence, negative: Sequence = (), seconds: float | None = None, elsewhere: Sequence = ()
    ) -> None:
        """Make the clicks in force those of the two lists.

        Lists that extend the present ones run the new clicks only. Otherwise the session goes back to the longest
        state that they share with what was run before, and goes on from there: positives, then negatives, each in the
        order of its list.

        Args:
            seconds: after which the expansion of the new clicks is to stop, see `go_on`; None for no limit.
            elsewhere: those of the negative clicks that were made for other structures. They take away like the others,
                but nobody has said by them that this structure's expansion has gone astray.

        Raises:
            TypeError, ValueError: a click is no voxel of the scan, or a voxel stands in both lists.
        """
        lists = {True: _checked(positive, self.volume, "positive"), False: _checked(negative, self.volume, "negative")}
        _check_signs([*lists[True], *lists[False]])
        position = self._shared_position(lists)
        done = self._history[position].clicks
        new = [c for sign in (True, False) for c in lists[sign][sum(d.positive is sign for d in done) :]]
        self._run(new, position, seconds, {click.ijk for click in _checked(elsewhere, self.volume, "elsewhere")})

    def go_on(self, seconds: float | None = None) -> None:
        """Take up an expansion that a time limit cut short.

        Args:
            seconds: after which it is to stop again, though not before its next patch; None for no limit.
        """
        if not self.expanding:
            return
        watch, end = Stopwatch(), _deadline(seconds)
        stepped = self._patchwork.step(self.state, watch)
        self._replace(self._patchwork.expanded(stepped, watch, end), watch)

    def undo(self) -> bool:
        """Take the last click back; False where there is none."""
        if self._position == 0:
            return False
        self._run([], self._position - 1)
        return True

    def redo(self) -> bool:
        """Bring back the click that was undone last; False where there is none."""
        if self._position + 1 == len(self._history):
            return False
        self._run([], self._position + 1)
        return True

    # --- how it is done --------------------------------------------------------------------------------------------

    def _shared_position(self, lists: dict[bool, list[Click]]) -> int:
        """The latest state up to the present one whose clicks begin both lists."""
        for position in range(self._position, -1, -1):  # what was undone is as if it had never been
            for sign, wanted in lists.items():
                had = [c for c in self._history[position].clicks if c.positive is sign]
                if had != wanted[: len(had)]:
                    break
            else:
                return position
        raise AssertionError("the empty state begins every list")

    def _run(
        self, new: Sequence[Click], position: int, seconds: float | None = None, elsewhere: Container = ()
    ) -> None:
        """Go to a state of the history and run new clicks from there; all or nothing.

        Args:
            elsewhere: voxels (ijk) of negative clicks that are other structures', see `set_clicks`.
        """
        watch, end = Stopwatch(), _deadline(seconds)
        states = [self._history[position]]
        for click in new:
            against = not click.positive and click.ijk not in elsewhere
            clicked = self._patchwork.clicked(states[-1], click, against, watch)
            states.append(self._patchwork.expanded(clicked, watch, end))
        before = self.state
        with watch.stage("write"):
            self._write(before, states[-1])
        if new:
            self._history[position + 1 :] = states[1:]
        self._position = position + len(new)
        self._rested(watch)

    def _replace(self, state: State, watch: Stopwatch) -> None:
        """Put `state` in the place of the present one, whose expansion it goes on with."""
        with watch.stage("write"):
            self._write(self.state, state)
        self._history[self._position] = state
        self._rested(watch)

    def _rested(self, watch: Stopwatch) -> None:
        self.seconds = watch.seconds
        if not self.expanding:
            self._patchwork.forget_crops()

    def _write(self, before: State, after: State) -> None:
        for box_ijk, mask in self._changes(before, after):
            self._mask[box_ijk.slices()] = mask

    # --- the mask on the scan --------------------------------------------------------------------------------------

    def _changes(self, before: State, after: State) -> list[tuple[Box, np.ndarray]]:
        """Boxes of the scan where the two states may differ, with the later one's mask in each."""
        in_both = set(map(id, before.patches)) & set(map(id, after.patches))
        changed = [p.box_zyx for p in (*before.patches, *after.patches) if id(p) not in in_both]
        boxes = [self.grid.box_ijk_around(box_zyx, self.volume.shape_ijk) for box_zyx in dict.fromkeys(changed)]
        # Where a click left no patch behind, its own voxel may still change.
        boxes += [Box(c.ijk, tuple(v + 1 for v in c.ijk)) for c in set(before.clicks) ^ set(after.clicks)]
        return [(box, self._probability(after, box) > 0.5) for box in boxes]

    def _probability(self, state: State, box_ijk: Box) -> np.ndarray:
        region_zyx = self._region_zyx(box_ijk)
        out = probability_on_scan(blend(state.patches, region_zyx), region_zyx, self.grid, box_ijk)
        for click in state.clicks:
            if box_ijk.contains(click.ijk):
                out[tuple(v - a for v, a in zip(click.ijk, box_ijk.start))] = float(click.positive)
        return out

    def _region_zyx(self, box_ijk: Box) -> Box:
        """All voxels of the model grid that trilinear interpolation on `box_ijk` reads."""
        faces = [(a, b - 1) for a, b in zip(box_ijk.start, box_ijk.stop)]
        corners = np.array([self.grid.to_zyx(c) for c in np.array(np.meshgrid(*faces)).reshape(3, -1).T])
        start = tuple(int(v) for v in np.floor(corners.min(axis=0)))
        stop = tuple(int(v) + 2 for v in np.floor(corners.max(axis=0)))
        # A voxel at the scan's border may lie outside all centres of the grid; the outermost layer serves it.
        extent = self.grid.shape_zyx
        start = tuple(min(max(a, 0), n - 1) for a, n in zip(start, extent))
        return Box(start, tuple(min(max(b, a + 1), n) for a, b, n in zip(start, stop, extent)))


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _checked(clicks: Sequence, volume: Volume, argument: str) -> list[Click]:
    """Each click of a list checked, an exact repetition dropped."""
    if isinstance(clicks, (str, bytes, dict)) or not isinstance(clicks, (Sequence, np.ndarray)):
        raise TypeError(f"{argument} must be a list of voxel indices (i, j, k), got {clicks!r}")
    sign = argument == "positive"
    checked = [check_click_ijk(c, volume.shape_ijk, f"{argument} click") for c in clicks]
    return [Click(ijk, sign) for ijk in dict.fromkeys(checked)]


def _check_signs(clicks: Sequence[Click]) -> None:
    signs: dict[tuple[int, int, int], bool] = {}
    for click in clicks:
        if signs.setdefault(click.ijk, click.positive) is not click.positive:
            raise ValueError(f"click {click.ijk} must have one sign, it is both positive and negative")
