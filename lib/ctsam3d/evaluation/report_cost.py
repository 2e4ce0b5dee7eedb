"""What a patch costs in a network: parameters and multiply-adds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctsam3d import checkpoint
from ctsam3d.model.build import PATCH_SIZE, PRESETS, NetworkConfig, build
from ctsam3d.model.modulation import PROMPTS


@dataclass(frozen=True)
class NetworkCost:
    """Of S (encoder and decoder) and P; multiply-adds of one patch, every layer called as it stands.

    A session on a CPU needs fewer: it leaves out what the prompts do not reach.

    Attributes:
        preset: the name of a preset, or "own" for another config.
        feedback: further passes of the decoder that a click takes.
    """

    preset: str
    encoder_parameters: int
    decoder_parameters: int
    proposer_parameters: int
    encode: int
    decode: int
    propose: int
    feedback: int = 0


def network_cost(config: NetworkConfig, feedback: int = 0) -> NetworkCost:
    """The cost of networks of a config. Torch counts convolutions and matrix products, two operations a multiply-add.

    Args:
        feedback: see `NetworkCost`.
    """
    # Shapes are enough, but for random Fourier features: those look for the clicks, and are given none.
    real = config.prompt == "rff"
    # Without gradients the layers take short cuts: some need real values, and others are not counted.
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if real else "meta"), torch.enable_grad():
        network = build(config).eval()
        image = torch.zeros(1, 1, *(PATCH_SIZE,) * 3)
        prompts = torch.zeros(1, PROMPTS, *(PATCH_SIZE,) * 3)
        with FlopCounterMode(display=False) as encode:
            features = network.encode(image)
        with FlopCounterMode(display=False) as decode:
            network.decode(features, prompts)
        with FlopCounterMode(display=False) as propose:
            network.cross_patch(image, image, image)
    parameters = (
        sum(parameter.numel() for parameter in part.parameters())
        for part in (network.encoder, network.decoder, network.cross_patch)
    )
    preset = next((name for name, known in PRESETS.items() if known == config), "own")
    work = (count.get_total_flops() // 2 for count in (encode, decode, propose))
    return NetworkCost(preset, *parameters, *work, feedback=feedback)


def cost_of_weights(weights: str | os.PathLike, sha256: str) -> NetworkCost | None:
    """The cost of the network of a packaged name or a .safetensors file; None where those weights are there no more."""
    try:
        loaded = checkpoint.load(checkpoint.path_of(weights))
    except (OSError, ValueError):
        return None
    return network_cost(loaded.network.config, loaded.feedback) if loaded.sha256 == sha256 else None
