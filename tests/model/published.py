"""Weights and inputs of the published network's reference figures, rebuilt from their rule (tests/golden/README.md)."""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
CLICKS_XYZ = {True: [(30, 20, 40), (10, 50, 33)], False: [(50, 10, 12), (2, 61, 63)]}


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in (GOLDEN / "state_dict.tsv").read_text().splitlines():
        name, shape = line.split("\t")[:2]
        shapes[name] = () if shape == "scalar" else tuple(map(int, shape.split("x")))
    return shapes


def published_state_dict() -> dict[str, torch.Tensor]:
    state = {}
    for name, shape in published_shapes().items():
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        if name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif len(shape) == 1 and name.endswith("weight"):
            z = 1 + 0.1 * z
        elif len(shape) <= 1:
            z = 0.1 * z
        else:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(np.asarray(z, dtype=np.float32))
    return state


def reference_inputs() -> dict[str, np.ndarray]:
    """image, previous mask and neighbour, (64, 64, 64), z, y, x."""
    noise = np.random.RandomState(7).rand(1, 1, 64, 64, 64).astype(np.float32)[0, 0]
    z, y, x = np.meshgrid(*[np.arange(64)] * 3, indexing="ij")
    ball = ((z - 30) ** 2 + (y - 34) ** 2 + (x - 25) ** 2) < 18**2
    image = (0.5 * noise + 0.5 * ball).astype(np.float32)
    previous = np.exp(-(((z - 32) / 14) ** 2 + ((y - 30) / 10) ** 2 + ((x - 28) / 12) ** 2)).astype(np.float32)
    return {"image": image, "previous": previous, "neighbour": np.roll(image, (16, -8, 24), axis=(0, 1, 2))}


def clicks_zyx(positive: bool) -> list[tuple[int, int, int]]:
    return [(z, y, x) for x, y, z in CLICKS_XYZ[positive]]
