"""Training volumes on the model grid, and the pairs of patches drawn from them. All arrays are zyx, of 1.5 mm voxels.

A pair is two patches, U and V, that hold the same voxel of a structure, the anchor, anywhere inside them: their centres
deviate from it by at most half a patch per axis (paper, Algorithm 1). In an empty pair V lacks the structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.lesions import draw_lesion, paste
from ctsam3d.volume import OUTSIDE_HU

CONTRAST_SIGMA = 0.6  # voxels, over which a structure's own brightness fades into its surroundings
EMPTY_ATTEMPTS = 16  # places tried for a neighbour without the structure; a large structure may leave none


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """A scan and its label map, resampled to the model grid; the arrays may lie on disk.

    Attributes:
        content: SHA-256 of scan, labels and spacing.
        hu_zyx: int16.
        labels_zyx: uint8 or uint16, 0 where nothing is labelled.
        anchors: label value to (N, 3) voxels of it, drawn at random.
        sizes: label value to its number of voxels.
        structures: names of what is in `sizes`.
    """

    name: str
    content: str
    hu_zyx: np.ndarray
    labels_zyx: np.ndarray
    anchors: dict[int, np.ndarray]
    sizes: dict[int, int]
    structures: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """U and V.

    Attributes:
        hu: of U and V in this order, float32 (2, D, H, W).
        target: the masks of the structure, bool (2, D, H, W); V's is empty where V lacks it, U's never.
        offset: int (3,), from U's first voxel to V's.
    """

    hu: np.ndarray
    target: np.ndarray
    offset: np.ndarray


def draw_pair(volume: TrainingVolume, size: int, config: TrainingConfig, rng: np.random.Generator) -> Pair:
    """A structure by a power of its size, an anchor among its voxels, U and V around it; both changed alike.

    Args:
        size: voxels a side of a patch.
        config: `structure_power`, `empty_share` and `augmentation` are used.
    """
    value, anchor = _draw_anchor(volume, config, rng)
    matrix, table = _draw_matrix(config.augmentation, rng), _draw_contrast(volume, config.augmentation, rng)
    window = _Window(volume, value, anchor, matrix, size, table)
    lesion = draw_lesion(rng) if rng.random() < config.augmentation.lesion else None
    # The anchor's index in a patch is uniform, so that it lies in both and centres are up to a patch apart.
    start_u, start_v = (-rng.integers(0, size, 3) for _ in range(2))
    if rng.random() < config.empty_share and lesion is None:
        start_v = _empty_neighbour(window, start_u, start_v, rng)
    (hu_u, target_u), (hu_v, target_v) = window.cut(start_u), window.cut(start_v)
    if lesion is not None:
        (hu_u, target_u), (hu_v, target_v) = paste(lesion, hu_u, start_u), paste(lesion, hu_v, start_v)
    hu = np.stack([hu_u, hu_v])
    hu = _change_intensity(hu, config.augmentation, rng)
    return Pair(hu, np.stack([target_u, target_v]), start_v - start_u)


def draw_labelled_patch(
    volume: TrainingVolume, size: int, config: TrainingConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """HU float32 and label map (D, H, W) of a patch that holds a voxel drawn as in `draw_pair`, anywhere inside it.

    It is flipped, and its intensities are changed as those of a pair are; it is not rotated, since labels would not
    stay whole.

    Args:
        size: voxels a side of a patch.
        config: `structure_power` and `augmentation` are used.
    """
    value, anchor = _draw_anchor(volume, config, rng)
    matrix = np.diag(np.where(rng.random(3) < config.augmentation.flip, -1, 1))
    window = _Window(volume, value, anchor, matrix, size, _draw_contrast(volume, config.augmentation, rng))
    hu, labels = window.cut_labels(-rng.integers(0, size, 3))
    return _change_intensity(hu[None], config.augmentation, rng)[0], labels


def _draw_anchor(volume: TrainingVolume, config: TrainingConfig, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A label value by a power of its size, and one of its voxels (3,)."""
    values = sorted(volume.sizes)
    weights = np.array([volume.sizes[v] for v in values], float) ** config.structure_power
    value = values[rng.choice(len(values), p=weights / weights.sum())]
    anchors = volume.anchors[value]
    return value, anchors[rng.integers(len(anchors))].astype(int)


