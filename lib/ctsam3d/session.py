"""One structure in one scan, from clicks to mask: the same object serves users, evaluation and validation.

`Segmenter` holds the network, `Session` the clicks on one structure. Clicks come in as voxel indices of the file (ijk);
patches and probabilities live on the model grid (zyx); the mask is kept on the scan's own grid.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ctsam3d import checkpoint
from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.resample import crop_hu, probability_on_scan, scale_hu
from ctsam3d.volume import Box, Click, ModelGrid, Volume, check_click_ijk

BLEND_VOXELS = 8  # over this depth from its faces a patch fades into the patches below it
CACHED_FEATURES = 16  # patches of a session whose encoder features are kept


def load(weights: str | os.PathLike = "default", device: str = "cpu") -> Segmenter:
    """A segmenter from packaged weights (by name) or from a .safetensors file.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights that cannot be used, or a device that is not there.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu' or 'cuda[:n]', got {device!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device must be 'cpu' or an available 'cuda[:n]', got {str(device)!r}")
    name = os.fspath(weights)
    path = name if name.endswith(".safetensors") else checkpoint.packaged_path(name)
    return Segmenter(checkpoint.load(path), device)


class Segmenter:
    """A network on a device, with the preprocessing that its weights ask for.

    Attributes:
        info: the checkpoint: version, HU window, spacing, labels.
    """

    def __init__(self, info: checkpoint.Checkpoint, device: torch.device | str = "cpu"):
        self.info = info
        self.device = torch.device(device)
        self.network = info.network.to(self.device, memory_format=torch.channels_last_3d).eval()

    def session(self, volume: Volume, expand: bool = True) -> Session:
        """A new structure to click in `volume`.

        Args:
            expand: whether a click may spread to neighbouring patches. This version segments the clicked patch alone
                either way.
        """
        return Session(self, volume, expand)

    @torch.inference_mode()
    def encode(self, hu_zyx: np.ndarray) -> tuple[Tensor, ...]:
        """Features of a patch (D, H, W) in HU."""
        return self.network.encode(self._on_device(torch.from_numpy(scale_hu(hu_zyx, self.info.hu_window))[None, None]))

    @torch.inference_mode()
    def decode(self, features: tuple[Tensor, ...], prompts: Tensor) -> np.ndarray:
        """Probability (D, H, W), float32, from features and prompt maps (3, D, H, W).

        With as many further passes as the weights ask for, each with the answer before it as previous mask.
        """
        prompts = self._on_device(prompts[None])
        for _ in range(1 + self.info.feedback):
            answer = torch.sigmoid(self.network.decode(features, prompts).float())  # (1, 1, D, H, W)
            prompts = self._on_device(torch.cat([prompts[:, :2], answer], dim=1))
        return answer[0, 0].cpu().numpy()

    @torch.inference_mode()
    def propose(
        self,
        hu_zyx: np.ndarray,
        mask_zyx: np.ndarray,
        neighbour_hu_zyx: np.ndarray,
        offset_zyx: tuple[int, int, int],
    ) -> np.ndarray:
        """P's raw heatmap (D, H, W) of a neighbour, from a patch in HU, its bool mask, and the neighbour in HU.

        Args:
            offset_zyx: voxels from the patch's first one to the neighbour's.
        """
        scaled = [scale_hu(hu, self.info.hu_window) for hu in (hu_zyx, neighbour_hu_zyx)]
        arrays = (scaled[0], mask_zyx.astype(np.float32), scaled[1])
        tensors = (self._on_device(torch.from_numpy(array)[None, None]) for array in arrays)
        heatmap = self.network.propose(*tensors, torch.tensor([offset_zyx]))
        return heatmap[0, 0].float().cpu().numpy()

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device).contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True, eq=False)
class Patch:
    """What the network said of one patch.

    Attributes:
        probability: float16 (D, H, W).
        weight: float16 (D, H, W), how far this patch covers the older ones below it.
    """

    box_zyx: Box
    probability: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class State:
    """A session after some clicks; never changed, so that undo is going back to an earlier one.

    Attributes:
        clicks: in the order in which they were run.
        patches: the latest on top, that is, last.
    """

    clicks: tuple[Click, ...] = ()
    patches: tuple[Patch, ...] = ()


