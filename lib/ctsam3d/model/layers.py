"""Small layers that several parts of the network share. Axes: B batch, C channels, D/H/W = z/y/x, N = D*H*W tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5


class Conv3d(nn.Conv3d):
    """A 3D convolution that takes oneDNN's kernel on a CPU for small inputs too.

    PyTorch (2.15) sends a batch of one with few channels to a kernel that is several times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        return conv3d(x, self.weight, self.bias, self.padding, self.stride, self.groups)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding=(0, 0, 0), stride=(1, 1, 1), groups=1) -> Tensor:
    """`F.conv3d`, by oneDNN where a CPU needs no gradient."""
    if torch.is_grad_enabled() or not (x.device.type == "cpu" and x.dtype == torch.float32 and _ONEDNN):
        return F.conv3d(x, weight, bias, stride, padding, groups=groups)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), groups)


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature volume (B, C, D, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last memory both permutes are views, and the norm runs fused over contiguous channels.
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


def instance_norm(x: Tensor) -> Tensor:
    """`F.instance_norm` of (B, C, D, H, W), in x's memory format.

    PyTorch's own brings channels-last volumes into another order and back. Its batch norm does not, but sums plainly in
    single precision, which is off by 2e-4 over 64³ voxels.
    """
    centred = x - x.mean((2, 3, 4), keepdim=True)
    return centred * torch.rsqrt(centred.square().mean((2, 3, 4), keepdim=True) + INSTANCE_NORM_EPS)


class PositionAttention(nn.Module):
    """Scale every voxel by a gate that it computes from its own neighbourhood (ResT v2's pixel attention in 3D)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def to_volume(tokens: Tensor, size: torch.Size) -> Tensor:
    """(B, N, C) to (B, C, D, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def resize(x: Tensor, size) -> Tensor:
    """Trilinear, without corner alignment; (B, C, ...) to (B, C, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
