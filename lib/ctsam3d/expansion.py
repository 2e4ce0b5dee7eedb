"""From one patch to the next: where a structure goes on, and how patches are stitched into one mask.

All boxes, places and arrays are on the model grid, axis order zyx.
"""

from __future__ import annotations

import dataclasses
import itertools
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from scipy import ndimage

from ctsam3d.volume import Box, Click

Zyx = tuple[int, int, int]

STRIDE = 40  # voxels between the centres of a patch and its neighbours
SLIVER = 16  # voxels that a step leaves to the scan's edge at least, or else it goes there
REACH = 16  # voxels from the faces towards a neighbour within which a mask must come for the neighbour to be looked at
COVERED = 0.9  # of a patch; one that others cover so far tells nothing new
AGREEMENT = 0.7  # DSC that a new patch's mask must have with those of the opened ones that it overlaps
BLEND_VOXELS = 8  # over this depth from its faces a patch fades into the patches below it
BARRED_MARGIN = 3  # voxels around what was cut off that no expansion fills, as it would find it a little larger
BUDGET = 64  # patches that one click may open
DEEP = 8  # voxels from the mask's border, more than in most vessels; so deep, a negative click is against a whole mass

QUIET, PATCHES, TIME, OFF, TAKEN_BACK = "quiet", "patch budget", "time budget", "off", "taken back"


@dataclass(frozen=True, eq=False)
class Patch:
    """What the network said of one patch.

    Attributes:
        probability: float16 (D, H, W).
        weight: float16 (D, H, W), how far this patch covers the older ones below it.
        seed_zyx: of a patch that an expansion opened: the click that P put in it.
        source: of such a patch, until somebody clicks in it: the box of the patch that led to it.
    """

    box_zyx: Box
    probability: np.ndarray
    weight: np.ndarray
    seed_zyx: Zyx | None = None
    source: Box | None = None

    @property
    def mask(self) -> np.ndarray:
        """Bool (D, H, W)."""
        return self.probability > 0.5

    def without(self, voxels: np.ndarray) -> Patch:
        """The patch with probability 0 at `voxels`, bool (D, H, W)."""
        return dataclasses.replace(self, probability=lasting(np.where(voxels, np.float16(0), self.probability)))


def lasting(array: np.ndarray) -> np.ndarray:
    """A copy in memory of its own, which goes back to the system with the array.

    Patches live for hours among the network's short-lived arrays. In one heap with those they would leave holes that
    nothing fits into, and a server would grow for as long as it runs.
    """
    out = np.frombuffer(mmap.mmap(-1, max(1, array.nbytes)), array.dtype, array.size).reshape(array.shape)
    out[...] = array
    return out


@dataclass(frozen=True, eq=False)
class Barred:
    """Voxels that a negative click has cut off: no expansion comes back there. Bool, over a box."""

    box_zyx: Box
    voxels: np.ndarray

    def holds(self, voxel_zyx: Zyx) -> bool:
        inside = self.box_zyx.contains(voxel_zyx)
        return inside and bool(self.voxels[tuple(v - a for v, a in zip(voxel_zyx, self.box_zyx.start))])

    def on(self, box_zyx: Box) -> np.ndarray:
        """Bool (D, H, W) over another box."""
        out, shared = np.zeros(box_zyx.shape, bool), self.box_zyx.intersection(box_zyx)
        if not shared.empty:
            out[shared.slices(box_zyx)] = self.voxels[shared.slices(self.box_zyx)]
        return out


@dataclass(frozen=True)
class Expansion:
    """Where the spreading of a click stands.

    Attributes:
        proposed, segmented, rejected: neighbours that P looked at since the last click, of these the ones that joined
            the mask, and the others.
        ended: why it stopped: `QUIET`, nothing leads on; `PATCHES` or `TIME`, a budget; `OFF`, it was not asked for;
            `TAKEN_BACK`, a negative click said that it had gone astray, and no later click spreads.
        queue: pairs of boxes still to look at: a patch of the mask and its neighbour.
        barred: what negative clicks have cut off.
        early: negative clicks that came while it was not at its end; it may still lead to them.
    """

    proposed: int = 0
    segmented: int = 0
    rejected: int = 0
    ended: str = OFF
    queue: tuple[tuple[Box, Box], ...] = ()
    barred: tuple[Barred, ...] = ()
    early: tuple[Click, ...] = ()


