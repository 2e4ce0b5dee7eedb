"""How long the first ring of an expansion takes, beside two plainer ways; medians of one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.evaluation.benchmark import (
    FRESH,
    central_voxel_ijk,
    click_prompts,
    make_segmenter,
    sparse_and_dense,
    unseen,
    vram,
)
from ctsam3d.evaluation.timing import Row, in_turn, median_row, seconds_of
from ctsam3d.expansion import QUIET, Patch, neighbours, peak
from ctsam3d.model.build import PATCH_SIZE, SPACING_MM
from ctsam3d.patchwork import Patchwork, State
from ctsam3d.resample import crop_hu, crop_labels
from ctsam3d.segmenter import Segmenter
from ctsam3d.session import Session
from ctsam3d.training.step import heatmap_target
from ctsam3d.volume import Box, ModelGrid, Volume

STRUCTURES = ("liver", "aorta")  # one that fills the neighbours on all sides, one that passes through few


def benchmark_expansion(
    presets: Sequence[str], repeats: int, device: str, feedback: int | None = None, seed: int = 0
) -> list[Row]:
    """Time a click in the liver, and one in the aorta, and the first ring of its expansion, beside two plainer ways.

    The first plain way asks P about every neighbour, also where the mask does not come near it, one at a time, and
    runs S dense. The second runs S, dense, on every neighbour without asking P. With fresh weights S and P compute what
    they would, and the phantom's truth then takes the place of their answers, as no neighbour would join noise. The
    session computes in what is fastest here (see `Segmenter`), both plain ways in float32, as the published code does.

    Returns:
        A row a preset, structure and way: median seconds of the click and of the ring, how many neighbours the way
        looked at, how many joined the mask, and how many voxels of the mask differ from the session's.
    """
    phantom = make_phantom(seed, region="abdomen")
    rows = []
    for preset in presets:
        segmenter, weights = make_segmenter(preset, device, feedback, seed, precision="auto")
        for structure in STRUCTURES:
            about = {"preset": preset, "weights": weights, "structure": structure}
            mask_ijk = phantom.labels_ijk == VALUE_OF[structure]
            truth_ijk = mask_ijk if weights == FRESH else None
            ways = _ring_ways(segmenter, phantom.volume, central_voxel_ijk(mask_ijk), truth_ijk)
            rows += [about | row for row in _expansion_rows(ways, segmenter.device, repeats)]
    return rows


def _ring_ways(segmenter: Segmenter, volume: Volume, click_ijk, truth_ijk: np.ndarray | None) -> dict[str, Callable]:
    alone = Segmenter(segmenter.info, segmenter.device, precision="float32")
    alone.batch = 1
    truth = _Truth(truth_ijk, ModelGrid.of(volume, SPACING_MM)) if truth_ijk is not None else None

    def ring(segmenter: Segmenter, every: bool) -> dict:
        session = Session(segmenter, unseen(volume))
        session._patchwork = _RingPatchwork(segmenter, session.volume, session.grid, every, truth)
        return _ring(session, click_ijk)

    dense = {
        "every neighbour by P, one by one, S dense": lambda: ring(alone, every=True),
        "every neighbour by S, dense": lambda: _segment_neighbours(alone, volume, click_ijk),
    }
    dense = {way: sparse_and_dense(run, alone.network)["dense"] for way, run in dense.items()}
    return {"session": lambda: ring(segmenter, every=False), **dense}


def _expansion_rows(ways: dict[str, Callable], device: torch.device, repeats: int) -> list[Row]:
    measured = in_turn(ways, repeats, device)
    expected = measured["session"].results[-1]["mask"]
    rows = []
    for way, runs in measured.items():
        row: Row = {"way": way, **median_row([{k: v for k, v in r.items() if k != "mask"} for r in runs.results])}
        if "mask" in runs.results[-1]:
            different = np.count_nonzero(runs.results[-1]["mask"] != expected)
            row["mask voxels that differ %"] = 100 * different / max(1, np.count_nonzero(expected))
        rows.append(row | vram("VRAM MB", runs.vram_mb))
    return rows


class _Truth:
    """What S and P should answer; each answer is made once, in the round that warms up, and costs nothing later."""

    def __init__(self, truth_ijk: np.ndarray, grid: ModelGrid):
        self._truth_ijk, self._grid = truth_ijk, grid
        self._masks: dict[Box, np.ndarray] = {}
        self._clicks: dict[Box, tuple[int, int, int] | None] = {}

    def mask(self, box_zyx: Box) -> np.ndarray:
        """Float16 (D, H, W) of 0 and 1."""
        if box_zyx not in self._masks:
            self._masks[box_zyx] = crop_labels(self._truth_ijk, self._grid, box_zyx).astype(np.float16)
        return self._masks[box_zyx]

    def click(self, box_zyx: Box) -> tuple[int, int, int] | None:
        """A voxel of the grid; None where a box has nothing to click."""
        if box_zyx not in self._clicks:
            place, height = peak(heatmap_target(self.mask(box_zyx) > 0).numpy())
            found = tuple(a + v for a, v in zip(box_zyx.start, place))
            self._clicks[box_zyx] = found if height > 0 else None
        return self._clicks[box_zyx]


class _RingPatchwork(Patchwork):
    """What works in a session for `benchmark_expansion`.

    Args:
        every: ask P about all neighbours of a patch, wherever its mask ends.
        truth: takes the place of what S, and P where it clicks, have computed; None to leave their answers.
    """

    def __init__(self, segmenter, volume: Volume, grid: ModelGrid, every: bool, truth: _Truth | None):
        super().__init__(segmenter, volume, grid, expand=True)
        self._every, self._truth = every, truth

    def _spread(self, state: State, patch: Patch) -> State:
        if not self._every:
            return super()._spread(state, patch)
        more = [(patch.box_zyx, box) for box in neighbours(patch.box_zyx, self.grid.box_zyx)]
        own = dataclasses.replace(state.expansion, queue=(*state.expansion.queue, *more), ended=QUIET)
        return dataclasses.replace(state, expansion=own)

    def _segment(self, state: State, box_zyx: Box, *arguments, **options) -> Patch | None:
        patch = super()._segment(state, box_zyx, *arguments, **options)
        return patch if self._truth is None else dataclasses.replace(patch, probability=self._truth.mask(box_zyx))

    def _proposals(self, source: Patch, boxes: Sequence[Box], watch) -> Iterator[tuple[Box, tuple | None]]:
        for box, seed_zyx in super()._proposals(source, boxes, watch):
            yield box, seed_zyx if self._truth is None else self._truth.click(box)


def _ring(session: Session, click_ijk) -> dict:
    """Seconds of a click and of one ring around its patch, the neighbours looked at and joined, and the mask."""
    start = time.perf_counter()
    session.click(click_ijk, seconds=0)  # no time to expand
    clicked = time.perf_counter()
    patch = session.state.patches[-1].box_zyx
    while session.expanding and session.expansion.queue[0][0] == patch:
        session.go_on(seconds=0)  # the next neighbours; what they lead to queues behind the ring
    seconds = {"click s": clicked - start, "ring s": time.perf_counter() - clicked}
    counts = {"looked at": session.expansion.proposed, "joined": session.expansion.segmented}
    return {**seconds, **counts, "mask": session.mask()}


def _segment_neighbours(segmenter: Segmenter, volume: Volume, click_ijk) -> dict:
    """Seconds of cropping, encoding and decoding each neighbour of a clicked patch."""
    grid = ModelGrid.of(volume, SPACING_MM)
    boxes = neighbours(grid.patch_zyx(grid.voxel_zyx(click_ijk), PATCH_SIZE), grid.box_zyx)
    prompts = click_prompts(None)

    def run() -> None:
        for box in boxes:
            segmenter.decode(segmenter.encode(crop_hu(volume, grid, box)), prompts)

    return {"ring s": seconds_of(run, segmenter.device), "looked at": len(boxes)}
