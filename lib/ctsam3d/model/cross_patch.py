"""P, the cross-patch prompt network: where in a neighbouring patch would the user click next? (paper, section 3.4)"""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

_FIRST_SCALE = 1 / 64  # about the standard deviation over 64³ voxels of one click's map, times its height of 1


class CrossPatchPrompter(nn.Module):
    """A light UNet over [image, mask, neighbour].

    Args:
        widths: channels of its five levels.
    """

    def __init__(self, widths):
        super().__init__()
        strides = (2,) * (len(widths) - 1)
        self.unet = UNet(3, in_channels=3, out_channels=1, channels=widths, strides=strides, num_res_units=2)
        _begin_small(self.unet)

    def forward(self, image: Tensor, mask: Tensor, neighbour: Tensor) -> Tensor:
        """All (B, 1, D, H, W): a patch, its binary mask, another patch; returns that one's raw click heatmap."""
        return self.unet(torch.cat([image, mask, neighbour], dim=1))


def _begin_small(unet: UNet) -> None:
    """Fresh weights whose heatmap is small everywhere.

    The last layer adds a convolution to its input, an instance norm of unit variance over the patch. A single peak of
    height 1 has a far smaller variance; without this, training would spend its first hundreds of steps on the scale.
    """
    last = [module for module in unet.modules() if isinstance(module, nn.Conv3d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.weight[0, 0, 1, 1, 1] = _FIRST_SCALE - 1