# ---- where next ----------------------------------------------------------------------------------------------------


def neighbours(box_zyx: Box, grid_box_zyx: Box, stride: int = STRIDE) -> list[Box]:
    """The patches beside one, up to 26, each `stride` voxels away along one, two or three axes; the nearest first.

    Near the scan's edge a step ends there: no patch reaches beyond, and none leaves a sliver. What that brings back to
    the patch itself is left out.
    """
    steps = [
        {s: _moved(a, n, low, high, s * stride) for s in (0, -1, 1)}
        for a, n, low, high in zip(box_zyx.start, box_zyx.shape, grid_box_zyx.start, grid_box_zyx.stop)
    ]
    starts = dict.fromkeys(itertools.product(*(dict.fromkeys(axis.values()) for axis in steps)))
    boxes = (Box(start, tuple(a + n for a, n in zip(start, box_zyx.shape))) for start in starts)
    return sorted((box for box in boxes if box != box_zyx), key=lambda box: _axes_aside(box, box_zyx))


def _moved(start: int, size: int, low: int, high: int, step: int) -> int:
    """Where a patch that is to move by `step` along an axis begins."""
    if step == 0 or high - low <= size:
        return start
    start += step
    return low if start - low < SLIVER else high - size if high - size - start < SLIVER else start


def _axes_aside(one: Box, other: Box) -> int:
    return sum(a != b for a, b in zip(one.start, other.start))


def leads_to(patch: Patch, neighbour: Box, reach: int = REACH) -> bool:
    """Whether a patch's mask comes near all the faces behind which a neighbour lies.

    As `REACH` is less than what neighbours share, such a neighbour holds some of the mask: none lies in the air alone.
    """
    near = []
    for a, b, n in zip(patch.box_zyx.start, neighbour.start, patch.box_zyx.shape):
        near.append(slice(n - reach, n) if b > a else slice(0, reach) if b < a else slice(None))
    return bool(patch.mask[tuple(near)].any())


def ahead(patch: Patch, grid_box_zyx: Box, patches: Iterable[Patch]) -> list[tuple[Box, Box]]:
    """The neighbours that a patch leads to and that are not there yet, as pairs (patch, neighbour), nearest first."""
    boxes = [own.box_zyx for own in patches]
    return [
        (patch.box_zyx, box)
        for box in neighbours(patch.box_zyx, grid_box_zyx)
        if leads_to(patch, box) and not covered(box, boxes)
    ]


def covered(box: Box, boxes: Iterable[Box]) -> bool:
    """Whether `boxes` together hold so much of `box` that it tells nothing new."""
    held = np.zeros(box.shape, bool)
    for other in boxes:
        held[box.intersection(other).slices(box)] = True
    return bool(held.mean() > COVERED)


def peak(heatmap: np.ndarray) -> tuple[Zyx, float]:
    """Where P's heatmap (D, H, W) is highest, as a voxel of its patch, and how high."""
    place = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    return tuple(int(v) for v in place), float(heatmap[place])


# ---- what joins the mask -------------------------------------------------------------------------------------------


def agrees(patch: Patch, others: Sequence[Patch]) -> bool:
    """Whether a patch's mask is like that of `others` where they overlap, apart from the uncertain faces.

    Where none has anything, they are alike.
    """
    inner = patch.box_zyx.grown(-BLEND_VOXELS)
    both = total = 0
    for other in others:
        shared = inner.intersection(other.box_zyx.grown(-BLEND_VOXELS))
        if not shared.empty:
            one, two = patch.mask[shared.slices(patch.box_zyx)], other.mask[shared.slices(other.box_zyx)]
            both, total = both + 2 * int((one & two).sum()), total + int(one.sum()) + int(two.sum())
    return both >= AGREEMENT * total


