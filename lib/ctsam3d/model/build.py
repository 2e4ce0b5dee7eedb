"""Presets: the only place where the network's numbers stand."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from torch import nn

from ctsam3d.model.cross_patch import CrossPatchPrompter
from ctsam3d.model.decoder import Decoder
from ctsam3d.model.encoder import RestEncoder, UnetEncoder
from ctsam3d.model.layers import RESIZES
from ctsam3d.model.modulation import PsapLayer, RffLayer
from ctsam3d.model.sam3d import SAM3D

PATCH_SIZE = 64  # voxels a side
SPACING_MM = 1.5


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the network but its weights, and is stored with them.

    Attributes:
        widths, blocks, heads, reductions: of the encoder's four stages.
        decoder_widths: channels into the decoder's five stages, the coarsest first.
        skip_widths: channels of the four features, at 1/4, 1/8, 1/16 and 1/32; the decoder's own ones make up the rest.
        head_width: channels at full size before the last convolution; 0 for no features there (see `Decoder`).
        centred: whether the decoder takes features, and what it upscales, with mean 0 and variance 1 a channel. Else
            (the paper's way) narrow networks learnt values so far from 0 in the coarse stages that what differs from
            place to place was lost in the norms behind them, for good.
        prompt_hidden: channels of the prompts in each decoder stage's two norms.
        cross_patch_widths: channels of P's levels.
        encoder, prompt, prompt_resize, cross_patch_frame: see `build`.
        cross_patch_scale: P sees patches this many times coarser per axis; 1 is the paper's.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (1, 2, 6, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    decoder_widths: tuple[int, ...] = (256, 256, 256, 256, 128)
    skip_widths: tuple[int, ...] = (128, 128, 128, 256)
    head_width: int = 64
    centred: bool = False
    prompt_hidden: tuple[int, ...] = (128, 128, 128, 128, 128)
    cross_patch_widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    encoder: str = "rest"
    prompt: str = "psap"
    prompt_resize: str = "linear"
    cross_patch_frame: str = "own"
    cross_patch_scale: int = 1

    def __post_init__(self):
        if self.encoder not in ("rest", "unet"):
            raise ValueError(f"encoder must be 'rest' or 'unet', got {self.encoder!r}")
        if self.prompt not in ("psap", "rff"):
            raise ValueError(f"prompt must be 'psap' or 'rff', got {self.prompt!r}")
        if self.prompt_resize not in RESIZES:
            raise ValueError(f"prompt_resize must be one of {', '.join(RESIZES)}, got {self.prompt_resize!r}")
        if self.cross_patch_frame not in ("own", "neighbour"):
            raise ValueError(f"cross_patch_frame must be 'own' or 'neighbour', got {self.cross_patch_frame!r}")

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        """The inverse of `as_dict`, also after JSON has turned tuples into lists."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if width := values.pop("decoder_width", None):  # one number for all stages, before 0.2
            half = width // 2
            values |= {"decoder_widths": (width,) * 4 + (half,), "skip_widths": (half,) * 3 + (width,)}
            values |= {"head_width": width // 4, "prompt_hidden": (values["prompt_hidden"],) * 5}
        return cls(**values)


_NARROW = {
    "head_width": 0,
    "centred": True,
    "prompt_resize": "max",
    "cross_patch_widths": (8, 16, 32, 48),
    "cross_patch_frame": "neighbour",
    "cross_patch_scale": 2,
}
PRESETS = {
    "base": NetworkConfig(),
    "small": NetworkConfig(
        widths=(48, 96, 128, 144),
        decoder_widths=(80, 80, 80, 64, 32),
        skip_widths=(48, 40, 40, 80),
        prompt_hidden=(24, 24, 24, 24, 16),
        **_NARROW,
    ),
    "tiny": NetworkConfig(
        widths=(32, 64, 96, 112),
        decoder_widths=(64, 48, 48, 32, 16),
        skip_widths=(24, 24, 24, 64),
        prompt_hidden=(16, 16, 16, 16, 8),
        **_NARROW,
    ),
}


def build(
    preset: str | NetworkConfig = "base",
    *,
    encoder: str | None = None,
    prompt: str | None = None,
    prompt_resize: str | None = None,
    cross_patch_frame: str | None = None,
) -> SAM3D:
    """A network with fresh weights.

    Args:
        preset: "base" (the paper's), "small", "tiny", or a config.
        encoder: "rest" (default) or "unet", the paper's ablation.
        prompt: "psap" (default) or "rff", the paper's ablation.
        prompt_resize: how the prompt maps come to a decoder stage's size: "linear" (the paper's, and "base"'s), or
            "max", their greatest value in each coarse voxel (what "small" and "tiny" do), so that a click is never lost
            between the samples, and one pass reaches as far as the patch.
        cross_patch_frame: P sees the patch and its mask in their "own" frame (the paper's, and "base"'s), or in the
            "neighbour"'s (see `cross_patch.py`; what "small" and "tiny" do).

    Raises:
        ValueError: an unknown preset, encoder, prompt, resize or frame.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = PRESETS[preset] if isinstance(preset, str) else preset
    changes = {
        "encoder": encoder,
        "prompt": prompt,
        "prompt_resize": prompt_resize,
        "cross_patch_frame": cross_patch_frame,
    }
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    skips = config.skip_widths
    if config.encoder == "rest":
        image_encoder = RestEncoder(config.widths, config.blocks, config.heads, config.reductions, skips)
    else:
        image_encoder = UnetEncoder(config.widths, config.blocks, skips)
    layer = PsapLayer if config.prompt == "psap" else RffLayer
    modulations = [functools.partial(layer, hidden=hidden) for hidden in config.prompt_hidden]
    resize_prompts = RESIZES[config.prompt_resize] if config.prompt == "psap" else None
    decoder = Decoder(config.decoder_widths, skips, config.head_width, modulations, resize_prompts, config.centred)
    cross_patch = CrossPatchPrompter(config.cross_patch_widths, config.cross_patch_scale)
    network = SAM3D(image_encoder, decoder, cross_patch, config)
    network.encoder.apply(_initialise)
    network.decoder.apply(_initialise)
    for module in network.modules():
        if isinstance(module, PsapLayer):  # prompts begin as a gentle change of the norm
            _truncated_normal(module.gamma)
            _truncated_normal(module.beta)
    return network


def _initialise(module: nn.Module) -> None:
    """Truncated normal of std 0.02 with zero biases, as published.

    Dense convolutions get the std that keeps the variance, which is about 0.02 at the paper's width and more in the
    narrow presets, where 0.02 would let the signal fade.
    """
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv3d) and module.groups > 1):
        _truncated_normal(module)
    elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _truncated_normal(module: nn.Module) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
