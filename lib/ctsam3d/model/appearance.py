"""What looks like what was clicked: maps of likeness to clicks and previous mask, at a quarter of the patch.

The paper's decoder works from place to place, so that what a click shows of its structure must find its way to the
structure's far end through the coarsest stages. Here it is told everywhere at once: every voxel has an embedding, and
each prompt is the mean embedding of what it covers. Not in the paper; "base" goes without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctsam3d.model.layers import instance_norm, resize

MAPS = 4  # likeness to P, N, Y, and to what Y leaves out


class Appearance(nn.Module):
    """Embeddings of the encoder's features, and their likeness to the prompts.

    Args:
        skip_widths: channels of the four features.
        channels: of an embedding.
        out_channels: of what it adds to the decoder.
    """

    def __init__(self, skip_widths, channels: int, out_channels: int):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv3d(width, channels, 1) for width in skip_widths)
        self.mix = nn.Conv3d(channels, channels, 3, padding=1)
        self.out = nn.Conv3d(MAPS, out_channels, 1)

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Those that `embed` uses."""
        return [*self.inputs.parameters(), *self.mix.parameters()]

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Four features, without detail, to embeddings (B, channels, D/4, H/4, W/4) of length 1."""
        size = features[0].shape[2:]
        x = sum(resize(layer(feature), size) for layer, feature in zip(self.inputs, features))
        return F.normalize(self.mix(F.gelu(instance_norm(x))), dim=1)

    def likeness(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """Cosines (B, 4, D/4, H/4, W/4) to P, N, Y and to the rest, from prompts (B, 3, D, H, W); 0 to an empty one."""
        embedding = self.embed(features)
        weight = resize(prompts, embedding.shape[2:])
        weight = torch.cat([weight, 1 - weight[:, 2:]], dim=1).flatten(2)  # (B, 4, N)
        tokens = embedding.flatten(2)  # (B, C, N)
        means = F.normalize(weight @ tokens.transpose(1, 2), dim=2)  # (B, 4, C)
        return (means @ tokens).unflatten(2, embedding.shape[2:])

    def forward(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """What to add to the decoder's features at a quarter of the patch, (B, out_channels, D/4, H/4, W/4)."""
        return self.out(self.likeness(features, prompts))
