"""The decoder's short ways against the plain ones: prompts that are zero almost everywhere, oneDNN's kernels."""

import pytest
import torch
from torch.nn import functional as F

from ctsam3d.model import build
from ctsam3d.model.decoder import Decoder
from ctsam3d.model.layers import Conv3d, conv3d_by_planes
from ctsam3d.model.modulation import PsapLayer
from ctsam3d.model.prompts import prompt_maps

SIZE = (64, 64, 64)


def previous(*bounds, value=0.9):
    mask = torch.zeros(SIZE)
    mask[tuple(slice(a, b) for a, b in bounds)] = value
    return mask


def ball(radius, value=0.9):
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in SIZE], indexing="ij")).float()
    near = ((grid - torch.tensor([20.0, 33.0, 30.0]).view(3, 1, 1, 1)) ** 2).sum(0) <= radius**2
    return near * value


PROMPTS = {
    "nothing": prompt_maps([], [], None, SIZE),
    "a click": prompt_maps([(30, 20, 40)], [], None, SIZE),
    "clicks in two corners": prompt_maps([(0, 0, 0)], [(63, 63, 63)], None, SIZE),
    "a click in a corner": prompt_maps([(63, 0, 63)], [], None, SIZE),
    "a mask inside": prompt_maps([(30, 30, 30)], [(25, 28, 20)], previous((10, 40), (15, 50), (12, 39)), SIZE),
    "a mask at the border": prompt_maps([(3, 30, 30)], [], previous((0, 20), (15, 64), (0, 64)), SIZE),
    "a ball": prompt_maps([(20, 33, 30)], [], ball(24), SIZE),
    "a ball and a far click": prompt_maps([(20, 33, 30)], [(63, 5, 60)], ball(12), SIZE),
    "a single voxel": prompt_maps([], [], previous((33, 34), (1, 2), (62, 63)), SIZE),
    "everything": prompt_maps([], [], torch.rand(SIZE, generator=torch.Generator().manual_seed(0)), SIZE),
}


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    layer = PsapLayer(channels=6, hidden=5)
    for module in (layer.shared, layer.gamma, layer.beta):
        torch.nn.init.normal_(module.bias)
    return layer.eval()


def by_definition(layer, x, maps):
    """PSAP by PyTorch's own layers."""
    hidden = F.relu(F.conv3d(maps, layer.shared.weight, layer.shared.bias, padding=1))
    gamma, beta = (F.conv3d(hidden, m.weight, m.bias, padding=1) for m in (layer.gamma, layer.beta))
    return F.instance_norm(x, eps=1e-5) * (1 + gamma) + beta


@pytest.mark.parametrize("size", [2, 3, 4, 16, 32])
def test_the_short_way_around_the_prompts_gives_the_whole(layer, size):
    x = torch.randn(1, 6, size, size, size).contiguous(memory_format=torch.channels_last_3d)
    for name, maps in PROMPTS.items():
        small = F.interpolate(maps[None], (size,) * 3, mode="trilinear", align_corners=False)
        with torch.no_grad():
            whole = by_definition(layer, x, small)
            assert torch.allclose(layer(x, small), whole, atol=1e-4), name
            assert torch.allclose(layer.dense(x, small), whole, atol=1e-4), name


def test_what_the_maps_reach_is_all_that_is_computed(layer, monkeypatch):
    """One voxel reaches 5 x 5 x 5, cut off at the faces; maps without anything reach nothing."""
    seen = []
    sparse = PsapLayer.sparse
    monkeypatch.setattr(PsapLayer, "sparse", lambda *a: seen.append(len(a[3][0])) or sparse(*a))
    x = torch.randn(2, 6, 16, 16, 16)
    with torch.no_grad():
        for place in ((0, 8, 8, 8), (1, 0, 8, 15), None):
            maps = torch.zeros(2, 3, 16, 16, 16)
            if place:
                maps[place[0], 1, place[1], place[2], place[3]] = 1e-3
            layer(x, maps)
    assert seen == [125, 45, 0]


def test_each_patch_of_a_batch_has_its_own_prompts(layer):
    maps = torch.stack(list(PROMPTS.values())[:4])[:, :, ::4, ::4, ::4]
    x = torch.randn(4, 6, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(layer(x, maps), by_definition(layer, x, maps), atol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_are_those_of_the_plain_path(name, monkeypatch):
    torch.manual_seed(0)
    network = build("small").to(memory_format=torch.channels_last_3d).eval()
    for module in network.modules():
        if isinstance(module, PsapLayer):  # as strong as after training
            torch.nn.init.normal_(module.gamma.weight, std=0.1)
            torch.nn.init.normal_(module.beta.weight, std=0.1)
    image, prompts = torch.rand(1, 1, *SIZE), PROMPTS[name][None]
    with torch.no_grad():
        features = network.encode(image)
        short = network.decode(features, prompts)
        two = network.decode([f.repeat(2, 1, 1, 1, 1) for f in features], prompts.repeat(2, 1, 1, 1, 1))
    monkeypatch.setattr(PsapLayer, "forward", by_definition)
    monkeypatch.setattr(Decoder, "plain", True)
    monkeypatch.setattr(Conv3d, "forward", torch.nn.Conv3d.forward)
    with torch.no_grad():
        plain = network.decode(features, prompts)
    assert plain.std() > 0.1 and torch.allclose(short, plain, atol=1e-4)
    assert torch.allclose(two, plain, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 4, 3), (2, 6, 5, 8), (3, 16, 16, 16)])
def test_a_convolution_by_planes_is_the_convolution(shape):
    """Two planes, an odd height, a batch; also where the memory is not channels-last."""
    batch, *size = shape
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(batch, 5, *size, generator=generator), torch.randn(7, 5, 3, 3, 3, generator=generator)
    bias = torch.randn(7, generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        with torch.no_grad():
            found = conv3d_by_planes(x.contiguous(memory_format=layout), weight, bias)
        assert torch.allclose(found, F.conv3d(x, weight, bias, padding=1), atol=1e-4)


def test_what_goes_by_planes():
    for channels, size, kernel, goes in [(64, 16, 3, True), (32, 16, 3, False), (64, 17, 3, False), (64, 16, 1, False)]:
        layer = Conv3d(channels, 64, kernel, padding=kernel // 2)
        assert layer._by_planes_pays(torch.zeros(1, channels, size, 16, 16)) is goes
    assert not Conv3d(64, 64, 3, padding=1)._by_planes_pays(torch.zeros(1, 64, 8, 8, 8))


def test_a_full_map_takes_the_fast_convolutions_too(layer, monkeypatch):
    """Where everything must be computed, all three layers go through `Conv3d`, not PyTorch's slow kernels."""
    taken = []
    forward = Conv3d.forward
    monkeypatch.setattr(Conv3d, "forward", lambda self, x: taken.append(self) or forward(self, x))
    with torch.no_grad():
        layer(torch.randn(1, 6, 8, 8, 8), torch.ones(1, 3, 8, 8, 8))
    assert {id(own) for own in taken} == {id(own) for own in (layer.shared, layer.gamma, layer.beta)}
