"""What clicks make of the patches of one structure: each state is computed from the one before, and none is changed.

All boxes, places and arrays are on the model grid, axis order zyx.
"""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ctsam3d import expansion
from ctsam3d.expansion import Expansion, Patch, Zyx, agrees, blend, fading, lasting
from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.resample import crop_hu
from ctsam3d.volume import Box, Click, ModelGrid, Volume

CROPS = 8  # patches in HU that are kept
SEED_DISTANCE = 8  # voxels; nearer to a negative click, P's click would be contradicted at once


class PatchNetwork(Protocol):
    """What a session needs of a `Segmenter`, see there."""

    info: Any
    batch: int

    def features(self, volume: Volume, box_zyx: Box, crop: Callable[[], np.ndarray], mirrored: bool) -> Any: ...

    def decode(self, features: Any, prompts: torch.Tensor) -> np.ndarray: ...

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx: Sequence, offsets_zyx: Sequence) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class State:
    """A session after some clicks; never changed, so that undo is going back to an earlier one.

    Attributes:
        clicks: in the order in which they were run.
        patches: as they lie over each other, the top one last: those of an expansion under the clicked ones.
        expansion: how far the last click has spread.
    """

    clicks: tuple[Click, ...] = ()
    patches: tuple[Patch, ...] = ()
    expansion: Expansion = field(default_factory=Expansion)

    def patch(self, box_zyx: Box) -> Patch | None:
        """The patch on a box."""
        return next((patch for patch in self.patches if patch.box_zyx == box_zyx), None)


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Patchwork:
    """The network at work on one scan: `clicked` makes a state from another one and a click, `expanded` lets it spread.

    Args:
        expand: whether a click spreads.
    """

    def __init__(self, segmenter: PatchNetwork, volume: Volume, grid: ModelGrid, expand: bool):
        self.volume, self.grid, self.expand = volume, grid, expand
        self._segmenter = segmenter
        self._crops: OrderedDict[Box, np.ndarray] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Of the crops; another thread may ask."""
        return len(self._crops) * PATCH_SIZE**3 * np.dtype(np.float32).itemsize

    def forget_crops(self) -> None:
        """Lets the patches in HU go: what a click needs again are the features, and the segmenter keeps those."""
        self._crops.clear()

    # --- a click ---------------------------------------------------------------------------------------------------

    def clicked(self, state: State, click: Click, against: bool, watch: Stopwatch) -> State:
        """The state after one more click: its patch segmented anew and put on top, ready to expand from there.

        Args:
            against: whether the click says what the structure is not, so that it can take the expansion back.
        """
        voxel_zyx = self.grid.voxel_zyx(click.ijk)
        barred = tuple(own for own in state.expansion.barred if not (click.positive and own.holds(voxel_zyx)))
        ended = expansion.TAKEN_BACK if state.expansion.ended == expansion.TAKEN_BACK else expansion.OFF
        queue, early = state.expansion.queue, state.expansion.early
        early = (*early, *([click] if against else [])) if queue else ()
        own = Expansion(ended=ended, queue=queue, barred=barred, early=early)
        state = dataclasses.replace(state, expansion=own)
        if astray := against and self._astray(state, voxel_zyx, watch):
            state = self._taken_back(state, watch)
        state = dataclasses.replace(state, clicks=(*state.clicks, click))
        if astray and not any(patch.box_zyx.contains(voxel_zyx) for patch in state.patches):
            return state
        holding = [p for p in state.patches if p.box_zyx.contains(voxel_zyx)]
        refined = max(holding, key=lambda p: p.box_zyx.depth(voxel_zyx), default=None)
        box = refined.box_zyx if refined else self.grid.patch_zyx(voxel_zyx, PATCH_SIZE)
        before = state
        if not click.positive:
            state = self._mended(state, voxel_zyx, [patch for patch in holding if patch is not refined], watch)
        new = self._segment(state, box, watch, refined.seed_zyx if refined else None)
        if new is None:
            return state
        state = dataclasses.replace(state, patches=(*(p for p in state.patches if p is not refined), new))
        if not self.expand:
            return state
        if refined:
            state = self._without_followers(state, refined, new)
        if not click.positive:
            with watch.stage("cut"):
                state = self._cut(before, state)
        return self._spread(state, state.patches[-1])

    def _mended(self, state: State, voxel_zyx: Zyx, holding: Sequence[Patch], watch: Stopwatch) -> State:
        """`state` with the patches of its expansion that a negative click contradicts segmented anew.

        Else what they found would show beside the patch on top.

        Args:
            holding: those of its patches that hold the click, apart from the one that it refines.
        """
        for old in holding:
            if old.source and old.mask[_inside(voxel_zyx, old.box_zyx)]:
                new = self._segment(state, old.box_zyx, watch, old.seed_zyx)
                others = [patch for patch in state.patches if patch is not old]
                new = new and _joined(_without_barred(new, state), others, old.source)
                patches = (new if patch is old else patch for patch in state.patches)
                state = dataclasses.replace(state, patches=tuple(patch for patch in patches if patch))
        return state

    def _astray(self, state: State, voxel_zyx: Zyx, watch: Stopwatch) -> bool:
        """Whether a negative click says that the expansion follows something else than the structure: a deep one does.

        The patches were found from each other's masks. Where a whole mass is wrong, a correction of one patch leaves
        the others, which follow the same mistake.
        """
        if not any(patch.source for patch in state.patches):
            return False
        with watch.stage("cut"):
            cube = Box(voxel_zyx, tuple(v + 1 for v in voxel_zyx)).grown(expansion.DEEP)
            region = cube.intersection(self.grid.box_zyx)
            mask = blend(state.patches, region) > 0.5
            return expansion.depth(mask, _inside(voxel_zyx, region)) >= expansion.DEEP

    def _leads_astray(self, state: State, source: Patch, box: Box, seed_zyx: Zyx, watch: Stopwatch) -> bool:
        """Whether a patch would have been opened over a negative click, deep, had that come after the expansion.

        A time limit lets the click come first. This patch alone is looked at, where `_astray` sees them blended.
        """
        early = {c: self.grid.voxel_zyx(c.ijk) for c in state.expansion.early}
        early = {click: voxel_zyx for click, voxel_zyx in early.items() if box.contains(voxel_zyx)}
        if not early:
            return False
        before = dataclasses.replace(state, clicks=tuple(click for click in state.clicks if click not in early))
        new = self._opened(before, source, box, seed_zyx, watch)
        deep = expansion.DEEP
        return new is not None and any(expansion.depth(new.mask, _inside(v, box)) >= deep for v in early.values())

    def _taken_back(self, state: State, watch: Stopwatch) -> State:
        """`state` without all that its expansion has found: the patches that hold a positive click are left.

        What another patch had mended in them, they are told now.
        """
        places = [self.grid.voxel_zyx(click.ijk) for click in state.clicks if click.positive]
        wrong = [self.grid.voxel_zyx(click.ijk) for click in state.clicks if not click.positive]
        clicked = [p for p in state.patches if p.source is None and any(p.box_zyx.contains(v) for v in places)]
        own = dataclasses.replace(state.expansion, ended=expansion.TAKEN_BACK, queue=(), early=())
        state = dataclasses.replace(state, patches=tuple(clicked), expansion=own)
        for old in clicked:
            if any(old.box_zyx.contains(v) and old.mask[_inside(v, old.box_zyx)] for v in wrong):
                new = self._segment(state, old.box_zyx, watch, old.seed_zyx)
                state = dataclasses.replace(state, patches=tuple(new if p is old else p for p in state.patches))
        return state

    def _without_followers(self, state: State, old: Patch, new: Patch) -> State:
        """`state` without what followed from `old` alone: opened patches that agree with it and not with `new`.

        And without what they led to. `new` can lead there again. What another patch leads to as well stays.
        """
        gone: set[Box] = set()
        for child in (patch for patch in state.patches if patch.source == new.box_zyx):
            if _follows(child, old) and not _follows(child, new):
                gone |= {child.box_zyx, *expansion.descendants(child.box_zyx, state.patches)}
        kept = [patch for patch in state.patches if patch.box_zyx not in gone]
        for patch in reversed(state.patches):  # who leads before who follows
            if patch.box_zyx in gone:
                near = (p for p in kept if p is not new and patch.box_zyx in self._neighbours(p))
                other = next((p for p in near if _follows(patch, p)), None)
                if other:
                    kept.insert(0, dataclasses.replace(patch, source=other.box_zyx))
        return dataclasses.replace(state, patches=tuple(kept))

    def _neighbours(self, patch: Patch) -> list[Box]:
        return expansion.neighbours(patch.box_zyx, self.grid.box_zyx)

    def _cut(self, before: State, state: State) -> State:
        """`state` without what its last click, a negative one, has cut off from all positive ones.

        It stays away until somebody clicks in it: a leak that was stopped does not come back another way.
        """
        if not any(patch.source for patch in state.patches):
            return state
        region = Box((0, 0, 0), (0, 0, 0))
        for patch in state.patches:
            region = region.union(patch.box_zyx)
        # A patch that is gone for another reason is no cut.
        there = {patch.box_zyx for patch in state.patches}
        before = dataclasses.replace(before, patches=tuple(p for p in before.patches if p.box_zyx in there))
        clicks = [_inside(self.grid.voxel_zyx(click.ijk), region) for click in state.clicks if click.positive]
        masks = [blend(own.patches, region) > 0.5 for own in (before, state)]
        lost = expansion.severed(*masks, clicks)
        if not lost.any():
            return state
        kept = [(patch, lost[patch.box_zyx.slices(region)]) for patch in state.patches]
        kept = [patch.without(own) if own.any() else patch for patch, own in kept]
        kept = [patch for patch in kept if patch.source is None or patch.mask.any()]
        barred = (*state.expansion.barred, *expansion.bars(lost, masks[1] & ~lost, region))
        own = dataclasses.replace(state.expansion, barred=barred)
        return dataclasses.replace(state, patches=tuple(kept), expansion=own)

    def _segment(
        self, state: State, box_zyx: Box, watch: Stopwatch, seed_zyx: Zyx | None = None, opening: bool = False
    ) -> Patch | None:
        """The network's answer for one patch, from every click inside it and the mask so far.

        None where there is nothing to say: no foreground yet, and only negative clicks.

        Args:
            seed_zyx: the click of P that opened the patch; it counts as long as nobody clicked in the structure there,
                or says beside it that it is none.
            opening: whether P's click is to add to the mask, as a user's does.
        """
        inside: dict[bool, list] = {True: [], False: []}
        for click in state.clicks:
            voxel_zyx = self.grid.voxel_zyx(click.ijk)
            if box_zyx.contains(voxel_zyx):
                inside[click.positive].append(_inside(voxel_zyx, box_zyx))
        adds = opening or bool(inside[True])
        if seed_zyx and not inside[True] and not self._contradicted(seed_zyx, state):
            inside[True].append(_inside(seed_zyx, box_zyx))
        previous = blend(state.patches, box_zyx)
        if not inside[True] and not (previous > 0.5).any():
            return None
        maps = prompt_maps(inside[True], inside[False], torch.from_numpy(previous), box_zyx.shape)
        features = self._features(box_zyx, watch, mirrored=not opening)
        with watch.stage("decode"):
            probability = self._segmenter.decode(features, maps)
        if not adds:  # negative clicks alone take away
            probability = np.minimum(probability, previous)
        # Close to a click, the patch that was segmented from it decides, also near its faces.
        weight = np.maximum(fading(box_zyx, self.grid.box_zyx), maps[:2].amax(0).numpy())
        probability, weight = (lasting(array.astype(np.float16)) for array in (probability, weight))
        return Patch(box_zyx, probability, weight, seed_zyx)

    def _features(self, box_zyx: Box, watch: Stopwatch, mirrored: bool) -> Any:
        """Those of a patch; where a user clicks, its mirrors are worth their time, and not where an expansion comes."""
        with watch.stage("features"):
            return self._segmenter.features(self.volume, box_zyx, lambda: self._hu(box_zyx, watch), mirrored)

    def _hu(self, box_zyx: Box, watch: Stopwatch) -> np.ndarray:
        """A patch in HU; the last few are kept, as P and S look at the same ones."""
        if box_zyx not in self._crops:
            with watch.stage("crop"):
                self._crops[box_zyx] = crop_hu(self.volume, self.grid, box_zyx)
            while len(self._crops) > CROPS:
                self._crops.popitem(last=False)
        self._crops.move_to_end(box_zyx)
        return self._crops[box_zyx]

    def _contradicted(self, seed_zyx: Zyx, state: State) -> bool:
        """Whether a negative click lies so near that P's click would be wrong."""
        negative = (self.grid.voxel_zyx(click.ijk) for click in state.clicks if not click.positive)
        return any(max(abs(a - b) for a, b in zip(voxel, seed_zyx)) < SEED_DISTANCE for voxel in negative)

    # --- its expansion ---------------------------------------------------------------------------------------------

    def _spread(self, state: State, patch: Patch) -> State:
        """`state` with the neighbours that `patch` leads to at the end of the queue; as it is, where that is over."""
        if state.expansion.ended == expansion.TAKEN_BACK:
            return state
        more = expansion.ahead(patch, self.grid.box_zyx, state.patches)
        own = dataclasses.replace(state.expansion, queue=(*state.expansion.queue, *more), ended=expansion.QUIET)
        return dataclasses.replace(state, expansion=own)

    def expanded(self, state: State, watch: Stopwatch, end: float | None) -> State:
        """`state` with its expansion gone on until nothing leads on, or a budget is spent."""
        if not self.expand or not state.clicks:
            return state
        while state.expansion.queue:
            if state.expansion.segmented >= expansion.BUDGET:
                return _ended(state, expansion.PATCHES)
            if end is not None and time.monotonic() >= end:
                return _ended(state, expansion.TIME)
            state = self.step(state, watch)
        return state if state.expansion.ended == expansion.TAKEN_BACK else _ended(state, expansion.QUIET)

    def step(self, state: State, watch: Stopwatch) -> State:
        """The next neighbour that P finds something in; those before it, P looks at together with it."""
        source_box, neighbours = _next_in_queue(state, self._segmenter.batch)
        source, boxes = state.patch(source_box), [patch.box_zyx for patch in state.patches]
        wanted = [box for box in neighbours if source and not expansion.covered(box, boxes)]
        done, opened = len(neighbours), None
        for box, seed_zyx in self._proposals(source, wanted, watch):
            if seed_zyx and self._leads_astray(state, source, box, seed_zyx, watch):
                return self._taken_back(state, watch)
            new = self._opened(state, source, box, seed_zyx, watch) if seed_zyx else None
            state = _counted(state, accepted=new is not None)
            if new is not None:  # the others may be covered by now, and a budget spent
                done, opened = neighbours.index(box) + 1, new
                break
        own = dataclasses.replace(state.expansion, queue=state.expansion.queue[done:])
        state = dataclasses.replace(state, expansion=own)
        if opened is None:
            return state
        state = dataclasses.replace(state, patches=(opened, *state.patches))
        return self._spread(state, opened)

    def _proposals(self, source: Patch, boxes: Sequence[Box], watch: Stopwatch) -> Iterator[tuple[Box, Any]]:
        """The boxes, each with the voxel of the grid where P would click in it, or None."""
        if not boxes:
            return
        hu = [self._hu(box, watch) for box in (source.box_zyx, *boxes)]
        offsets = [_inside(box.start, source.box_zyx) for box in boxes]
        with watch.stage("propose"):
            heatmaps = self._segmenter.propose_batch(hu[0], source.mask, hu[1:], offsets)
        for box, heatmap in zip(boxes, heatmaps):
            place, height = expansion.peak(heatmap)
            found = height >= self._segmenter.info.peak_threshold
            yield box, tuple(a + v for a, v in zip(box.start, place)) if found else None

    def _opened(self, state: State, source: Patch, box: Box, seed_zyx: Zyx, watch: Stopwatch) -> Patch | None:
        """The patch that P's click opens; None where it is none of the structure's."""
        if self._contradicted(seed_zyx, state) or any(own.holds(seed_zyx) for own in state.expansion.barred):
            return None
        new = _without_barred(self._segment(state, box, watch, seed_zyx, opening=True), state)
        others = [own for own in state.patches if own.source or own is source]  # clicks decide elsewhere
        if not new.mask[_inside(seed_zyx, box)] or not agrees(new, others):
            return None
        return _joined(new, state.patches, source.box_zyx)


