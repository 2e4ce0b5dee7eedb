"""P, the cross-patch prompt network: where in a neighbouring patch would the user click next? (paper, section 3.4)"""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn


class CrossPatchPrompter(nn.Module):
    """A light UNet over [image, mask, neighbour].

    Args:
        widths: channels of its five levels.
    """

    def __init__(self, widths):
        super().__init__()
        strides = (2,) * (len(widths) - 1)
        self.unet = UNet(3, in_channels=3, out_channels=1, channels=widths, strides=strides, num_res_units=2)

    def forward(self, image: Tensor, mask: Tensor, neighbour: Tensor) -> Tensor:
        """All (B, 1, D, H, W): a patch, its binary mask, another patch; returns that one's raw click heatmap."""
        return self.unet(torch.cat([image, mask, neighbour], dim=1))