@dataclass
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Session:
    """The clicks on one structure and the mask they give.

    The mask depends on the clicks and their order alone. A click that cannot be used raises and changes nothing.
    Not safe for use by several threads at once.

    Attributes:
        seconds: per stage (crop, encode, decode, write) of the last call that changed the clicks.
    """

    def __init__(self, segmenter: Segmenter, volume: Volume, expand: bool = True):
        self.volume, self.expand = volume, bool(expand)
        self.grid = ModelGrid.of(volume, segmenter.info.spacing_mm)
        self.seconds: dict[str, float] = {}
        self._segmenter = segmenter
        self._history = [State()]
        self._position = 0
        self._mask = np.zeros(volume.shape_ijk, np.uint8)
        self._features: OrderedDict[Box, tuple[Tensor, ...]] = OrderedDict()

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
    def mask_box_ijk(self) -> Box:
        """A box of the scan outside which the mask is empty."""
        box = Box((0, 0, 0), (0, 0, 0))
        for patch in self.state.patches:
            box = box.union(self.grid.box_ijk_around(patch.box_zyx, self.volume.shape_ijk))
        return box

    def mask(self) -> np.ndarray:
        """The mask on the scan's grid, uint8 (I, J, K) of 0 and 1; a copy."""
        return self._mask.copy()

    def probability(self, box_ijk: Box) -> np.ndarray:
        """Foreground probability on a box of the scan, float32; exactly 1 and 0 at clicked voxels.

        Raises:
            ValueError: the box reaches beyond the scan.
        """
        if box_ijk.intersection(self.volume.box_ijk) != box_ijk:
            raise ValueError(f"box_ijk {box_ijk} must lie inside the volume {self.volume.shape_ijk}")
        if box_ijk.empty:
            return np.zeros(box_ijk.shape, np.float32)
        return self._probability(self.state, box_ijk)

    # --- what a user does ------------------------------------------------------------------------------------------

    def click(self, ijk, positive: bool = True) -> None:
        """Run one click.

        Args:
            ijk: voxel index in the file's own array order.
            positive: whether the voxel belongs to the structure.

        Raises:
            TypeError, ValueError: not a voxel of the scan, or already clicked with the other sign.
        """
        click = Click(check_click_ijk(ijk, self.volume.shape_ijk), bool(positive))
        _check_signs([*self.clicks, click])
        self._run([click], self._position)

    def set_clicks(self, positive: Sequence, negative: Sequence = ()) -> None:
        """Make the clicks in force those of the two lists.

        Lists that extend the present ones run the new clicks only. Otherwise the session goes back to the longest
        state that they share with what was run before, and goes on from there: positives, then negatives, each in the
        order of its list.

        Raises:
            TypeError, ValueError: a click is no voxel of the scan, or a voxel stands in both lists.
        """
        lists = {True: _checked(positive, self.volume, "positive"), False: _checked(negative, self.volume, "negative")}
        _check_signs([*lists[True], *lists[False]])
        position = self._shared_position(lists)
        done = self._history[position].clicks
        new = [c for sign in (True, False) for c in lists[sign][sum(d.positive is sign for d in done) :]]
        self._run(new, position)

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

    def _run(self, new: Sequence[Click], position: int) -> None:
        """Go to a state of the history and run new clicks from there; all or nothing."""
        watch = _Stopwatch()
        states = [self._history[position]]
        for click in new:
            states.append(self._after(states[-1], click, watch))
        with watch.stage("write"):
            changes = self._changes(self.state, states[-1])
            for box_ijk, mask in changes:
                self._mask[box_ijk.slices()] = mask
        if new:
            self._history[position + 1 :] = states[1:]
        self._position = position + len(new)
        self.seconds = watch.seconds

    def _after(self, state: State, click: Click, watch: _Stopwatch) -> State:
        """The state after one more click: its patch segmented anew and put on top."""
        voxel_zyx = self.grid.voxel_zyx(click.ijk)
        holding = [p for p in state.patches if p.box_zyx.contains(voxel_zyx)]
        refined = max(holding, key=lambda p: p.box_zyx.depth(voxel_zyx), default=None)
        box = refined.box_zyx if refined else self.grid.patch_zyx(voxel_zyx, PATCH_SIZE)
        clicks = (*state.clicks, click)
        patch = self._segment(box, clicks, blend(state.patches, box), watch)
        if patch is None:
            return State(clicks, state.patches)
        return State(clicks, (*(p for p in state.patches if p is not refined), patch))

    def _segment(self, box_zyx: Box, clicks: Sequence[Click], previous: np.ndarray, watch: _Stopwatch) -> Patch | None:
        """The network's answer for one patch, from every click inside it and the mask so far.

        None where there is nothing to say: no foreground yet, and only negative clicks.
        """
        inside: dict[bool, list] = {True: [], False: []}
        for click in clicks:
            voxel_zyx = self.grid.voxel_zyx(click.ijk)
            if box_zyx.contains(voxel_zyx):
                inside[click.positive].append(tuple(v - a for v, a in zip(voxel_zyx, box_zyx.start)))
        if not inside[True] and not (previous > 0.5).any():
            return None
        maps = prompt_maps(inside[True], inside[False], torch.from_numpy(previous), box_zyx.shape)
        features = self._encoded(box_zyx, watch)
        with watch.stage("decode"):
            probability = self._segmenter.decode(features, maps)
        if not inside[True]:  # negative clicks alone take away, they never add
            probability = np.minimum(probability, previous)
        # Close to a click, the patch that was segmented from it decides, also near its faces.
        weight = np.maximum(_fading(box_zyx, self.grid.box_zyx), maps[:2].amax(0).numpy())
        return Patch(box_zyx, probability.astype(np.float16), weight.astype(np.float16))

    def _encoded(self, box_zyx: Box, watch: _Stopwatch) -> tuple[Tensor, ...]:
        if box_zyx not in self._features:
            with watch.stage("crop"):
                hu = crop_hu(self.volume, self.grid, box_zyx)
            with watch.stage("encode"):
                self._features[box_zyx] = self._segmenter.encode(hu)
            while len(self._features) > CACHED_FEATURES:
                self._features.popitem(last=False)
        self._features.move_to_end(box_zyx)
        return self._features[box_zyx]

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


def blend(patches: Sequence[Patch], box_zyx: Box) -> np.ndarray:
    """The patches laid over each other on a box of the model grid, float32; 0 where there is none.

    Each patch covers the earlier ones by its weight; where it is the first, it counts in full. Equal values stay equal.
    """
    out = np.zeros(box_zyx.shape, np.float32)
    covered = np.zeros(box_zyx.shape, bool)
    for patch in patches:
        shared = patch.box_zyx.intersection(box_zyx)
        if shared.empty:
            continue
        here, there = shared.slices(box_zyx), shared.slices(patch.box_zyx)
        new, old = patch.probability[there].astype(np.float32), out[here]
        mixed = old + patch.weight[there].astype(np.float32) * (new - old)
        out[here] = np.where(covered[here], mixed, new)
        covered[here] = True
    return out


def _fading(box_zyx: Box, grid_zyx: Box) -> np.ndarray:
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
