"""The mask decoder of S: five stages that double the resolution, each modulated by the prompts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.detail import split
from ctsam3d.model.layers import ChannelLayerNorm, Conv3d, resize


class PromptedBlock(nn.Module):
    """A residual block of two prompted norms, each followed by leaky ReLU and a convolution."""

    def __init__(self, channels: int, modulation: Callable[[int], nn.Module]):
        super().__init__()
        self.modulate_1, self.modulate_2 = modulation(channels), modulation(channels)
        self.conv_1 = Conv3d(channels, channels, 3, padding=1)
        self.conv_2 = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        hidden = self.conv_1(F.leaky_relu(self.modulate_1(x, prompts), 0.2))
        return x + self.conv_2(F.leaky_relu(self.modulate_2(hidden, prompts), 0.2))


def upscale(in_channels: int, channels: int) -> nn.Sequential:
    """(B, C, D, H, W) to (B, C', 2D, 2H, 2W)."""
    return nn.Sequential(nn.ConvTranspose3d(in_channels, channels, 2, stride=2), ChannelLayerNorm(channels), nn.GELU())


class Decoder(nn.Module):
    """Features and prompts to the logits of the mask.

    Args:
        width: channels into the first four stages; half of it into the fifth, a quarter into the head.
        modulation: makes the prompted norm for a number of channels (`PsapLayer` or `RffLayer`).
        resize_prompts: whether prompts are brought to each stage's size before its block sees them.
        appearance: what likeness to the prompts adds at 1/4 (`Appearance`, to `width` channels), or None.
        detail: channels that the first feature carries folded along (see `detail.py`), for the last two stages.

    Attributes:
        plain: call every layer as it stands also where no gradient is wanted.
    """

    plain = False

    def __init__(
        self,
        width: int,
        modulation: Callable[[int], nn.Module],
        resize_prompts: bool = True,
        appearance: nn.Module | None = None,
        detail: int = 0,
    ):
        super().__init__()
        self.resize_prompts, self.appearance = resize_prompts, appearance
        ins, outs = [width] * 4 + [width // 2], [width // 2] * 4 + [width // 4]
        self.blocks = nn.ModuleList(PromptedBlock(channels, modulation) for channels in ins)
        self.detail = Conv3d(detail, width // 2, 1) if detail else None
        rises = [*ins[:-1], ins[-1] + detail]  # the last one sees the detail once more, as it is
        self.upscales = nn.ModuleList(upscale(a, b) for a, b in zip(rises, outs))
        self.head = Conv3d(outs[-1], 1, 3, padding=1)

    def forward(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """features at 1/4, 1/8, 1/16, 1/32 of prompts (B, 3, D, H, W); returns logits (B, 1, D, H, W)."""
        detail = None
        if self.detail is not None:
            first, detail = split(features[0], self.detail.in_channels)  # detail: (B, C, D/2, H/2, W/2)
            features = (first, *features[1:])
        x = self.upscales[-2](self.coarse(features, prompts))  # (B, width / 2, D/2, H/2, W/2)
        if detail is None:
            x = self._block(-1, x, prompts)
        else:
            x = torch.cat([self._block(-1, x + self.detail(detail), prompts), detail], dim=1)
        wide = self.head.in_channels >= _MANY_CHANNELS and x.device.type == "cpu"
        if self.plain or torch.is_grad_enabled() or not wide:
            return self.head(self.upscales[-1](x))
        return _upscale_and_head(x, self.upscales[-1], self.head)

    def coarse(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """The first four stages, a third of the cost: features without detail to (B, width, D/4, H/4, W/4)."""
        *skips, x = features
        for stage in range(len(self.blocks) - 2):
            x = self.upscales[stage](self._block(stage, x, prompts))
            x = torch.cat([x, skips.pop()], dim=1)  # the encoder's feature at 1/16, 1/8 and 1/4
        if self.appearance is not None:
            x = x + self.appearance(features, prompts)
        return self._block(-2, x, prompts)

    def _block(self, stage: int, x: Tensor, prompts: Tensor) -> Tensor:
        return self.blocks[stage](x, resize(prompts, x.shape[2:]) if self.resize_prompts else prompts)


_MANY_CHANNELS = 16  # of the head; a CPU's cache holds fewer ones anyway


def _upscale_and_head(x: Tensor, up: nn.Sequential, head: nn.Conv3d) -> Tensor:
    """`head(up(x))`, slice by slice, so that the upscaled features never leave a CPU's cache.

    Both are matrix products: each voxel gives its 2 x 2 x 2 upscaled ones, and each of those what it adds to the 27
    logits around it.

    Args:
        x: (B, C, D, H, W).
        up: as made by `upscale`, to C' channels.
        head: from C' channels to one.

    Returns:
        Logits (B, 1, 2D, 2H, 2W).
    """
    expand, norm, activation = up
    (batch, _, depth, height, width), channels = x.shape, expand.out_channels
    spread = expand.weight.permute(0, 2, 3, 4, 1).flatten(1)  # (C, 2 * 2 * 2 * C')
    bias = expand.bias.repeat(8)
    taps = head.weight[0].flatten(1)  # (C', 27)
    logits = head.bias.view(1, 1, 1, 1).repeat(batch, 2 * depth + 2, 2 * height + 2, 2 * width + 2)  # one more around
    for out, volume in zip(logits, x.permute(0, 2, 3, 4, 1)):  # (D, H, W, C)
        added = out.new_empty(27, depth, 2, height, 2, width, 2)
        for z, rows in enumerate(volume):
            fine = torch.addmm(bias, rows.reshape(height * width, -1), spread).view(-1, channels)
            fine = activation(F.layer_norm(fine, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
            added[:, z] = (fine @ taps).view(height, width, 2, 2, 2, 27).permute(5, 2, 0, 3, 1, 4)
        added = added.view(27, 2 * depth, 2 * height, 2 * width)
        for tap, volume_added in enumerate(added):
            # A tap looks (i, j, k) - 1 voxels ahead, so what a voxel adds lands that far behind.
            i, j, k = (2 - tap // 9, 2 - tap // 3 % 3, 2 - tap % 3)
            out[i : i + 2 * depth, j : j + 2 * height, k : k + 2 * width] += volume_added
    return logits[:, None, 1:-1, 1:-1, 1:-1].contiguous()