def _next_in_queue(state: State, most: int) -> tuple[Box, list[Box]]:
    """The first patch that waits, and its neighbours that wait with it, up to a number."""
    source = state.expansion.queue[0][0]
    found = []
    for own, box in state.expansion.queue[:most]:
        if own != source:
            break
        found.append(box)
    return source, found


def _without_barred(patch: Patch, state: State) -> Patch:
    """A patch without what negative clicks have cut off for good."""
    for own in state.expansion.barred:
        if not own.box_zyx.intersection(patch.box_zyx).empty:
            patch = patch.without(own.on(patch.box_zyx))
    return patch


def _joined(patch: Patch, others: Sequence[Patch], source: Box) -> Patch | None:
    """A patch as an expansion opens it from another one, without islands; None where nothing is left of its mask.

    Islands matter here, as masks agree where neither shows anything in their overlap.
    """
    probability = expansion.without_islands(patch.probability, blend(others, patch.box_zyx))
    if not (probability > 0.5).any():
        return None
    return dataclasses.replace(patch, probability=lasting(probability), source=source)


def _follows(child: Patch, patch: Patch) -> bool:
    return expansion.leads_to(patch, child.box_zyx) and agrees(child, [patch])


def _counted(state: State, accepted: bool) -> State:
    own = state.expansion
    own = dataclasses.replace(
        own, proposed=own.proposed + 1, segmented=own.segmented + accepted, rejected=own.rejected + (not accepted)
    )
    return dataclasses.replace(state, expansion=own)


def _ended(state: State, why: str) -> State:
    return dataclasses.replace(state, expansion=dataclasses.replace(state.expansion, ended=why))


def _inside(voxel_zyx: Sequence[int], box_zyx: Box) -> Zyx:
    """A voxel of the grid as one of a box."""
    return tuple(int(v) - a for v, a in zip(voxel_zyx, box_zyx.start))
