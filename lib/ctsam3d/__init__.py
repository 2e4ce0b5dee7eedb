"""CT-SAM3D: segment anything in a CT by clicking.

segmenter = ctsam3d.load("default", device="cpu")
session = segmenter.session(ctsam3d.read_volume(path))
session.click((i, j, k), positive=True)
mask = session.mask()
"""

from ctsam3d import checkpoint, data, model, session
from ctsam3d.data.io import read_volume
from ctsam3d.segmenter import Segmenter, load
from ctsam3d.session import Session
from ctsam3d.volume import Volume

__all__ = ["Segmenter", "Session", "Volume", "checkpoint", "data", "load", "model", "read_volume", "session"]
