"""What the model says of a scan that nobody has labelled: an embedding, how unsure it is, how good it expects to be.

The cost of a scan is bounded by a number of patches and predictions, whatever its size. Structures are found by their
prototypes, the features of the frozen encoder at their deepest point in labelled scans: the most similar place of the
scan is where a simulated user clicks. Without prototypes, clicks go to places in the body drawn by chance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import edt
import numpy as np

from ctsam3d.acquisition import disagreement, predicted_quality
from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.resample import crop_hu
from ctsam3d.segmenter import Segmenter
from ctsam3d.volume import Box, ModelGrid, Volume

MAX_PATCHES = 12  # of a scan that are encoded
MAX_STRUCTURES = 6  # that are clicked
FREE_CLICKS = 3  # where no prototype is known
ANY = "any"  # name of what such clicks segment
BODY_HU = -300.0
JITTER_VOXELS = 3
NOISE_HU = 15.0
_STEP_MM = 6.0  # between the voxels that are looked at for the body
_CELL_STAGE = 1  # of the encoder's features: cells of 8 voxels

Turn = Callable[[], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class ScanScores:
    """Of one scan and one version of the weights.

    Attributes:
        embedding: mean and standard deviation of the encoder's two deepest stages over patches of the body.
        disagreement: of each structure that was clicked, or of `ANY`, see `acquisition.disagreement`.
        quality: predicted DSC of the same, see `acquisition.predicted_quality`.
        prototypes: of each structure of a labelled scan, the features where it is deepest.
    """

    embedding: tuple[float, ...]
    disagreement: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    prototypes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of(self, scores: Mapping[str, float], wanted: tuple[str, ...]) -> float:
        """The mean of `scores` over the wanted structures that have one, else over all; NaN where there is none."""
        values = [scores[name] for name in wanted if name in scores] or list(scores.values())
        return float(np.mean(values)) if values else float("nan")


class _Looker:
    """A scan through the encoder's eyes, one patch at a time, each within a turn on the network."""

    def __init__(self, segmenter: Segmenter, volume: Volume, turn: Turn):
        self.segmenter, self.volume, self.turn = segmenter, volume, turn
        self.grid = ModelGrid.of(volume, segmenter.info.spacing_mm)

    def patch(self, voxel_zyx) -> Box:
        return self.grid.patch_zyx(voxel_zyx, PATCH_SIZE)

    def hu(self, box_zyx: Box) -> np.ndarray:
        return crop_hu(self.volume, self.grid, box_zyx)

    def encode(self, hu_zyx: np.ndarray):
        with self.turn():
            return self.segmenter.encode(hu_zyx)

    def cells(self, features) -> np.ndarray:
        """(z, y, x, C), each cell's features of length 1."""
        array = features[_CELL_STAGE][0].float().cpu().numpy().transpose(1, 2, 3, 0)
        return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)

    def predict(self, hu_zyx: np.ndarray, click_zyx) -> np.ndarray:
        """Probability (D, H, W) of what lies at a voxel of a patch."""
        features = self.encode(hu_zyx)
        maps = prompt_maps([tuple(int(v) for v in click_zyx)], [], None, hu_zyx.shape)
        with self.turn():
            return self.segmenter.decode(features, maps)


def scan_scores(
    segmenter: Segmenter,
    volume: Volume,
    prototypes: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    turn: Turn = contextlib.nullcontext,
    predict: bool = True,
) -> ScanScores:
    """The scores of a scan.

    Args:
        prototypes: of structures that may be in it; of more than `MAX_STRUCTURES`, those that are found most surely.
        turn: held around each use of the network.
        predict: whether structures are clicked; without, there is the embedding alone, for a tenth of the time.
    """
    looker = _Looker(segmenter, volume, turn)
    places = body_voxels(volume, looker.grid)
    embedding, found = _embedding(looker, places, prototypes, rng)
    if not predict:
        return ScanScores(embedding)
    if not prototypes and len(places):
        found = {f"{ANY} {n}": place for n, place in enumerate(_drawn(places, FREE_CLICKS, rng), start=1)}
    unsure, quality = {}, {}
    for name, voxel_zyx in found.items():
        probabilities = _predictions(looker, voxel_zyx, rng)
        unsure[name] = round(disagreement(probabilities > 0.5), 5)
        quality[name] = round(predicted_quality(probabilities[0]), 5)
    return ScanScores(embedding, unsure, quality)


