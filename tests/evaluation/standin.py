"""A segmenter with known answers for the tests of evaluation: finds what has the clicked voxel's HU, near the click."""

from types import SimpleNamespace

import numpy as np
import torch

from ctsam3d.session import Session

REACH = 5e-5  # of a click's map: 8.9 voxels


class SameHu:
    """Stands in for a `Segmenter`; the answer for a patch is what lies near a positive click and has its HU.

    A block of 6 voxels a side is found whole by a click anywhere in it, its diagonal being 8.7 voxels.
    """

    batch = 1
    device = torch.device("cpu")
    dtype = torch.float32
    info = SimpleNamespace(
        version="standin", sha256="0" * 64, hu_window=(-500.0, 800.0), spacing_mm=1.5, feedback=0, peak_threshold=0.5,
        notes={"data": ["a"]},
    )  # fmt: skip

    def __init__(self):
        self.sessions = 0

    def session(self, volume, expand=True):
        self.sessions += 1
        return Session(self, volume, expand)

    def features(self, volume, box_zyx, crop, mirrored):
        return np.rint(crop())

    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx, offsets_zyx):
        return np.zeros((len(neighbours_hu_zyx), 64, 64, 64), np.float32)

    def decode(self, features, prompts):
        positive = prompts[0].numpy()
        clicked = features[np.unravel_index(positive.argmax(), positive.shape)]
        return ((positive > REACH) & (features == clicked)).astype(np.float32)