@dataclass(frozen=True, eq=False)
class _Window:
    """A volume seen through a linear map about an anchor: voxel y of the window is voxel ``anchor + matrix @ y``.

    Attributes:
        contrast_hu: what each label value adds to the HU, float32; None for nothing.
    """

    volume: TrainingVolume
    value: int
    anchor: np.ndarray
    matrix: np.ndarray
    size: int
    contrast_hu: np.ndarray | None

    def cut(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """HU and mask of the patch whose first voxel is `start`; beyond the scan is air without structure."""
        if np.array_equal(np.abs(self.matrix), np.eye(3)):  # flips alone move whole voxels
            hu, labels = self.cut_labels(start)
            return hu, labels == self.value
        low, high = self._source(start)
        hu, labels = self._crop(low, high)
        target = (labels == self.value).astype(np.float32)
        offset, shape = self.anchor + self.matrix @ start - low, (self.size,) * 3
        hu = ndimage.affine_transform(hu, self.matrix, offset, shape, order=1, mode="nearest")
        target = ndimage.affine_transform(target, self.matrix, offset, shape, order=1, mode="constant")
        return hu, target > 0.5

    def cut_labels(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """HU and label map of the patch at `start`, for a matrix that flips alone."""
        flips = tuple(np.flatnonzero(np.diag(self.matrix) < 0))
        hu, labels = self._crop(*self._source(start))
        return np.flip(hu, flips), np.flip(labels, flips)

    def empty(self, start: np.ndarray) -> bool:
        """Whether the patch at `start` surely lacks the structure."""
        low, high = self._source(start)
        inside = tuple(slice(max(0, a), max(0, b)) for a, b in zip(low, high))
        return not (self.volume.labels_zyx[inside] == self.value).any()

    def _source(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The half-open box of the volume that the patch at `start` is made from."""
        corners = np.stack(np.meshgrid(*[(s, s + self.size - 1) for s in start], indexing="ij")).reshape(3, -1)
        reached = self.anchor[:, None] + self.matrix @ corners
        return np.floor(reached.min(1)).astype(int), np.ceil(reached.max(1)).astype(int) + 1

    def _crop(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = np.array(self.volume.hu_zyx.shape)
        inside = tuple(slice(*np.clip((a, b), 0, n)) for a, b, n in zip(low, high, shape))
        padding = [(max(0, min(-a, b - a)), max(0, min(b - n, b - a))) for a, b, n in zip(low, high, shape)]
        hu, labels = self.volume.hu_zyx[inside].astype(np.float32), self.volume.labels_zyx[inside]
        if self.contrast_hu is not None:
            hu += ndimage.gaussian_filter(self.contrast_hu[labels], CONTRAST_SIGMA)
        return np.pad(hu, padding, constant_values=OUTSIDE_HU), np.pad(labels, padding)


def _draw_contrast(volume: TrainingVolume, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray | None:
    """HU that each label value gains, as in another phase of contrast or another patient; 0 for half of them.

    The texture of a real scan stays, and so does what is not labelled.
    """
    if rng.random() >= augmentation.contrast:
        return None
    table = np.zeros(2**16, np.float32)  # of every value that a label map may hold
    values, spread = sorted(volume.sizes), rng.uniform(0, augmentation.contrast_hu)
    table[values] = rng.normal(0, spread, len(values)) * (rng.random(len(values)) < 0.5)
    return table


def _draw_matrix(augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Rotation with scaling, or none, then flips."""
    matrix = np.eye(3)
    if rng.random() < augmentation.spatial:
        axis = rng.normal(size=3)
        angle = np.radians(rng.uniform(-augmentation.rotation_degrees, augmentation.rotation_degrees))
        matrix = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
        matrix = matrix * rng.uniform(1 - augmentation.scale, 1 + augmentation.scale)
    return matrix * np.where(rng.random(3) < augmentation.flip, -1, 1)


def _empty_neighbour(window: _Window, start_u: np.ndarray, otherwise: np.ndarray, rng) -> np.ndarray:
    """The start of a patch within a patch's length of U that lacks the structure; `otherwise` where none is found."""
    for _ in range(EMPTY_ATTEMPTS):
        start = start_u + rng.integers(-window.size, window.size + 1, 3)
        if window.empty(start):
            return start
    return otherwise


def _change_intensity(hu: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """One blur, factor, shift and noise level for both patches, as both come from one scan; hu (2, D, H, W)."""
    hu = np.array(hu, dtype=np.float32)
    if rng.random() < augmentation.blur:
        sigma = rng.uniform(0, augmentation.blur_voxels)
        hu = np.stack([ndimage.gaussian_filter(patch, sigma) for patch in hu])
    if rng.random() < augmentation.intensity:
        hu *= 1 + rng.uniform(-augmentation.factor, augmentation.factor)
        hu += rng.uniform(-augmentation.shift_hu, augmentation.shift_hu)
    if rng.random() < augmentation.noise:
        hu += rng.uniform(0, augmentation.noise_hu) * rng.standard_normal(hu.shape, dtype=np.float32)
    return hu