def without_islands(probability: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """`probability` (D, H, W), zero in the parts of its mask that share no voxel with the previous mask.

    An expansion follows a structure and does not leap.
    """
    parts, count = _parts(probability > 0.5)
    kept = np.zeros(count + 1, bool)
    kept[parts[previous > 0.5]] = True
    kept[0] = True
    return np.where(kept[parts], probability, np.zeros_like(probability))


def descendants(box: Box, patches: Iterable[Patch]) -> set[Box]:
    """The boxes of the patches that an expansion reached through `box`."""
    led_to: dict[Box, list[Box]] = {}
    for patch in patches:
        if patch.source:
            led_to.setdefault(patch.source, []).append(patch.box_zyx)
    found, front = set(), [box]
    while front:
        new = [child for child in led_to.get(front.pop(), ()) if child not in found]
        found.update(new)
        front += new
    return found - {box}


def severed(before: np.ndarray, after: np.ndarray, clicks_zyx: Sequence[Zyx]) -> np.ndarray:
    """The parts of a mask that hung together with a positive click before, and do no longer; bool (D, H, W).

    Nothing, where the network has taken a positive click itself out of the mask: it does not say then which part is
    the structure.

    Args:
        before, after: the mask before and after a negative click, bool (D, H, W).
        clicks_zyx: the positive clicks.
    """
    clicks = [click for click in clicks_zyx if before[click]]
    if not clicks or not all(after[click] for click in clicks):
        return np.zeros_like(after)
    held = []
    for mask in (before, after):
        parts, count = _parts(mask)
        kept = np.zeros(count + 1, bool)
        kept[[parts[click] for click in clicks]] = True
        held.append((parts, kept))
    (parts, kept), (now, still) = held
    lost = np.zeros(len(still), bool)
    lost[now[kept[parts]]] = True
    lost &= ~still
    lost[0] = False
    return lost[now]


def depth(mask: np.ndarray, voxel_zyx: Zyx) -> float:
    """How many voxels a voxel lies from the nearest one outside of a mask, bool (D, H, W); 0 outside of it."""
    if mask.all():
        return float(max(mask.shape))
    return float(edt.edt(np.ascontiguousarray(mask))[voxel_zyx])


def bars(lost: np.ndarray, kept: np.ndarray, box_zyx: Box) -> list[Barred]:
    """What stays away after a cut: each lost part with a margin of `BARRED_MARGIN`, but nothing of the mask.

    Args:
        lost, kept: bool (D, H, W) over `box_zyx`: what was cut off, and the mask without it.
    """
    parts, count = _parts(lost)
    found = []
    for number, place in enumerate(ndimage.find_objects(parts, count), start=1):
        wide = tuple(slice(max(0, a.start - BARRED_MARGIN), a.stop + BARRED_MARGIN) for a in place)
        voxels = ndimage.binary_dilation(parts[wide] == number, iterations=BARRED_MARGIN) & ~kept[wide]
        start = tuple(a.start + b for a, b in zip(wide, box_zyx.start))
        found.append(Barred(Box(start, tuple(a + n for a, n in zip(start, voxels.shape))), voxels))
    return found


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of the connected part of each voxel, 0 outside, and how many there are; by faces, edges, corners."""
    return cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26, return_N=True)


# ---- stitching -----------------------------------------------------------------------------------------------------


def blend(patches: Sequence[Patch], box_zyx: Box) -> np.ndarray:
    """The patches laid over each other on a box of the model grid, float32; 0 where there is none.

    Each patch covers the earlier ones by its weight; where it is the first, it counts in full. Equal values stay equal.
    """
    out = np.zeros(box_zyx.shape, np.float32)
    covered_before = np.zeros(box_zyx.shape, bool)
    for patch in patches:
        shared = patch.box_zyx.intersection(box_zyx)
        if shared.empty:
            continue
        here, there = shared.slices(box_zyx), shared.slices(patch.box_zyx)
        new, old = patch.probability[there].astype(np.float32), out[here]
        mixed = old + patch.weight[there].astype(np.float32) * (new - old)
        out[here] = np.where(covered_before[here], mixed, new)
        covered_before[here] = True
    return out


def fading(box_zyx: Box, grid_zyx: Box) -> np.ndarray:
    """A patch's weight (D, H, W): 1 inside, falling towards its faces, but not where the scan ends there anyway."""
    weight = np.ones(box_zyx.shape, np.float32)
    for axis, n in enumerate(box_zyx.shape):
        ramp, index = np.ones(n, np.float32), np.arange(n)
        if box_zyx.start[axis] > grid_zyx.start[axis]:
            ramp = np.minimum(ramp, (index + 1) / (BLEND_VOXELS + 1))
        if box_zyx.stop[axis] < grid_zyx.stop[axis]:
            ramp = np.minimum(ramp, (n - index) / (BLEND_VOXELS + 1))
        weight = np.minimum(weight, ramp.reshape([-1 if a == axis else 1 for a in range(3)]))
    return weight
