"""CT-SAM3D: S segments a patch from clicks, P carries the clicks to the patches beside it.

An image is encoded once; every click then costs one `decode`. All volumes are (B, C, D, H, W) with D, H, W = z, y, x on
the model grid, intensities scaled to [0, 1].
"""

from __future__ import annotations

from torch import Tensor, nn

from ctsam3d.model.cross_patch import in_neighbours_frame


class SAM3D(nn.Module):
    """The whole network, composed of parts that `build.py` makes.

    Args:
        encoder: image (B, 1, D, H, W) to four skip features.
        decoder: those features and prompt maps to mask logits.
        cross_patch: P, from (image, mask, neighbour) to the neighbour's heatmap.
        config: what the parts were built from; it travels with the weights.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, cross_patch: nn.Module, config):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.cross_patch = cross_patch
        self.config = config

    def encode(self, image: Tensor, detail: bool = True) -> tuple[Tensor, ...]:
        """image (B, 1, D, H, W) to four features at 1/4, 1/8, 1/16 and 1/32 of its size.

        Args:
            detail: whether the first carries `Detail` along, where the network has it; `decode` needs it.
        """
        return self.encoder(image, detail)

    def decode(self, features: tuple[Tensor, ...], prompts: Tensor) -> Tensor:
        """Features of `encode` and prompts (B, 3, D, H, W) = [P, N, Y] (see `prompts.py`) to logits (B, 1, D, H, W)."""
        return self.decoder(features, prompts)

    def propose(self, image: Tensor, mask: Tensor, neighbour: Tensor, offset_zyx: Tensor | None = None) -> Tensor:
        """A patch, its binary mask and a neighbour, each (B, 1, D, H, W); returns the neighbour's raw heatmap.

        Args:
            offset_zyx: int (B, 3), voxels from each patch's first one to its neighbour's. The published P does without.

        Raises:
            ValueError: a P that works in the neighbour's frame, and no offset.
        """
        if self.config.cross_patch_frame == "neighbour":
            if offset_zyx is None:
                raise ValueError("offset_zyx must be given to a P that works in the neighbour's frame, got None")
            image, mask = (in_neighbours_frame(volumes, offset_zyx) for volumes in (image, mask))
        return self.cross_patch(image, mask, neighbour)

    def forward(self, image: Tensor, prompts: Tensor) -> Tensor:
        """S in one go: image (B, 1, D, H, W) and prompts (B, 3, D, H, W) to logits (B, 1, D, H, W)."""
        return self.decode(self.encode(image), prompts)
