"""What the last two stages see of the image at half its size."""

import dataclasses

import torch

from ctsam3d.model import build
from ctsam3d.model.build import PRESETS
from ctsam3d.model.detail import Detail, fold, unfold


def test_folding_puts_the_eight_voxels_of_a_place_into_its_channels():
    x = torch.arange(16.0).reshape(1, 2, 2, 2, 2)  # one place of two channels
    folded = fold(x)
    assert folded.shape == (1, 16, 1, 1, 1)
    assert folded.flatten().tolist() == list(range(16))


def test_unfolding_undoes_folding_on_every_axis():
    x = torch.randn(2, 3, 4, 6, 8)
    folded = fold(x)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded), x)
    assert folded[1, 2 * 8 + 0b011, 1, 2, 3] == x[1, 2, 2, 5, 7]  # z even, y and x odd


def test_detail_is_half_the_size_in_place_and_does_not_see_a_scale():
    torch.manual_seed(0)
    layer, image = Detail(4), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        detail, moved = layer(image), layer(image.roll(2, 4))
        assert detail.shape == (1, 4, 8, 8, 8)
        inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))  # padding is no part of the image
        torch.testing.assert_close(layer(2 * image)[inside], detail[inside], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(moved[..., 3:6], detail[..., 2:5], atol=0.1, rtol=0.1)  # two voxels are one of it
        torch.testing.assert_close(detail.mean((2, 3, 4)), torch.zeros(1, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(detail.var((2, 3, 4), unbiased=False), torch.ones(1, 4), atol=1e-3, rtol=0)


def test_detail_alone_reaches_the_logits_of_its_own_place():
    torch.manual_seed(0)
    network = build("tiny").eval()
    channels = network.config.detail
    prompts = torch.zeros(1, 3, 64, 64, 64)
    prompts[0, 0, 30:34, 30:34, 30:34] = 1
    with torch.no_grad():
        features = network.encode(torch.rand(1, 1, 64, 64, 64))
        logits = network.decode(features, prompts)
        first = features[0].clone()
        first[:, -8 * channels :, 4, 5, 6] += 1
        changed = (network.decode((first, *features[1:]), prompts) - logits).abs()[0, 0]
    touched = torch.nonzero(changed > 0.1 * changed.max())  # norms over the patch carry a little everywhere
    assert changed.max() > 0.01 * logits.std()
    assert ((touched // 4 - torch.tensor([4, 5, 6])).abs() <= 2).all()  # two convolutions and the head from there


def test_what_needs_no_detail_does_without():
    network = build("tiny")
    image = torch.rand(1, 1, 64, 64, 64)
    assert [f.shape[1] for f in network.encode(image, detail=False)] == [16, 16, 16, 32]
    network.decoder.coarse(network.encode(image, detail=False), torch.zeros(1, 3, 64, 64, 64)).sum().backward()
    assert all(p.grad is None for p in network.encoder.detail.parameters())


def test_without_detail_the_features_are_the_papers():
    network = build(dataclasses.replace(PRESETS["tiny"], detail=0))
    assert network.encoder.detail is None and network.decoder.detail is None
    assert [f.shape[1] for f in network.encode(torch.rand(1, 1, 64, 64, 64))] == [16, 16, 16, 32]
    assert build("base").config.detail == 0
