"""Small layers that several parts of the network share. Axes: B batch, C channels, D/H/W = z/y/x, N = D*H*W tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6
INSTANCE_NORM_EPS = 1e-5


class Conv3d(nn.Conv3d):
    """A 3D convolution that takes the fastest way on a CPU where no gradient is wanted.

    PyTorch (2.15) sends a batch of one with few channels to a kernel that is several times slower than oneDNN's.

    Attributes:
        plain: take oneDNN's kernel as it is.
    """

    plain = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not (x.device.type == "cpu" and x.dtype in _DTYPES and _ONEDNN):
            return super().forward(x)
        if not self.plain and self._by_planes_pays(x):
            return conv3d_by_planes(x, self.weight, self.bias)
        return _onednn(x, self.weight, self.bias, self.padding, self.stride, self.groups)

    def _by_planes_pays(self, x: Tensor) -> bool:
        usual = (self.kernel_size, self.padding, self.stride, self.groups) == ((3, 3, 3), (1, 1, 1), (1, 1, 1), 1)
        large = min(self.in_channels, self.out_channels) >= _MANY_CHANNELS and min(x.shape[2:]) >= _MANY_VOXELS
        return usual and large and x.shape[2] % 2 == 0


def conv3d_by_planes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3 x 3 x 3 convolution with padding 1, by 2D convolutions of which two planes need four instead of six.

    Winograd's minimal filtering F(2, 3) along z (Lavin and Gray, 2016): of four planes d and three kernels g, the two
    planes of the result are m0 + m1 + m2 and m1 - m2 - m3 with m0 = (d0 - d2) g0, m1 = (d1 + d2) (g0 + g1 + g2) / 2,
    m2 = (d2 - d1) (g0 - g1 + g2) / 2, m3 = (d1 - d3) g2.

    Args:
        x: float32 or bfloat16 (B, C, D, H, W) with an even D.
        weight: (C', C, 3, 3, 3).
    """
    batch, _, depth, height, width = x.shape
    planes = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, 0, 0, 0, 0, 1, 1))  # (B, D + 2, H, W, C)
    d0, d1, d2, d3 = (planes[:, start : start + depth - 1 : 2] for start in range(4))  # (B, D / 2, H, W, C)
    g0, g1, g2 = weight.unbind(2)
    outer, middle = (g0 + g2) / 2, g1 / 2
    products = []
    for plane, kernel in ((d0 - d2, g0), (d1 + d2, outer + middle), (d2 - d1, outer - middle), (d1 - d3, g2)):
        flat = plane.flatten(0, 1).permute(0, 3, 1, 2)  # (B * D / 2, C, H, W)
        product = _onednn(flat, kernel.contiguous(), None, (1, 1), (1, 1), 1)
        products.append(product.permute(0, 2, 3, 1).unflatten(0, (batch, depth // 2)))
    m0, m1, m2, m3 = products
    out = x.new_empty(batch, depth // 2, 2, height, width, len(weight))
    out[:, :, 0] = m0.add_(m1).add_(m2).add_(bias)
    out[:, :, 1] = m1.sub_(m2).sub_(m3).add_(bias)
    return out.flatten(1, 2).permute(0, 4, 1, 2, 3)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, padding, stride, groups: int) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1,) * len(padding), groups)


_DTYPES = (torch.float32, torch.bfloat16)
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")
_MANY_CHANNELS, _MANY_VOXELS = 64, 16  # a side; from here on the products outweigh what the sums of planes cost


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
