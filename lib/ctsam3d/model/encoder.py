"""The image encoders of S: patch in, four skip features out.

`RestEncoder` is ResT v2 in 3D (paper, section 3.2): four stages at 1/4, 1/8, 1/16 and 1/32 of the patch, each a strided
convolution and transformer blocks whose attention shrinks its keys and values. `UnetEncoder` is the plain convolutional
encoder of the paper's ablation (supplementary material).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.detail import fold
from ctsam3d.model.layers import (
    LAYER_NORM_EPS,
    ChannelLayerNorm,
    PositionAttention,
    instance_norm,
    resize,
    to_tokens,
    to_volume,
)


class ReducedAttention(nn.Module):
    """Multi-head self-attention over tokens, with keys and values taken from a grid `reduction` times coarser per axis.

    The values, brought back to the full grid, are added to what attention returns, so that detail survives.
    """

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.reduce = None
        if reduction > 1:
            self.reduce = nn.Conv3d(
                channels, channels, reduction + 1, stride=reduction, padding=reduction // 2, groups=channels
            )
            self.reduce_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.value_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.project = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, size) -> Tensor:
        """tokens (B, N, C) of a volume of `size` (D, H, W); returns (B, N, C)."""
        query = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
        source, source_size = tokens, size
        if self.reduce is not None:
            coarse = self.reduce(to_volume(tokens, size))  # (B, C, D/r, H/r, W/r)
            source, source_size = self.reduce_norm(to_tokens(coarse)), coarse.shape[2:]  # (B, M, C)
        key, value = self.key_value(source).chunk(2, dim=2)  # 2 x (B, M, C)
        heads = [t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (key, value)]  # 2 x (B, heads, M, C/heads)
        attended = F.scaled_dot_product_attention(query, *heads).transpose(1, 2).flatten(2)  # (B, N, C)
        values = to_tokens(resize(to_volume(value, source_size), size))  # (B, N, C)
        return self.project(attended + self.value_norm(values))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, both residual."""

    def __init__(self, channels: int, heads: int, reduction: int, mlp_ratio: int = 4):
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attention = ReducedAttention(channels, heads, reduction)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, tokens: Tensor, size) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), size)
        return tokens + self.mlp(self.mlp_norm(tokens))


class RestStage(nn.Module):
    """A patch embedding that shrinks the volume, then transformer blocks at that size."""

    def __init__(self, embed: nn.Module, channels: int, blocks: int, heads: int, reduction: int):
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, reduction) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        size, tokens = x.shape[2:], to_tokens(x)
        for block in self.blocks:
            tokens = block(tokens, size)
        return to_volume(tokens, size)


def rest_stem(in_channels: int, channels: int) -> nn.Sequential:
    """The first embedding: two strided convolutions, (B, 1, D, H, W) to (B, C, D/4, H/4, W/4)."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv3d(in_channels, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm3d(half),
        nn.ReLU(),
        nn.Conv3d(half, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
        nn.Conv3d(channels, channels, 1),
        PositionAttention(channels),
        ChannelLayerNorm(channels),
    )


def rest_downsample(in_channels: int, channels: int) -> nn.Sequential:
    """The embedding between two stages: (B, C, D, H, W) to (B, C', D/2, H/2, W/2)."""
    return nn.Sequential(
        nn.Conv3d(in_channels, channels, 3, stride=2, padding=1),
        PositionAttention(channels),
        ChannelLayerNorm(channels),
    )


class _Encoder(nn.Module):
    """What both encoders share: stages, each with a 1x1x1 convolution to the decoder's width.

    Args:
        widths: channels of the four stages.
        skip_widths: channels of the four features that come out.
        centred: bring each channel of a stage to mean 0 and variance 1 over the patch.
        detail: what the first feature carries along (`Detail`), or None.
    """

    def __init__(self, widths, skip_widths, centred: bool, detail: nn.Module | None):
        super().__init__()
        self.centred = centred
        self.skips = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in zip(widths, skip_widths))
        self.detail = detail

    def _features(self, image: Tensor, x: Tensor, detail: bool) -> tuple[Tensor, ...]:
        """image (B, 1, D, H, W) and what goes into the first stage to the four features."""
        features = []
        for stage, skip in zip(self.stages, self.skips):
            x = instance_norm(stage(x)) if self.centred else stage(x)
            features.append(skip(x))
        if detail and self.detail is not None:
            features[0] = torch.cat([features[0], fold(self.detail(image))], dim=1)
        return tuple(features)


class RestEncoder(_Encoder):
    """3D ResT v2.

    Args:
        widths, blocks, heads, reductions: one value a stage.
        skip_widths, centred, detail: see `_Encoder`.
    """

    def __init__(self, widths, blocks, heads, reductions, skip_widths, centred=False, detail=None):
        super().__init__(widths, skip_widths, centred, detail)
        embeds = [rest_stem(1, widths[0]), *(rest_downsample(a, b) for a, b in zip(widths, widths[1:]))]
        self.stages = nn.ModuleList(map(RestStage, embeds, widths, blocks, heads, reductions))

    def forward(self, image: Tensor, detail: bool = True) -> tuple[Tensor, ...]:
        """image (B, 1, D, H, W) to four features (B, skip_widths[n], D/s, H/s, W/s), s = 4, 8, 16, 32.

        Args:
            detail: whether the first carries the detail along, 8 times as many channels as `Detail` has.
        """
        return self._features(image, image, detail)


class UnetEncoder(_Encoder):
    """Residual convolutions in place of transformer blocks; the same four features as `RestEncoder`."""

    def __init__(self, widths, blocks, skip_widths, centred=False, detail=None):
        super().__init__(widths, skip_widths, centred, detail)
        half = widths[0] // 2
        ins, self.stages = [half, *widths[:-1]], nn.ModuleList()
        self.stem = nn.Sequential(_conv_norm(1, half, 2), _ConvBlock(half))
        for channels_in, channels, depth in zip(ins, widths, blocks):
            layers = [_conv_norm(channels_in, channels, 2), *(_ConvBlock(channels) for _ in range(depth))]
            self.stages.append(nn.Sequential(*layers))

    def forward(self, image: Tensor, detail: bool = True) -> tuple[Tensor, ...]:
        """As `RestEncoder`'s."""
        return self._features(image, self.stem(image), detail)


def _conv_norm(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv3d(channels_in, channels, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, ChannelLayerNorm(channels), nn.LeakyReLU(0.01))


class _ConvBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(_conv_norm(channels, channels, 1), nn.Conv3d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
