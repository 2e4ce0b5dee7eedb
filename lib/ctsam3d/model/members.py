"""Several networks as one: each sees image and prompts for itself, and their logits are averaged.

Narrow networks that were trained apart err in different places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MemberEncoders(nn.Module):
    """Encoders side by side: the features of a stage lie behind each other, (B, C_1 + C_2 + ..., d, h, w)."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor, detail: bool = True) -> tuple[Tensor, ...]:
        """image (B, 1, D, H, W) to four features."""
        found = [member(image, detail) for member in self.members]
        return tuple(torch.cat(stage, dim=1) for stage in zip(*found))


class MemberDecoders(nn.Module):
    """Decoders side by side, each on its own encoder's features; the mean of their logits.

    Args:
        widths: of each member, the channels of its encoder's four features.
    """

    def __init__(self, members: Sequence[nn.Module], widths: Sequence[Sequence[int]]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.widths = [list(stage) for stage in zip(*widths)]  # of each stage, the members'

    def forward(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """features as `MemberEncoders` gives them, prompts (B, 3, D, H, W); returns logits (B, 1, D, H, W)."""
        parts = zip(*(stage.split(widths, dim=1) for stage, widths in zip(features, self.widths)))
        return torch.stack([member(own, prompts) for member, own in zip(self.members, parts)]).mean(0)
