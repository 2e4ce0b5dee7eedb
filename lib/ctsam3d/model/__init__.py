"""The network: tensors in, tensors out."""

from ctsam3d.model.build import PATCH_SIZE, PRESETS, SPACING_MM, NetworkConfig, build
from ctsam3d.model.sam3d import SAM3D

__all__ = ["PATCH_SIZE", "PRESETS", "SAM3D", "SPACING_MM", "NetworkConfig", "build"]
