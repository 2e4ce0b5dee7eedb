"""Small layers that several parts of the network share. Axes: B batch, C channels, D/H/W = z/y/x, N = D*H*W tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature volume (B, C, D, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last memory both permutes are views, and the norm runs fused over contiguous channels.
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


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
