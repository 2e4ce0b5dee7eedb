"""What a patch shows at half its size, for the decoder's last two stages.

The encoder's finest feature is at a quarter of the patch, 6 mm. The paper's has 128 channels for the 64 voxels of one
of its places, enough to keep them; in a narrow network 16 channels must do, and thin walls, gaps between bones and
small vessels are lost. Not in the paper; "base" goes without.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.layers import Conv3d, instance_norm


class Detail(nn.Module):
    """Two convolutions, each brought to mean 0 and variance 1 over the patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.shrink = Conv3d(1, channels, 4, stride=2, padding=1, bias=False)  # the norms would take a bias away
        self.mix = Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, C, D/2, H/2, W/2)."""
        return instance_norm(self.mix(F.gelu(instance_norm(self.shrink(image)))))


def fold(x: Tensor) -> Tensor:
    """(B, C, 2D, 2H, 2W) to (B, 8C, D, H, W): it travels as further channels of the feature at a quarter."""
    batch, channels, *size = x.shape
    depth, height, width = (v // 2 for v in size)
    split = x.reshape(batch, channels, depth, 2, height, 2, width, 2)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, 8 * channels, depth, height, width)


def split(feature: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The feature at a quarter, and the detail of so many channels that is folded behind it, (B, C, 2D, 2H, 2W)."""
    own = feature.shape[1] - 8 * channels
    return feature[:, :own], unfold(feature[:, own:])


def unfold(x: Tensor) -> Tensor:
    """The inverse of `fold`: (B, 8C, D, H, W) to (B, C, 2D, 2H, 2W)."""
    batch, channels, depth, height, width = x.shape
    split = x.reshape(batch, channels // 8, 2, 2, 2, depth, height, width)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // 8, 2 * depth, 2 * height, 2 * width)
