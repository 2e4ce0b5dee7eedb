"""Shapes, presets, prompts, and that each prompt channel does something."""

import itertools
import math

import numpy as np
import pytest
import torch

from ctsam3d.model import PRESETS, NetworkConfig, build
from ctsam3d.model.cross_patch import in_neighbours_frame
from ctsam3d.model.prompts import click_map, prompt_maps


@pytest.mark.parametrize("encoder", ["rest", "unet"])
@pytest.mark.parametrize("prompt", ["psap", "rff"])
@pytest.mark.parametrize("frame", ["own", "neighbour"])
@pytest.mark.parametrize("batch", [1, 2])
def test_shapes(encoder, prompt, frame, batch):
    torch.manual_seed(0)
    network = build("tiny", encoder=encoder, prompt=prompt, cross_patch_frame=frame).eval()
    image = torch.rand(batch, 1, 64, 64, 64)
    prompts = prompt_maps([(30, 30, 30)], [(5, 60, 7)], None, (64, 64, 64))[None].repeat(batch, 1, 1, 1, 1)
    with torch.no_grad():
        features = network.encode(image)
        assert [tuple(f.shape[1:]) for f in features] == [
            (144, *(16,) * 3),
            (16, 8, 8, 8),
            (16, 4, 4, 4),
            (32, 2, 2, 2),
        ]
        logits = network.decode(features, prompts)
        assert logits.shape == (batch, 1, 64, 64, 64)
        assert network.propose(image, image, image, torch.zeros(batch, 3, dtype=int)).shape == (batch, 1, 64, 64, 64)
        for channel in range(3):
            other = prompts.clone()
            other[:, channel] = 0.7 if channel == 2 else click_map([(40, 10, 50)], (64, 64, 64))
            assert not torch.allclose(network.decode(features, other), logits), f"prompt channel {channel} is ignored"


def test_presets():
    assert PRESETS["base"].widths == (96, 192, 384, 768) and PRESETS["base"].decoder_width == 256
    assert PRESETS["small"].widths == (24, 48, 96, 192) and PRESETS["tiny"].widths == (16, 32, 64, 128)
    assert all(p.blocks == (1, 2, 6, 2) for p in PRESETS.values())
    assert {n: p.cross_patch_frame for n, p in PRESETS.items()} == {
        "base": "own", "small": "neighbour", "tiny": "neighbour"
    }  # fmt: skip
    assert NetworkConfig.from_dict(PRESETS["small"].as_dict()) == PRESETS["small"]


@pytest.mark.parametrize(
    ("argument", "value"), [("preset", "huge"), ("encoder", "vit"), ("prompt", "text"), ("cross_patch_frame", "world")]
)
def test_unknown_choice(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*{value}"):
        build(**{"preset": "tiny", argument: value})


def test_every_parameter_of_s_learns():
    torch.manual_seed(0)
    network = build("tiny")
    prompts = prompt_maps([(30, 30, 30)], [(5, 60, 7)], torch.rand(64, 64, 64), (64, 64, 64))[None]
    network(torch.rand(2, 1, 64, 64, 64), prompts.repeat(2, 1, 1, 1, 1)).square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None and not n.startswith("cross_patch")]
    assert idle == []


def test_in_the_neighbours_frame_every_voxel_keeps_its_place():
    """A voxel of the patch is at its index less the offset; what the neighbour does not reach is gone."""
    patches = torch.rand(3, 2, 8, 9, 10) + 1
    offsets = torch.tensor([(0, 0, 0), (3, -2, 5), (8, 0, 0)])
    moved = in_neighbours_frame(patches, offsets)
    assert torch.equal(moved[0], patches[0]) and not moved[2].any()
    for voxel in itertools.product(range(8), range(9), range(10)):
        source = np.add(voxel, (3, -2, 5))
        inside = (source >= 0).all() and (source < (8, 9, 10)).all()
        assert torch.equal(moved[1][:, *voxel], patches[1][:, *source] if inside else torch.zeros(2))


def test_p_in_its_own_frame_does_without_an_offset():
    image, mask, neighbour = (torch.rand(1, 1, 64, 64, 64) for _ in range(3))
    offset = torch.tensor([(32, 0, 0)])
    with torch.no_grad():
        own = build("tiny", cross_patch_frame="own").eval()
        assert torch.equal(own.propose(image, mask, neighbour), own.propose(image, mask, neighbour, offset))
        other = build("tiny", cross_patch_frame="neighbour").eval()
        with pytest.raises(ValueError, match=r"offset_zyx must be given.*None"):
            other.propose(image, mask, neighbour)
        moved = (in_neighbours_frame(volumes, offset) for volumes in (image, mask))
        assert torch.equal(other.propose(image, mask, neighbour, offset), other.cross_patch(*moved, neighbour))


def test_click_map_by_hand():
    clicks = click_map([(10, 20, 30)], (64, 64, 64))
    assert clicks[10, 20, 30] == 1
    assert clicks[10, 20, 32].item() == pytest.approx(math.exp(-4 / 8), abs=3e-4)
    assert clicks[12, 20, 30] == clicks[10, 22, 30] == clicks[10, 20, 28]
    assert clicks[10, 20, 38] > 0 and clicks[10, 20, 39] == 0  # radius 8 per axis
    assert clicks[18, 20, 30] > 0 and clicks[19, 20, 30] == 0


def test_later_click_overwrites_its_box():
    both = click_map([(10, 10, 10), (10, 10, 14)], (64, 64, 64))
    alone = click_map([(10, 10, 14)], (64, 64, 64))
    assert torch.equal(both[2:19, 2:19, 6:23], alone[2:19, 2:19, 6:23])
    assert both[10, 10, 5] > 0 == alone[10, 10, 5]


def test_border_click_and_order_of_the_maps():
    maps = prompt_maps([(0, 0, 0)], [(63, 63, 63)], torch.full((64, 64, 64), 0.25), (64, 64, 64))
    assert maps[0, 0, 0, 0] == 1 and maps[1, 63, 63, 63] == 1 and maps[0, 63, 63, 63] == 0
    assert (maps[2] == 0.25).all()
    with pytest.raises(ValueError, match=r"click \(64, 0, 0\) is outside the patch"):
        prompt_maps([(64, 0, 0)], [], None, (64, 64, 64))
