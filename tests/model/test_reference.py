"""The network against the reference figures of the published one, imported and built natively."""

import itertools
import re

import numpy as np
import pytest
import torch
from tests.model.published import GOLDEN, clicks_zyx, published_state_dict, reference_inputs

from ctsam3d import checkpoint
from ctsam3d.model import build
from ctsam3d.model.prompts import prompt_maps

SIZE = (64, 64, 64)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as figures:
        return dict(figures)


@pytest.fixture(scope="module")
def params_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "params.pth"
    torch.save({"model_state_dict": published_state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def imported(params_path):
    return checkpoint.import_published(params_path, hu_window=(-125, 225))


def native_network():
    """The same weights put into a network of our own by our own names, without the import."""
    network = build("base").eval()
    state = {checkpoint.rename_published(name): tensor for name, tensor in published_state_dict().items()}
    ours = {}
    for name in network.state_dict():
        tensor = state[name]
        if name.endswith(".shared.weight"):  # published [Y, P, N] -> [P, N, Y]
            tensor = torch.stack([tensor[:, 1], tensor[:, 2], tensor[:, 0]], dim=1)
        ours[name] = tensor[:1] if name.startswith("decoder.head.") else tensor
    network.load_state_dict(ours)
    return network


@pytest.fixture(scope="module")
def volumes():
    return {k: torch.from_numpy(np.ascontiguousarray(v))[None, None] for k, v in reference_inputs().items()}


@pytest.fixture(scope="module", params=["imported", "native"])
def network(request, imported):
    return imported.network if request.param == "imported" else native_network()


@pytest.fixture(scope="module")
def outputs(network, volumes):
    prompts = prompt_maps(clicks_zyx(True), clicks_zyx(False), None, SIZE)[None]
    with_previous = prompts.clone()
    with_previous[:, 2] = volumes["previous"][0]
    with torch.no_grad():
        features = network.encode(volumes["image"])
        out = {f"encoder_{n}": f for n, f in enumerate(features, start=1)}
        out["click_maps"] = prompts[:, :2]
        out["prob_points_only"] = network.decode(features, prompts).sigmoid()
        out["prob_with_previous_mask"] = network.decode(features, with_previous).sigmoid()
    return {k: v.numpy() for k, v in out.items()}


def sampled(key: str, value: np.ndarray) -> np.ndarray:
    if key.startswith("encoder_"):
        return value[:, :: {"encoder_1": 8, "encoder_2": 2}.get(key, 1)]
    return value[..., ::2, ::2, ::2]


@pytest.mark.parametrize("key", [f"encoder_{n}" for n in range(1, 5)] + ["click_maps"])
def test_features_and_maps(outputs, golden, key):
    np.testing.assert_allclose(sampled(key, outputs[key]), golden[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["prob_points_only", "prob_with_previous_mask"])
def test_probabilities(outputs, golden, key):
    np.testing.assert_allclose(sampled(key, outputs[key]), golden[key], atol=1e-4, rtol=0)


def test_heatmap(network, volumes, outputs, golden):
    """P sees prob > 0.5, and one voxel on the other side of it changes 0.2 in the heatmap.

    Some voxels of the patch lie so near to 0.5 that another order of additions in S decides them otherwise. Whichever
    way they fall, one way must give the figures.
    """
    prob = outputs["prob_points_only"]
    undecided = np.argwhere(np.abs(prob - 0.5) < 1e-5)
    assert len(undecided) < 12  # of 262,144
    worst = []
    for flips in range(4):
        for flipped in itertools.combinations(undecided, flips):
            mask = prob > 0.5
            for voxel in flipped:
                mask[tuple(voxel)] ^= True
            with torch.no_grad():
                heatmap = network.propose(volumes["image"], torch.from_numpy(mask).float(), volumes["neighbour"])
            worst.append(np.abs(sampled("cpp_heatmap", heatmap.numpy()) - golden["cpp_heatmap"]).max())
            if worst[-1] < 2e-3:
                return
    pytest.fail(
        f"the heatmap must come within 2e-3 of the reference, the nearest of {len(worst)} is {min(worst):.1e} off"
    )


def test_parameter_counts(imported):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    network = imported.network
    assert count(network.encoder) == 36_935_344  # 36.935 M
    unused = 64 * 27 + 1 + (256 * 64 + 256) + (256 * 256 + 256) + (2 * 256 + 2)  # second mask, IoU head
    assert round((count(network.decoder) + unused) / 1e6, 3) == 32.280
    assert round(count(network.cross_patch) / 1e6, 3) == 4.807


def test_left_out_is_listed(imported):
    names = {re.sub(r"\[.*", "", name) for name in imported.notes["left_out"]}
    assert all(re.match(r"prompt_encoder|mask_decoder\.(iou|mask)_prediction_head", name) for name in names)
    assert len(names) == 9


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_import_is_strict(tmp_path, damage):
    state, name = published_state_dict(), "mask_decoder.spade3.conv_0.bias"
    if damage == "missing":
        del state[name]
    elif damage == "surplus":
        name = "mask_decoder.spade9.extra"
        state[name] = torch.zeros(3)
    else:
        state[name] = torch.zeros(3)
    path = tmp_path / "params.pth"
    torch.save({"model_state_dict": state}, path)
    with pytest.raises(ValueError, match=re.escape(name)):
        checkpoint.import_published(path, hu_window=(-125, 225))