def prototypes_of(
    segmenter: Segmenter,
    volume: Volume,
    masks: Mapping[str, Callable[[], np.ndarray]],
    turn: Turn = contextlib.nullcontext,
) -> dict[str, tuple[float, ...]]:
    """The features at the deepest point of each structure that a labelled scan holds.

    Args:
        masks: name to a function that returns the bool mask (I, J, K).
    """
    looker, found = _Looker(segmenter, volume, turn), {}
    for name, mask in masks.items():
        mask_ijk = np.asarray(mask(), bool)
        if mask_ijk.any():
            depth = edt.edt(mask_ijk, anisotropy=volume.spacing_ijk_mm, black_border=True)
            voxel_zyx = looker.grid.voxel_zyx(np.unravel_index(int(depth.argmax()), depth.shape))
            box = looker.patch(voxel_zyx)
            cells = looker.cells(looker.encode(looker.hu(box)))
            size = PATCH_SIZE // cells.shape[0]
            cell = cells[tuple((v - a) // size for v, a in zip(voxel_zyx, box.start))]
            found[name] = tuple(round(float(v), 5) for v in cell)
    return found


def mean_prototypes(labelled: list[Mapping[str, tuple[float, ...]]]) -> dict[str, np.ndarray]:
    """Each structure's mean over the labelled scans that hold it, of length 1."""
    names = dict.fromkeys(name for found in labelled for name in found)
    means = {name: np.mean([found[name] for found in labelled if name in found], axis=0) for name in names}
    return {name: mean / max(float(np.linalg.norm(mean)), 1e-12) for name, mean in means.items()}


def body_voxels(volume: Volume, grid: ModelGrid) -> np.ndarray:
    """(N, 3) voxels of the model grid inside the body, about every 6 mm; all that is denser than lung, in any scan."""
    steps = [max(1, round(_STEP_MM / mm)) for mm in volume.spacing_ijk_mm]
    coarse = volume.array_ijk[tuple(slice(step // 2, None, step) for step in steps)]
    if coarse.size == 0:
        steps, coarse = [1, 1, 1], volume.array_ijk
    places = np.argwhere(coarse > BODY_HU)
    starts = [step // 2 if step > 1 else 0 for step in steps]
    found = (places * steps + starts) @ grid.zyx_from_ijk[:3, :3].T + grid.zyx_from_ijk[:3, 3]
    return np.floor(found + 0.5).astype(int).clip(0, np.array(grid.shape_zyx) - 1)  # as `ModelGrid.voxel_zyx`


def _embedding(looker: _Looker, places_zyx: np.ndarray, prototypes: Mapping[str, np.ndarray], rng):
    """The embedding, and the voxel that is most like each prototype."""
    centre = tuple(n // 2 for n in looker.grid.shape_zyx)
    centres = _drawn(places_zyx, MAX_PATCHES, rng) if len(places_zyx) else [centre]
    boxes = list(dict.fromkeys(looker.patch(tuple(int(v) for v in place)) for place in centres))
    pooled, best = [], {}
    for box in boxes:
        hu = looker.hu(box)
        features = looker.encode(hu)
        pooled.append(np.concatenate([_pooled(stage) for stage in features[-2:]]))
        cells = looker.cells(features)
        size = PATCH_SIZE // cells.shape[0]
        # Where the scan ends, a patch shows air: nobody clicks there.
        inside = hu.reshape(cells.shape[0], size, cells.shape[1], size, cells.shape[2], size).mean(axis=(1, 3, 5))
        for name, prototype in prototypes.items():
            alike = np.where(inside > -900, cells @ prototype, -1.0)
            place = np.unravel_index(int(alike.argmax()), alike.shape)
            height = float(alike[place])
            if height > best.get(name, (-1.0, None))[0]:
                voxel = tuple(int(a + (v + 0.5) * size) for a, v in zip(box.start, place))
                best[name] = (height, tuple(min(max(v, 0), n - 1) for v, n in zip(voxel, looker.grid.shape_zyx)))
    surest = sorted(best, key=lambda name: -best[name][0])[:MAX_STRUCTURES]
    embedding = np.mean(pooled, axis=0)
    return tuple(round(float(v), 5) for v in embedding), {name: best[name][1] for name in surest}


def _pooled(stage) -> np.ndarray:
    """(2 C,) mean and standard deviation of a stage (1, C, d, h, w)."""
    array = stage[0].float().flatten(1)
    return np.concatenate([array.mean(1).cpu().numpy(), array.std(1, correction=0).cpu().numpy()])


def _predictions(looker: _Looker, voxel_zyx, rng: np.random.Generator) -> np.ndarray:
    """(3, D, H, W) probabilities of one structure: plain; noise and a jittered click; mirrored, jittered again."""
    box = looker.patch(voxel_zyx)
    hu, click = looker.hu(box), np.array([v - a for v, a in zip(voxel_zyx, box.start)])

    def jittered() -> np.ndarray:
        return np.clip(click + rng.integers(-JITTER_VOXELS, JITTER_VOXELS + 1, 3), 0, PATCH_SIZE - 1)

    noise = rng.normal(0, NOISE_HU, hu.shape).astype(np.float32)
    plain = looker.predict(hu, click)
    noisy = looker.predict(hu + noise, jittered())
    z, y, x = jittered()
    mirrored = looker.predict(np.ascontiguousarray(hu[:, :, ::-1]), (z, y, PATCH_SIZE - 1 - x))[:, :, ::-1]
    return np.stack([plain, noisy, mirrored])


def _drawn(places: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Up to `count` of the places, far apart: each next one of a random hundred is the farthest from those before."""
    some = places[rng.permutation(len(places))[:100]]
    chosen = [some[0]]
    apart = np.linalg.norm(some - chosen[0], axis=1)
    while len(chosen) < min(count, len(some)) and apart.max() > 0:
        chosen.append(some[int(apart.argmax())])
        apart = np.minimum(apart, np.linalg.norm(some - chosen[-1], axis=1))
    return chosen
