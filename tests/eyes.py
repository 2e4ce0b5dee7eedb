"""A stand-in for a segmenter whose features are the mean HU of cells; it segments a ball around the click."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F


class Eyes:
    """Stages of 4, 8, 16 and 32 voxels a cell, with the channels (HU / 100, 1)."""

    def __init__(self, version="eyes-1", radius=6):
        self.info = SimpleNamespace(spacing_mm=1.5, version=version)
        self.radius, self.encoded, self.clicks = radius, 0, []

    def encode(self, hu_zyx):
        self.encoded += 1
        image = torch.from_numpy(np.asarray(hu_zyx, np.float32))[None, None] / 100
        stages = (F.avg_pool3d(image, size) for size in (4, 8, 16, 32))
        return tuple(torch.cat([stage, torch.ones_like(stage)], 1) for stage in stages)

    def decode(self, features, maps):
        click = np.unravel_index(int(maps[0].argmax()), maps[0].shape)
        self.clicks.append(click)
        apart = np.indices(maps[0].shape) - np.reshape(click, (3, 1, 1, 1))
        return np.where((apart**2).sum(axis=0) <= self.radius**2, 0.8, 0.0).astype(np.float32)
