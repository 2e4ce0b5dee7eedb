"""How well P carries a click to the patches beside it: its peak in the structure, and low where there is none."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.clicks import first_click, next_click
from ctsam3d.data.files import atomic_path
from ctsam3d.data.io import Case, read_case
from ctsam3d.evaluation import find_cases
from ctsam3d.expansion import STRIDE, neighbours, peak
from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.resample import crop_hu, crop_labels
from ctsam3d.segmenter import Segmenter, load
from ctsam3d.volume import Box, ModelGrid

HOLDS = 200  # model voxels (0.7 ml) of the structure from which on a neighbour holds it


@dataclass(frozen=True)
class Proposal:
    """P's answer for one neighbour of one patch.

    Attributes:
        steps: number of axes along which the neighbour lies aside, 1 to 3.
        voxels: of the structure in the neighbour.
        peak: height of the heatmap's peak.
        hit: whether the peak lies in the structure.
    """

    case: str
    structure: str
    seed: int
    steps: int
    voxels: int
    peak: float
    hit: bool


def propose_around(
    segmenter: Segmenter,
    case: Case,
    structures: Sequence[str],
    seeds: Sequence[int],
    stride: int = STRIDE,
    clicks: int = 0,
) -> list[Proposal]:
    """P's answers for all neighbours of a patch around a random voxel of each structure.

    Args:
        clicks: so many simulated clicks make the patch's mask; 0 for the true one.
    """
    grid, found = ModelGrid.of(case.volume, segmenter.info.spacing_mm), []
    for structure in structures:
        target = crop_labels(case.mask(structure).astype(np.uint8), grid, grid.box_zyx) > 0
        places = np.argwhere(target)
        for seed in seeds if len(places) else ():
            rng = np.random.default_rng([seed, zlib.crc32(f"{case.name}/{structure}".encode())])
            box = grid.patch_zyx(tuple(int(v) for v in places[rng.integers(len(places))]), PATCH_SIZE)
            mask = _mask(segmenter, case, grid, box, target, clicks, rng)
            found += _proposals(segmenter, case, grid, box, mask, target, (case.name, structure, seed), stride)
    return found


def _proposals(segmenter, case, grid, box, mask, target, key, stride) -> Iterable[Proposal]:
    hu = crop_hu(case.volume, grid, box)
    for neighbour in neighbours(box, grid.box_zyx, stride):
        offset = tuple(b - a for a, b in zip(box.start, neighbour.start))
        heatmap = segmenter.propose(hu, mask, crop_hu(case.volume, grid, neighbour), offset)
        place, height = peak(heatmap)
        held = _crop(target, neighbour)
        steps = sum(a != b for a, b in zip(neighbour.start, box.start))
        yield Proposal(*key, steps, int(held.sum()), height, bool(held[place]))


def _mask(segmenter, case, grid, box, target, clicks: int, rng) -> np.ndarray:
    """The structure in the patch, bool (D, H, W): the true mask, or what some clicks in it give."""
    true = _crop(target, box)
    if clicks == 0:
        return true
    features = segmenter.encode(crop_hu(case.volume, grid, box))
    given: dict[bool, list] = {True: [first_click(true, rng)], False: []}
    previous = None
    for _ in range(clicks):
        previous = segmenter.decode(features, prompt_maps(given[True], given[False], previous, true.shape))
        click = next_click(previous > 0.5, true)
        previous = torch.from_numpy(previous)
        if click is None:
            break
        given[click[1]].append(click[0])
    return previous.numpy() > 0.5


def _crop(mask_zyx: np.ndarray, box: Box) -> np.ndarray:
    """`mask_zyx` in a box that may reach beyond it, where nothing is."""
    inside = box.intersection(Box((0, 0, 0), mask_zyx.shape))
    out = np.zeros(box.shape, bool)
    out[tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, box.start))] = mask_zyx[inside.slices()]
    return out


def summarise(proposals: Sequence[Proposal], threshold: float, holds: int = HOLDS) -> dict[str, float]:
    """Shares over the neighbours that hold the structure and those that lack it.

    Args:
        threshold: the peak from which on a neighbour counts as found.

    Returns:
        ``holding`` and ``lacking`` (numbers of neighbours), ``hit`` (share of the holding ones whose peak lies in the
        structure), ``found`` (share of the holding ones that reach the threshold), ``found_hit`` (share of those whose
        peak lies in the structure), ``quiet`` (share of the lacking ones below the threshold) and ``quiet_at`` (the
        peak that nine of ten lacking ones stay below, a threshold for weights that have none).
    """
    frame = pd.DataFrame(proposals)
    held, lacking = frame[frame["voxels"] >= holds], frame[frame["voxels"] == 0]
    found = held[held["peak"] >= threshold]
    return {
        "holding": len(held),
        "lacking": len(lacking),
        "hit": float(held["hit"].mean()),
        "found": len(found) / max(1, len(held)),
        "found_hit": float(found["hit"].mean()),
        "quiet": float((lacking["peak"] < threshold).mean()),
        "quiet_at": float(lacking["peak"].quantile(0.9)) if len(lacking) else 0.0,
    }


def proposal_score(segmenter: Segmenter, cases: Iterable[Case]) -> float:
    """What P gets right around true masks of all structures, at the threshold of the weights.

    The mean of two shares: of the neighbours that hold the structure, those that reach the threshold with the peak in
    the structure; of those that lack it, those that stay below. A share of nothing counts as 1.
    """
    proposals = [own for case in cases for own in propose_around(segmenter, case, list(case.names), [0])]
    return _score(proposals, segmenter.info.peak_threshold)


def _score(proposals: Sequence[Proposal], threshold: float) -> float:
    right = [own.peak >= threshold and own.hit for own in proposals if own.voxels >= HOLDS]
    quiet = [own.peak < threshold for own in proposals if own.voxels == 0]
    return float(np.mean([np.mean(share) if share else 1.0 for share in (right, quiet)]))


def best_threshold(proposals: Sequence[Proposal]) -> float:
    """The threshold with the best score, see `proposal_score`: midway between two peaks that were seen.

    Raises:
        ValueError: no neighbour that holds a structure, or none that lacks one.
    """
    if not any(own.voxels >= HOLDS for own in proposals) or not any(own.voxels == 0 for own in proposals):
        raise ValueError("proposals must hold neighbours with and without the structure to set a threshold by")
    heights = np.unique([own.peak for own in proposals])
    candidates = np.r_[heights[:1], (heights[1:] + heights[:-1]) / 2]
    scores = [_score(proposals, threshold) for threshold in candidates]
    return float(candidates[int(np.argmax(scores))])


def evaluate_proposals(
    data: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike = "default",
    cases: Sequence[str] | None = None,
    structures: Sequence[str] | None = None,
    seeds: int = 1,
    clicks: int = 0,
    stride: int = STRIDE,
    threshold: float | None = None,
    calibrated: str | os.PathLike | None = None,
    device: str = "cpu",
    command: str = "",
) -> Path:
    """Measure P on folders of cases; writes `out`/proposals.csv and `out`/proposals.md, which is returned.

    Args:
        data: folder of case folders (see `read_case`).
        cases, structures: names; all where None.
        seeds: patches drawn for each structure.
        clicks: see `propose_around`.
        threshold: instead of the weights' own.
        calibrated: a .safetensors file to write, of the same weights with the threshold that is best on these cases;
            which is then the threshold of the report.

    Raises:
        ValueError: an unknown case or structure, or none that can be measured.
    """
    segmenter, proposals = load(weights, device), []
    info, folders = segmenter.info, find_cases(data, cases)
    threshold = info.peak_threshold if threshold is None else threshold
    for folder in tqdm(folders, unit="case"):
        case = read_case(folder)
        wanted = [name for name in structures or case.names if name in case.structures]
        proposals += propose_around(segmenter, case, wanted, range(seeds), stride, clicks)
    if not proposals:
        raise ValueError(f"structures must be in one of the cases, got {list(structures or ())}")
    if calibrated is not None:
        threshold = best_threshold(proposals)
        checkpoint.save(calibrated, dataclasses.replace(info, peak_threshold=threshold), half=_fits_half(info))
    summary = summarise(proposals, threshold)
    lines = [
        "# Proposals of P",
        "",
        f"- command: `{command}`" if command else "",
        *_about(info, folders, seeds, clicks),
    ]
    lines += [f"- stride {stride}, threshold {threshold:.4f}", ""]
    lines += ["| " + " | ".join(summary) + " |", "|" + "---|" * len(summary)]
    lines += ["| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in summary.values()) + " |"]
    with atomic_path(Path(out) / "proposals.csv") as path:
        pd.DataFrame(proposals).to_csv(path, index=False)
    with atomic_path(Path(out) / "proposals.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(out) / "proposals.md"


def _fits_half(info: Checkpoint) -> bool:
    """Whether half precision holds the weights exactly, as it does where they were stored in it."""
    tensors = [tensor for tensor in info.network.state_dict().values() if tensor.is_floating_point()]
    return all(torch.equal(tensor, tensor.half().to(tensor)) for tensor in tensors)


def _about(info: Checkpoint, folders: Sequence[Path], seeds: int, clicks: int) -> list[str]:
    trained_on = set(map(str, info.notes.get("data", ())))
    masks = f"masks of {clicks} simulated clicks" if clicks else "true masks"
    return [
        f"- weights: {info.version}, SHA-256 {info.sha256}",
        f"- cases: {', '.join(folder.name for folder in folders)}; seeds 0 to {seeds - 1}; {masks}",
        f"- trained on: {', '.join(sorted(trained_on & {folder.name for folder in folders})) or 'none of them'}",
        f"- a neighbour holds the structure from {HOLDS} voxels on",
    ]
