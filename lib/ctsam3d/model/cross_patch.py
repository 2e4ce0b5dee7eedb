"""P, the cross-patch prompt network: where in a neighbouring patch would the user click next? (paper, section 3.4)

The published P sees the patch and its mask in the patch's own frame: it is not told where the neighbour lies, and must
find the structure there by its look. Ours can see them in the neighbour's frame instead, where the two overlap; what it
is asked for then lies where the mask ends, which it learns from some hundred pairs instead of millions.
"""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from ctsam3d.model.layers import Conv3d

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
        for module in self.unet.modules():
            if type(module) is nn.Conv3d:  # MONAI's own are two and a half times slower on a CPU
                module.__class__ = Conv3d
        _begin_small(self.unet)

    def forward(self, image: Tensor, mask: Tensor, neighbour: Tensor) -> Tensor:
        """All (B, 1, D, H, W): a patch, its binary mask, another patch; returns that one's raw click heatmap."""
        return self.unet(torch.cat([image, mask, neighbour], dim=1))


def in_neighbours_frame(volumes: Tensor, offsets_zyx: Tensor) -> Tensor:
    """What patches hold of their neighbours' place, zero where they do not reach.

    Args:
        volumes: (B, C, D, H, W).
        offsets_zyx: int (B, 3), from each patch's first voxel to its neighbour's.
    """
    out = torch.zeros_like(volumes)
    for own, moved, offset in zip(volumes, out, offsets_zyx.tolist()):
        source = tuple(slice(max(0, o), max(0, n + min(0, o))) for o, n in zip(offset, own.shape[1:]))
        target = tuple(slice(max(0, -o), max(0, n - max(0, o))) for o, n in zip(offset, own.shape[1:]))
        moved[:, *target] = own[:, *source]
    return out


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
