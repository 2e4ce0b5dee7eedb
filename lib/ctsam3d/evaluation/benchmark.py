"""How long a click takes, alone in the library, and a step of training, by stage; medians of one run.

Clicks are timed against the dense path: the same weights, patches and memory layout, every layer called as it stands.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.io import Case
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantoms import make_phantom
from ctsam3d.evaluation.timing import Row, in_turn, median_row, peak_memory_mb, seconds_of, wait
from ctsam3d.model.build import PATCH_SIZE, SPACING_MM, build
from ctsam3d.model.modulation import PsapLayer
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.resample import crop_hu
from ctsam3d.segmenter import Segmenter
from ctsam3d.session import Session
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import Run, Source
from ctsam3d.training.step import Rounds, train_step
from ctsam3d.volume import ModelGrid, Volume

FRESH = "fresh"  # weights: drawn at random; they take as long as trained ones
FILLS = (0.05, 0.25, 0.6)  # shares of a patch that the previous mask takes
SHARES = ("data", "clicks", "S", "P", "optimiser")
_STAGES = ("features", "decode")
_MASK_FLOOR = 1e-4  # what a network's answer has where there is nothing


def make_segmenter(
    preset: str, device: str, feedback: int | None = None, seed: int = 0, precision: str = "float32"
) -> tuple[Segmenter, str]:
    """A segmenter of `preset` and what its weights are: the packaged ones that bear its name, else fresh ones.

    Packaged weights bring their own network, which may be an earlier one of the preset.

    Args:
        feedback: passes in which S sees its own answer once more; None: as the weights ask, fresh ones for none.
        precision: of the segmenter; where a fast way stands beside a dense one, both have the same.
    """
    info = checkpoint.load(checkpoint.packaged_path())
    weights = info.version
    if not info.version.startswith(f"{preset}-"):
        torch.manual_seed(seed)
        info, weights = Checkpoint(build(preset), (-500.0, 800.0)), FRESH
    if feedback is not None:
        info = dataclasses.replace(info, feedback=feedback)
    return Segmenter(info, device, precision), weights


@contextmanager
def plain_decoder(network: nn.Module) -> Iterator[None]:
    """While the block runs, the decoder of `network` takes no short way."""
    layers = [module for module in network.modules() if hasattr(module, "plain")]
    for layer in layers:
        layer.plain = True
    try:
        yield
    finally:
        for layer in layers:
            layer.plain = False


def sparse_and_dense(run: Callable, network: nn.Module) -> dict[str, Callable]:
    """`run` as it is, and with the decoder of `network` plain."""

    def dense():
        with plain_decoder(network):
            return run()

    return {"sparse": run, "dense": dense}


# ---- clicks in a session -------------------------------------------------------------------------------------------


def benchmark_session(
    presets: Sequence[str],
    repeats: int,
    device: str,
    feedback: int | None = None,
    seed: int = 0,
    precision: str = "float32",
) -> list[Row]:
    """Time a first click (a new patch) and a next one (in that patch, after its mask) in sessions that do not expand.

    Args:
        precision: of the network on both paths, see `Segmenter`.

    Returns:
        A row a preset, click and path: median seconds of features (crop and encode), decode, the rest, and in all.
    """
    phantom = make_phantom(seed, region="abdomen")
    first = central_voxel_ijk(phantom.labels_ijk == VALUE_OF["liver"])
    clicks = {"first": first, "next": (first[0] + 10, first[1], first[2])}
    rows = []
    for preset in presets:
        segmenter, weights = make_segmenter(preset, device, feedback, seed, precision)

        def run(segmenter=segmenter) -> dict[str, Row]:
            session = segmenter.session(unseen(phantom.volume), expand=False)
            return {name: _timed(session, click) for name, click in clicks.items()}

        measured = in_turn(sparse_and_dense(run, segmenter.network), repeats, segmenter.device)
        for click in clicks:
            for path, runs in measured.items():
                row = {"preset": preset, "weights": weights, "click": click, "path": path}
                row |= median_row([result[click] for result in runs.results])
                rows.append(row | vram("VRAM MB", runs.vram_mb))
    return rows


def central_voxel_ijk(mask_ijk: np.ndarray) -> tuple[int, int, int]:
    """The voxel of a mask that is nearest to its centroid."""
    voxels = np.argwhere(mask_ijk)
    return tuple(int(v) for v in voxels[np.argmin(np.abs(voxels - voxels.mean(axis=0)).sum(axis=1))])


def unseen(volume: Volume) -> Volume:
    """The same scan as a new object, of which a segmenter keeps no features yet."""
    return dataclasses.replace(volume)


def _timed(session: Session, click_ijk) -> dict[str, float]:
    start = time.perf_counter()
    session.click(click_ijk)
    total = time.perf_counter() - start
    stages = {stage: session.seconds.get(stage, 0.0) for stage in _STAGES}
    named = {**stages, "other": total - sum(stages.values()), "total": total}
    return {f"{stage} s": seconds for stage, seconds in named.items()}


def vram(column: str, vram_mb: float) -> Row:
    """A column of a row, where there is a GPU."""
    return {column: vram_mb} if vram_mb else {}


# ---- one decode, with a previous mask of known size ----------------------------------------------------------------


def benchmark_decode(presets: Sequence[str], repeats: int, device: str, seed: int = 0) -> list[Row]:
    """Time `Segmenter.decode` on one patch, without a previous mask and with balls of several sizes as such.

    One pass, whatever the weights ask for: the previous mask of a further one would be the network's answer.

    Returns:
        A row a preset and previous mask: median seconds of both paths, their ratio, in how many layers the sparse path
        was dense too (see `PsapLayer.forward`), and the largest absolute difference between the logits.
    """
    phantom = make_phantom(seed, region="abdomen")
    hu_zyx = _liver_patch_hu(phantom.volume, phantom.labels_ijk)
    rows = []
    for preset in presets:
        segmenter, weights = make_segmenter(preset, device, 0, seed)
        features = segmenter.encode(hu_zyx)
        for fill in (None, *FILLS):
            previous = "none" if fill is None else f"{100 * fill:.0f} %"
            row = {"preset": preset, "weights": weights, "previous mask": previous}
            rows.append(row | _decode_row(segmenter, features, click_prompts(fill), repeats))
    return rows


def _decode_row(segmenter: Segmenter, features: tuple[Tensor, ...], prompts: Tensor, repeats: int) -> Row:
    def run() -> float:
        return seconds_of(lambda: segmenter.decode(features, prompts), segmenter.device)

    measured = in_turn(sparse_and_dense(run, segmenter.network), repeats, segmenter.device)
    seconds = {path: statistics.median(runs.results) for path, runs in measured.items()}
    row: Row = {f"{path} s": value for path, value in seconds.items()}
    row["dense / sparse x"] = seconds["dense"] / seconds["sparse"]
    row |= _compare_logits(segmenter, features, prompts)
    for path, runs in measured.items():
        row |= vram(f"{path} VRAM MB", runs.vram_mb)
    return row


@torch.inference_mode()
def _compare_logits(segmenter: Segmenter, features: tuple[Tensor, ...], prompts: Tensor) -> Row:
    prompts = prompts[None].to(segmenter.device).contiguous(memory_format=torch.channels_last_3d)
    runs = sparse_and_dense(lambda: segmenter.network.decode(features, prompts), segmenter.network)
    with _counting_dense(segmenter.network) as dense_layers:
        sparse = runs["sparse"]()
    difference = float((sparse - runs["dense"]()).abs().max())
    return {"dense layers of sparse": len(dense_layers), "logit difference": difference}


@contextmanager
def _counting_dense(network: nn.Module) -> Iterator[list[PsapLayer]]:
    """The layers that are evaluated by plain convolutions while the block runs."""
    called: list[PsapLayer] = []
    layers = [module for module in network.modules() if isinstance(module, PsapLayer)]

    def counted(layer: PsapLayer, x: Tensor, prompts: Tensor) -> Tensor:
        called.append(layer)
        return PsapLayer.dense(layer, x, prompts)

    for layer in layers:
        layer.dense = partial(counted, layer)
    try:
        yield called
    finally:
        for layer in layers:
            del layer.dense


def _liver_patch_hu(volume: Volume, labels_ijk: np.ndarray) -> np.ndarray:
    grid = ModelGrid.of(volume, SPACING_MM)
    click_zyx = grid.voxel_zyx(central_voxel_ijk(labels_ijk == VALUE_OF["liver"]))
    return crop_hu(volume, grid, grid.patch_zyx(click_zyx, PATCH_SIZE))


def click_prompts(fill: float | None) -> Tensor:
    """Maps (3, D, H, W): a click in the middle, alone or as the last of two after a ball that fills that share."""
    middle = (PATCH_SIZE // 2,) * 3
    size = (PATCH_SIZE,) * 3
    if fill is None:
        return prompt_maps([middle], [], None, size)
    return prompt_maps([middle, (middle[0] + 8, *middle[1:])], [], ball_probability(fill), size)


def ball_probability(fill: float) -> Tensor:
    """A previous mask (D, H, W) as a network answers it: a ball in the middle over `fill` of the patch is above 0.5.

    Its border is soft, over some voxels, and the value outside is small but not zero.
    """
    axis = torch.arange(PATCH_SIZE) - (PATCH_SIZE - 1) / 2
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt()
    radius = distance.flatten().sort().values[round(fill * distance.numel()) - 1]
    return torch.sigmoid(radius + 1e-3 - distance).clamp(_MASK_FLOOR, 1 - _MASK_FLOOR)


# ---- training ------------------------------------------------------------------------------------------------------


def benchmark_training(
    presets: Sequence[str], repeats: int, device: str, batch_size: int = 4, seed: int = 0
) -> list[Row]:
    """Time steps of Algorithm 1 on a phantom, with fresh weights and all augmentation; one unmeasured step warms up.

    Pairs are cut in the training process itself, so that their whole cost shows. P's forward and backward pass are
    timed alone, S's are the rest of the network's.

    Returns:
        A row a preset: preset, median seconds of a step and of one round of one pair, the share of data, clicks, S, P
        and optimiser in the sum of the steps, and the peak memory in GB: the GPU's, or on a CPU the process's so far.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        volume = VolumeCache(Path(folder) / "volumes").get(_phantom_case(seed))
        for preset in presets:
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            config = TrainingConfig(preset=preset, batch_size=batch_size, epochs=1, samples_per_volume=1000, seed=seed)
            run = Run([Source([volume])], config, Path(folder) / preset, device=device)
            steps = [_timed_step(run, run.loader(workers=0), repeat) for repeat in range(repeats + 1)][1:]
            totals = [sum(seconds[name] for name in SHARES) for seconds in steps]
            row: Row = {"preset": preset, "step s": statistics.median(totals)}
            row["pair-round s"] = row["step s"] / (config.rounds * batch_size)
            row |= {f"{name} %": 100 * sum(seconds[name] for seconds in steps) / sum(totals) for name in SHARES}
            rows.append({**row, "peak memory GB": peak_memory_mb(torch.device(device)) / 1000})
    return rows


def _phantom_case(seed: int) -> Case:
    phantom = make_phantom(seed, region="abdomen")
    masks = {NAMES[v - 1]: (lambda v=v: phantom.labels_ijk == v) for v in np.unique(phantom.labels_ijk) if v}
    return Case(f"phantom_{seed}", phantom.volume, masks)


def _timed_step(run: Run, loader, step: int) -> dict[str, float]:
    """Seconds of each of `SHARES` in one step of a run."""
    seconds = dict.fromkeys((*SHARES, "network"), 0.0)

    @contextmanager
    def stage(name: str):
        wait(run.device)
        start = time.perf_counter()
        yield
        wait(run.device)
        seconds[name] += time.perf_counter() - start

    with stage("data"):
        batches = loader.dataset[step]
    train_step(run.pair_network, run.optimiser, batches, run.config, run.device, stage)
    with stage("P"):
        for batch in batches:
            own = Rounds(batch, run.config, run.device)
            heatmaps = run.pair_network.propose(own.image, own.target.float(), own.source, own.neighbour, own.offset)
            heatmaps.square().mean().backward()
    seconds["P"] *= run.config.rounds
    seconds["S"] = seconds.pop("network") - seconds["P"]
    return seconds
