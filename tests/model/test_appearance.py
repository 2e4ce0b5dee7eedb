"""Likeness to the prompts, with embeddings set by hand."""

import torch

from ctsam3d.model import build
from ctsam3d.model.appearance import Appearance

FEATURES = (torch.randn(2, 4, 4, 4, 4), torch.randn(2, 4, 2, 2, 2))


def appearance_of(embedding):
    layer = Appearance((4, 4), 2, 6)
    layer.embed = lambda features: embedding
    return layer


def test_likeness_is_the_cosine_to_the_mean_of_what_a_prompt_covers():
    embedding = torch.zeros(1, 2, 1, 1, 2)
    embedding[0, 0, 0, 0, 0] = 1  # the first cell along one axis, the second along the other
    embedding[0, 1, 0, 0, 1] = 1
    prompts = torch.zeros(1, 3, 1, 1, 2)
    prompts[0, 0, 0, 0, 0] = 0.3  # P covers the first
    prompts[0, 2] = torch.tensor([1.0, 1.0])  # Y both, so that nothing is left
    maps = appearance_of(embedding).likeness(FEATURES, prompts)[0, :, 0, 0]
    root = 0.5**0.5
    expected = torch.tensor([[1, 0], [0, 0], [root, root], [0, 0]])
    torch.testing.assert_close(maps, expected)


def test_embeddings_have_length_one_at_a_quarter_of_the_patch():
    layer = Appearance((4, 4), 5, 6)
    embedding = layer.embed(FEATURES)
    assert embedding.shape == (2, 5, 4, 4, 4)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 4, 4, 4))


def test_every_scale_and_the_prompts_reach_the_logits():
    torch.manual_seed(0)
    network = build("tiny").eval()
    image, prompts = torch.rand(1, 1, 64, 64, 64), torch.zeros(1, 3, 64, 64, 64)
    prompts[0, 0, 30:34, 30:34, 30:34] = 1
    with torch.no_grad():
        features = network.encode(image)
        logits = network.decode(features, prompts)
        for scale in range(4):
            changed = [torch.randn_like(f) if n == scale else f for n, f in enumerate(features)]
            assert (network.decode(tuple(changed), prompts) - logits).abs().mean() > 0.01 * logits.std()


def test_centred_features_have_no_mean_where_no_layer_adds_one():
    encoder = build("tiny").eval().encoder
    with torch.no_grad():
        features = encoder(torch.rand(1, 1, 64, 64, 64))
    for feature, skip in zip(features, encoder.skips):
        feature = feature[:, : skip.out_channels]  # without the detail behind it
        torch.testing.assert_close(feature.mean((2, 3, 4))[0], skip.bias.detach(), atol=1e-4, rtol=0)
