"""Presets: the only place where the network's numbers stand."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from torch import nn

from ctsam3d.model.appearance import Appearance
from ctsam3d.model.cross_patch import CrossPatchPrompter
from ctsam3d.model.decoder import Decoder
from ctsam3d.model.detail import Detail
from ctsam3d.model.encoder import RestEncoder, UnetEncoder
from ctsam3d.model.members import MemberDecoders, MemberEncoders
from ctsam3d.model.modulation import PsapLayer, RffLayer
from ctsam3d.model.sam3d import SAM3D

PATCH_SIZE = 64  # voxels a side
SPACING_MM = 1.5


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the network but its weights, and is stored with them.

    Attributes:
        encoder, prompt, cross_patch_frame: see `build`.
        centred: bring what a stage of the encoder gives to mean 0 and variance 1 over the patch, a channel at a time.
            The values of a narrow encoder otherwise drift to many times their spread, and hide it.
        appearance: channels of an embedding, see `Appearance`; 0 for none, as in the paper.
        detail: channels that the last two stages of the decoder get from the image, see `Detail`; 0 for none, as in
            the paper.
        beside: further networks whose logits are averaged with this one's (`members.py`); their P says nothing.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (1, 2, 6, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    decoder_width: int = 256
    prompt_hidden: int = 128
    cross_patch_widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    encoder: str = "rest"
    prompt: str = "psap"
    cross_patch_frame: str = "own"
    centred: bool = False
    appearance: int = 0
    detail: int = 0
    beside: tuple[NetworkConfig, ...] = ()

    def __post_init__(self):
        if self.encoder not in ("rest", "unet"):
            raise ValueError(f"encoder must be 'rest' or 'unet', got {self.encoder!r}")
        if self.prompt not in ("psap", "rff"):
            raise ValueError(f"prompt must be 'psap' or 'rff', got {self.prompt!r}")
        if self.cross_patch_frame not in ("own", "neighbour"):
            raise ValueError(f"cross_patch_frame must be 'own' or 'neighbour', got {self.cross_patch_frame!r}")
        if any(other.beside for other in self.beside):
            raise ValueError("beside must be of networks that have none beside them, got one that has")

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        """The inverse of `as_dict`, also after JSON has turned tuples into lists."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values | {"beside": tuple(map(cls.from_dict, values.get("beside", ())))})

    @property
    def skip_widths(self) -> tuple[int, int, int, int]:
        """Channels of the four features, without detail."""
        half = self.decoder_width // 2
        return half, half, half, self.decoder_width

    @property
    def feature_widths(self) -> tuple[int, int, int, int]:
        """Channels of the four features as the encoder gives them: the first carries the detail."""
        first, *others = self.skip_widths
        return first + 8 * self.detail, *others


_NARROW = {
    "cross_patch_widths": (8, 16, 32, 64, 128),
    "cross_patch_frame": "neighbour",
    "centred": True,
    "appearance": 32,
    "detail": 16,
}
PRESETS = {
    "base": NetworkConfig(),
    "small": NetworkConfig(widths=(24, 48, 96, 192), decoder_width=64, prompt_hidden=32, **_NARROW),
    "tiny": NetworkConfig(widths=(16, 32, 64, 128), decoder_width=32, prompt_hidden=16, **_NARROW),
}


def build(
    preset: str | NetworkConfig = "base",
    *,
    encoder: str | None = None,
    prompt: str | None = None,
    cross_patch_frame: str | None = None,
) -> SAM3D:
    """A network with fresh weights.

    Args:
        preset: "base" (the paper's), "small", "tiny", or a config.
        encoder: "rest" (default) or "unet", the paper's ablation.
        prompt: "psap" (default) or "rff", the paper's ablation.
        cross_patch_frame: P sees the patch and its mask in their "own" frame (the paper's, and "base"'s), or in the
            "neighbour"'s (see `cross_patch.py`; what "small" and "tiny" do).

    Raises:
        ValueError: an unknown preset, encoder, prompt or frame.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = PRESETS[preset] if isinstance(preset, str) else preset
    changes = {"encoder": encoder, "prompt": prompt, "cross_patch_frame": cross_patch_frame}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    if config.beside:
        return _build_members(config)
    width, skips = config.decoder_width, config.skip_widths
    detail = Detail(config.detail) if config.detail else None
    if config.encoder == "rest":
        image_encoder = RestEncoder(
            config.widths, config.blocks, config.heads, config.reductions, skips, config.centred, detail
        )
    else:
        image_encoder = UnetEncoder(config.widths, config.blocks, skips, config.centred, detail)
    layer = PsapLayer if config.prompt == "psap" else RffLayer
    modulation = functools.partial(layer, hidden=config.prompt_hidden)
    appearance = Appearance(skips, config.appearance, width) if config.appearance else None
    decoder = Decoder(width, modulation, config.prompt == "psap", appearance, config.detail)
    network = SAM3D(image_encoder, decoder, CrossPatchPrompter(config.cross_patch_widths), config)
    network.encoder.apply(_initialise)
    network.decoder.apply(_initialise)
    for module in network.modules():
        if isinstance(module, PsapLayer):  # prompts begin as a gentle change of the norm
            _truncated_normal(module.gamma)
            _truncated_normal(module.beta)
    return network


def _build_members(config: NetworkConfig) -> SAM3D:
    configs = (dataclasses.replace(config, beside=()), *config.beside)
    members = [build(own) for own in configs]
    encoders = MemberEncoders([member.encoder for member in members])
    decoders = MemberDecoders([member.decoder for member in members], [own.feature_widths for own in configs])
    return SAM3D(encoders, decoders, members[0].cross_patch, config)


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
