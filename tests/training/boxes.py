"""A small scan for the tests of training: two boxes in air."""

import numpy as np

from ctsam3d.data.io import Case
from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.config import Augmentation
from ctsam3d.volume import Volume

STILL = Augmentation(flip=0, spatial=0, intensity=0, noise=0, blur=0)


def boxes(shape=(40, 50, 60), spacing=1.5):
    """Two boxes, "big" and "small"; RAS, so that the model grid reverses i and j."""
    masks = {"big": np.zeros(shape, bool), "small": np.zeros(shape, bool)}
    masks["big"][5:25, 5:25, 5:25] = True
    masks["small"][30:36, 30:36, 40:46] = True
    hu = np.where(masks["big"], 100, np.where(masks["small"], 300, -1000)).astype(np.int16)
    volume = Volume(hu, np.diag([spacing, spacing, spacing, 1.0]))
    return Case("boxes", volume, {name: (lambda m=mask: m) for name, mask in masks.items()})


def lone(mask_ijk, folder, hu=None):
    """The training volume of one structure on a grid of 1.5 mm in the model's own axes (i, j, k to L, P, S)."""
    hu = np.where(mask_ijk, 100, -100).astype(np.int16) if hu is None else hu
    case = Case("lone", Volume(hu, np.diag([-1.5, -1.5, 1.5, 1.0])), {"lone": lambda: mask_ijk})
    return VolumeCache(folder, min_voxels=1).get(case)
