"""The network with its preprocessing: batches, and features that sessions on one scan share."""

import gc
import weakref

import numpy as np
import pytest
import torch

from ctsam3d import segmenter as module
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.model import build
from ctsam3d.model.prompts import previous_map, prompt_maps
from ctsam3d.segmenter import Segmenter
from ctsam3d.volume import Box, Volume

SIZE = (64, 64, 64)


@pytest.fixture
def segmenter(monkeypatch):
    torch.manual_seed(0)
    segmenter = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0), feedback=1))
    segmenter.encoded = []
    encode = segmenter.encode
    monkeypatch.setattr(segmenter, "encode", lambda *of: segmenter.encoded.append(1) or encode(*of))
    return segmenter


def scan():
    return Volume(np.zeros((150, 60, 50), np.int16), np.diag([1.5, 1.5, 1.5, 1.0]))


def hu(seed):
    return np.random.default_rng(seed).uniform(-500, 500, SIZE).astype(np.float32)


def test_a_patch_is_encoded_once_for_all_structures(segmenter):
    volume = scan()
    for click in ((30, 30, 25), (100, 30, 25), (30, 30, 25)):
        segmenter.session(volume, expand=False).click(click)
    assert len(segmenter.encoded) == 2  # two places; the third session clicks where the first did
    segmenter.session(scan(), expand=False).click((30, 30, 25))
    assert len(segmenter.encoded) == 3  # another scan, though it looks the same


def test_features_go_with_their_scan(segmenter):
    volume = scan()
    segmenter.features(volume, Box((0, 0, 0), SIZE), lambda: hu(0))
    assert segmenter._features._bytes > 0
    del volume
    gc.collect()
    assert (segmenter._features._bytes, len(segmenter._features._entries)) == (0, 0)


def test_features_go_with_their_network():
    segmenter, volume = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0))), scan()
    segmenter.features(volume, Box((0, 0, 0), SIZE), lambda: hu(0))
    cache = weakref.ref(segmenter._features)
    del segmenter
    gc.collect()
    assert cache() is None  # a scan that is still there does not keep the features of old weights


def test_features_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(module, "FEATURE_BYTES", 1)
    segmenter, volume = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0))), scan()
    boxes = [Box((n, 0, 0), (n + 64, 64, 64)) for n in range(3)]
    for box in boxes:
        segmenter.features(volume, box, lambda: hu(0))
    assert [key[1][0] for key in segmenter._features._entries] == boxes[-1:]  # the newest is kept, whatever its size


def test_a_batch_of_proposals_is_its_parts(segmenter):
    patches = [hu(seed) for seed in range(3)]
    mask, offsets = patches[0] > 0, [(0, 0, 32), (32, 0, -32)]
    together = segmenter.propose_batch(patches[0], mask, patches[1:], offsets)
    alone = [segmenter.propose(patches[0], mask, patch, offset) for patch, offset in zip(patches[1:], offsets)]
    assert np.allclose(together, alone, atol=1e-4)


def test_warming_up_leaves_nothing_behind(segmenter):
    before = {name: tensor.clone() for name, tensor in segmenter.network.state_dict().items()}
    segmenter.warm_up()
    after = segmenter.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not segmenter._features._entries


def test_s_computes_in_the_fast_type_and_the_weights_stay_exact(monkeypatch):
    torch.manual_seed(0)
    info = Checkpoint(build("tiny"), (-500.0, 800.0), feedback=1)
    exact = Segmenter(info, precision="float32")
    monkeypatch.setattr(module, "fast_type", lambda device: torch.bfloat16)
    fast = Segmenter(info)
    assert (exact.dtype, fast.dtype) == (torch.float32, torch.bfloat16)
    types = {name.split(".")[0]: p.dtype for name, p in fast.network.named_parameters()}
    assert types == {"encoder": torch.bfloat16, "decoder": torch.bfloat16, "cross_patch": torch.float32}
    assert {p.dtype for p in info.network.parameters()} == {torch.float32}
    prompts = prompt_maps([(32, 32, 32)], [], None, SIZE)
    masks = [own.decode(own.encode(hu(0)), prompts) for own in (exact, fast)]
    assert masks[1].dtype == np.float32
    assert 0 < np.abs(masks[0] - masks[1]).max() < 0.1
    fast.warm_up()


def test_random_fourier_features_stay_exact(monkeypatch):
    monkeypatch.setattr(module, "fast_type", lambda device: torch.bfloat16)
    segmenter = Segmenter(Checkpoint(build("tiny", prompt="rff"), (-500.0, 800.0)))
    assert segmenter.dtype == torch.float32
    segmenter.warm_up()


@pytest.mark.parametrize(
    ("known", "expected"),
    [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_bfloat16_is_taken_where_the_processor_has_it(monkeypatch, known, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert module.fast_type(torch.device("cpu")) == expected


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of auto, float32, got 'half'"):
        module.load(precision="half")


def test_the_last_pass_is_the_mean_over_mirrors(segmenter):
    """A patch of 64³ along each axis alone, where a session clicks; a patch that an expansion opens is seen once."""
    exact = Segmenter(segmenter.info, precision="float32")
    patch, prompts = hu(1), prompt_maps([(20, 30, 40)], [(50, 30, 40)], None, SIZE)
    alone, mirrored = exact.encode(patch), exact.encode(patch, mirrored=True)
    assert {len(stage) for stage in alone} == {1} and {len(stage) for stage in mirrored} == {4}
    network, logits = exact.network, []
    with torch.inference_mode():
        first = torch.sigmoid(network.decode(alone, prompts[None]))
        maps = torch.cat([prompts[None, :2], previous_map(first)], 1)
        for axes in ((), (2,), (3,), (4,)):
            features = exact.encode(np.ascontiguousarray(np.flip(patch, [axis - 2 for axis in axes])))
            logits.append(network.decode(features, maps.flip(axes)).flip(axes))
    assert np.allclose(exact.decode(alone, prompts), torch.sigmoid(logits[0])[0, 0], atol=1e-4)
    mean = torch.sigmoid(torch.stack(logits).mean(0))[0, 0]
    assert np.allclose(exact.decode(mirrored, prompts), mean, atol=1e-4)
    assert not np.allclose(mean, torch.sigmoid(logits[0])[0, 0], atol=1e-2)


def test_weights_without_further_passes_see_a_patch_once():
    segmenter = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0)))
    assert {len(stage) for stage in segmenter.encode(hu(0), mirrored=True)} == {1}
