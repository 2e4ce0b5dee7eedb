"""A network whose answers are known, and scans that it follows a structure in."""

from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.session import Session
from ctsam3d.volume import Box, Volume


class Following:
    """S finds what is bright and connected to a click or to the previous mask; a negative click clears 8 voxels around.

    P clicks in the bright voxel nearest to the middle of all that is bright in the neighbour.
    """

    def __init__(self):
        self.info, self.batch = SimpleNamespace(spacing_mm=1.5, peak_threshold=0.5), 1
        self.opened = []

    def features(self, volume, box_zyx, crop, mirrored):
        self.opened.append(box_zyx)
        return crop()

    def decode(self, features, prompts):
        bright, (positive, negative, previous) = features > 0, prompts.numpy()
        for place in np.argwhere(negative == 1):
            near = np.indices(bright.shape) - place.reshape(3, 1, 1, 1)
            bright &= (near**2).sum(0) > 8**2
        parts, _ = ndimage.label(bright)
        wanted = np.unique(parts[bright & ((positive == 1) | (previous > 0.5))])
        return np.where(np.isin(parts, wanted) & bright, 0.9, 0.1).astype(np.float32)

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        heatmaps = np.zeros((len(neighbours_hu_zyx), PATCH_SIZE, PATCH_SIZE, PATCH_SIZE), np.float32)
        for heatmap, hu in zip(heatmaps, neighbours_hu_zyx):
            places = np.argwhere(hu > 0)
            if len(places):
                heatmap[tuple(places[((places - places.mean(0)) ** 2).sum(1).argmin()])] = 1.0
        return heatmaps


def scan(shape, *bright):
    """Voxels of 1.5 mm; `bright` boxes in file order (ijk), which is xyz of the grid up to flips."""
    array = np.full(shape, -500, np.int16)
    for part in bright:
        array[part.slices()] = 500
    return Volume(array, np.diag([-1.5, -1.5, 1.5, 1.0]))  # LPS, as the grid


TUBE = Box((40, 40, 0), (50, 50, 300))
SHAPE = (100, 100, 300)


def tube_session(**options):
    volume = scan(SHAPE, TUBE)
    return Session(Following(), volume, **options), (volume.array_ijk > 0).astype(np.uint8)


def leaking():
    """A session on the tube that leads into a block, a positive click far from it, and a negative one in its middle."""
    block = Box((50, 20, 120), (110, 80, 180))
    return Session(Following(), scan((200, 100, 300), TUBE, block)), (45, 45, 20), (80, 50, 150), block
