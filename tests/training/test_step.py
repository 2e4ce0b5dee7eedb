"""One step of Algorithm 1: P's target, the first click, who is segmented and proposed to whom, rounds, accumulation."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.training.boxes import STILL
from torch.nn import functional as F

from ctsam3d.losses import dice_loss, focal_loss
from ctsam3d.model import build
from ctsam3d.model.prompts import click_map, previous_map
from ctsam3d.training.config import TrainingConfig
from ctsam3d.training.loop import _parameter_groups
from ctsam3d.training.pairs import Pair
from ctsam3d.training.step import (
    CoarseHead,
    PairNetwork,
    Rounds,
    TrueMaskNetwork,
    collate,
    heatmap_target,
    train_step,
    train_step_true_masks,
)

CONFIG = TrainingConfig(preset="tiny", rounds=2, learning_rate=1e-3, augmentation=STILL)


def block(*bounds):
    mask = np.zeros((64, 64, 64), bool)
    mask[tuple(slice(a, b) for a, b in bounds)] = True
    return mask


CUBE = block((20, 40), (20, 40), (20, 40))
SHIFTED = block((10, 30), (20, 40), (25, 45))
NOTHING = np.zeros((64, 64, 64), bool)


def pair(u, v, offset=(5, 0, -7)):
    target = np.stack([u, v])
    return Pair(np.where(target, 100, -100).astype(np.float32), target, np.array(offset))


def batch(*pairs, seed=0):
    return collate(pairs, CONFIG.hu_window, [(seed, 0, number) for number in range(len(pairs))])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PairNetwork(build("tiny")).train()


@pytest.fixture
def decoded(network, monkeypatch):
    """What S is given and what it says, (prompts, probability) of every pass."""
    seen, decode = [], network.network.decode

    def spy(features, prompts):
        logits = decode(features, prompts)
        seen.append((prompts.clone(), torch.sigmoid(logits.detach())))
        return logits

    monkeypatch.setattr(network.network, "decode", spy)
    return seen


def optimiser(network, rate=1e-3):
    return torch.optim.AdamW(network.parameters(), rate)


# --- what P should say ------------------------------------------------------------------------------------------------


def test_heatmap_target_is_a_click_at_the_centroid():
    mask = block((10, 15), (20, 27), (30, 39))  # centroid (12, 23, 34)
    heatmap = heatmap_target(mask)
    assert torch.equal(heatmap, click_map([(12, 23, 34)], (64, 64, 64)))
    assert heatmap[12, 23, 34] == 1 and heatmap[14, 23, 34] == pytest.approx(np.exp(-4 / 8), abs=5e-4)


def test_heatmap_target_of_a_curved_structure_is_a_voxel_of_it():
    ring = block((30, 31), (10, 50), (10, 50)) & ~block((30, 31), (12, 48), (12, 48))
    place = np.unravel_index(int(heatmap_target(ring).argmax()), ring.shape)
    assert ring[place] and abs(np.linalg.norm(np.array(place) - (30, 29.5, 29.5)) - 18.5) < 1  # the middle of a side


def test_heatmap_target_of_nothing_is_zero():
    assert not heatmap_target(NOTHING).any()


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_all_u_then_all_v():
    one = batch(pair(CUBE, SHIFTED), pair(SHIFTED, NOTHING))
    assert one.image.shape == one.target.shape == one.heatmap.shape == (4, 1, 64, 64, 64)
    for number, mask in enumerate((CUBE, SHIFTED, SHIFTED, NOTHING)):
        assert np.array_equal(one.target[number, 0].numpy(), mask)
        assert torch.equal(one.heatmap[number, 0], heatmap_target(mask))
    assert one.image.unique().tolist() == pytest.approx([(400 / 1300), (600 / 1300)])  # the window is [-500, 800]
    assert one.clicks[3].tolist() == [-1, -1, -1]
    assert all(one.target[n, 0][tuple(one.clicks[n])] for n in range(3))


def test_the_first_click_is_uniform_in_the_foreground():
    thin = block((20, 40), (30, 31), (30, 31))
    first = [batch(pair(thin, thin), seed=seed).clicks[:, 0].tolist() for seed in range(400)]
    places, counts = np.unique(np.ravel(first), return_counts=True)
    assert places.tolist() == list(range(20, 40)) and counts.min() > 20 and counts.max() < 65  # 40 each
    assert np.mean([u == v for u, v in first]) < 0.1  # U's and V's are drawn apart


def test_who_is_segmented_and_who_proposes_to_whom():
    pairs = (pair(CUBE, SHIFTED, offset=(1, 2, 3)), pair(SHIFTED, NOTHING, offset=(4, 5, 6)))
    rounds = Rounds(batch(*pairs), CONFIG, "cpu")
    assert rounds.segmented.tolist() == [0, 1, 2]  # U_0, U_1, V_0; V_1 lacks the structure
    assert list(zip(rounds.source.tolist(), rounds.neighbour.tolist())) == [(0, 2), (1, 3), (2, 0)]
    assert rounds.offset.tolist() == [[1, 2, 3], [4, 5, 6], [-1, -2, -3]]


def test_what_the_network_is_given(network, monkeypatch):
    seen, propose = [], network.network.propose
    monkeypatch.setattr(network.network, "propose", lambda *a: seen.append([t.clone() for t in a]) or propose(*a))
    one = batch(pair(CUBE, SHIFTED), pair(SHIFTED, NOTHING))
    rounds = Rounds(one, CONFIG, "cpu")
    logits, losses = rounds.forward(network, rounds.prompts())
    (image, mask, neighbour, offset), target = seen[0], one.target[:3].float()
    assert torch.equal(offset, rounds.offset)
    assert torch.equal(image, one.image[[0, 1, 2]]) and torch.equal(neighbour, one.image[[2, 3, 0]])
    assert torch.equal(mask, (torch.sigmoid(logits) > 0.5).float()) and not mask.requires_grad
    assert losses["focal"].item() == pytest.approx(focal_loss(logits, target).mean().item(), rel=1e-5)
    assert losses["dice"].item() == pytest.approx(dice_loss(logits, target).mean().item(), rel=1e-5)


def test_the_heatmap_loss_is_the_mean_squared_error(network, monkeypatch):
    monkeypatch.setattr(network.network, "propose", lambda image, *_: torch.zeros_like(image))
    one = batch(pair(CUBE, SHIFTED), pair(SHIFTED, NOTHING))
    rounds = Rounds(one, CONFIG, "cpu")
    _, losses = rounds.forward(network, rounds.prompts())
    squares = float(click_map([(30, 30, 30)], (64, 64, 64)).square().sum())
    assert losses["heatmap"].item() == pytest.approx(2 * squares / (3 * 64**3), rel=1e-5)  # two of three hold it


def test_p_takes_no_part_in_the_gradient_of_s(network):
    rounds = Rounds(batch(pair(CUBE, SHIFTED)), CONFIG, "cpu")
    _, losses = rounds.forward(network, rounds.prompts())
    losses["heatmap"].backward()
    parts = network.network
    assert all(p.grad is None for p in [*parts.encoder.parameters(), *parts.decoder.parameters()])
    assert any(p.grad.abs().sum() > 0 for p in parts.cross_patch.parameters())


def test_p_alone_is_given_the_true_masks(monkeypatch):
    torch.manual_seed(0)
    network, seen = TrueMaskNetwork(build("tiny")), []
    propose = network.network.propose
    monkeypatch.setattr(network.network, "propose", lambda *a: seen.append([t.clone() for t in a]) or propose(*a))
    one = batch(pair(CUBE, SHIFTED), pair(SHIFTED, NOTHING))
    results = train_step_true_masks(network, optimiser(network), [one], CONFIG)
    image, mask, neighbour, offset = seen[0]
    assert offset.tolist() == [[5, 0, -7], [5, 0, -7], [-5, 0, 7]]
    assert torch.equal(mask, one.target[[0, 1, 2]].float())
    assert torch.equal(image, one.image[[0, 1, 2]]) and torch.equal(neighbour, one.image[[2, 3, 0]])
    assert len(results) == 1 and results[0].heatmap > 0


def test_fresh_heatmaps_are_small():
    """Of the size of the target's own spread, so that training need not find the scale first."""
    torch.manual_seed(0)
    with torch.no_grad():
        heatmap = build("tiny").cross_patch(*(torch.rand(1, 1, 64, 64, 64) for _ in range(3)))
    assert heatmap.std() < 2 * click_map([(32, 32, 32)], (64, 64, 64)).std()


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_rounds_of_clicks(network, decoded):
    """Round 1 has one positive click and no previous mask; later rounds one more click and the probability before."""
    results = train_step(
        network, optimiser(network), [batch(pair(CUBE, SHIFTED))], dataclasses.replace(CONFIG, rounds=4)
    )
    seen, given = zip(*decoded)
    assert len(results) == len(seen) == 4
    assert (seen[0][:, 0] == 1).sum((1, 2, 3)).tolist() == [1, 1] and not seen[0][:, 1:].any()
    for side, mask in enumerate((CUBE, SHIFTED)):
        assert mask[tuple(np.argwhere(seen[0][side, 0].numpy() == 1)[0])]
        for number, (prompts, before) in enumerate(zip(seen[1:], given), start=2):
            assert (prompts[side, :2] == 1).sum() <= number and not prompts.requires_grad
            assert torch.allclose(prompts[side, 2], previous_map(before[side, 0]), atol=1e-6)
            assert not any(mask[tuple(p)] for p in np.argwhere(prompts[side, 1].numpy() == 1))
            assert all(mask[tuple(p)] for p in np.argwhere(prompts[side, 0].numpy() == 1))


def test_the_next_click_goes_to_the_deepest_error():
    rounds = Rounds(batch(pair(CUBE, SHIFTED)), dataclasses.replace(CONFIG, imprecise_clicks=0), "cpu")
    said = np.stack([block((20, 40), (20, 40), (20, 33)), block((10, 30), (20, 40), (25, 60))])
    dsc = rounds.click(torch.from_numpy(np.where(said, 9.0, -9.0))[:, None].float())
    # Missed of U: x 33-40, depth 4 at 36 first; wrong in V: x 45-60, depth 8 at 52 first. Both of 20 x 20 in z and y.
    assert rounds.clicks[0][True][1] == (23, 23, 36) and rounds.clicks[0][False] == []
    assert rounds.clicks[1][False] == [(17, 27, 52)] and len(rounds.clicks[1][True]) == 1
    u, v = 2 * 13 / (13 + 20), 2 * 20 / (20 + 35)
    assert dsc == pytest.approx((u + v) / 2)


def test_a_round_is_a_step(network):
    steps = []
    own = optimiser(network)
    own.register_step_post_hook(lambda *_: steps.append(1))
    before = [p.detach().clone() for p in network.parameters()]
    train_step(network, own, [batch(pair(CUBE, NOTHING))], dataclasses.replace(CONFIG, rounds=3))
    assert len(steps) == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_feedback_shows_s_its_own_answer(network, decoded):
    config = dataclasses.replace(CONFIG, rounds=1, feedback=1.0)
    train_step(network, optimiser(network), [batch(pair(CUBE, SHIFTED))], config)
    (first, said), (second, _) = decoded
    assert not first[:, 2].any() and not first.requires_grad
    assert torch.equal(second[:, :2], first[:, :2]) and torch.allclose(second[:, 2:], previous_map(said), atol=1e-6)
    assert not second.requires_grad
    decoded.clear()
    train_step(network, optimiser(network), [batch(pair(CUBE, SHIFTED))], dataclasses.replace(config, feedback=0.0))
    assert len(decoded) == 1


def test_a_v_that_is_carried_over_is_seen_as_an_expansion_opens_it(network, decoded):
    """Round 2 of two pairs, V of the first one empty: the patches are U0, U1, V1; from U1 to V1 it is (5, 0, -7)."""
    config = dataclasses.replace(CONFIG, rounds=2, carry=1.0)
    own = batch(pair(CUBE, NOTHING, (64, 0, 0)), pair(CUBE, SHIFTED))
    train_step(network, optimiser(network), [own], config)
    (_, said), (prompts, _) = decoded
    u, seen = said[1, 0], prompts[2, 2]
    assert torch.allclose(seen[:59, :, 7:], previous_map(u[5:, :, :57]), atol=1e-6) and seen[:59, :, 7:].any()
    assert not seen[59:].any() and not seen[:, :, :7].any()
    assert torch.equal(prompts[2, 0], click_map([(20, 30, 34)], (64, 64, 64)))  # SHIFTED's centroid, rounded to even
    assert not prompts[2, 1].any()
    assert torch.allclose(prompts[:2, 2], previous_map(said[:2, 0]), atol=1e-6)  # U goes on
    decoded.clear()
    train_step(network, optimiser(network), [own], dataclasses.replace(config, carry=0.0))
    assert torch.allclose(decoded[1][0][2, 2], previous_map(decoded[0][1][2, 0]), atol=1e-6)


def test_a_coarse_step_is_graded_at_a_quarter(network, decoded):
    """What the decoder's first four stages say, 16 cells a side, spread over the patch; its last ones rest."""
    own = PairNetwork(network.network, CoarseHead(32)).train()
    config = dataclasses.replace(CONFIG, coarse=1.0, feedback=1.0, trainable="segmentation")
    rounds = Rounds(batch(pair(CUBE, SHIFTED)), config, "cpu")
    prompts = rounds.feed_back(own, rounds.prompts())  # what the coarse head itself says
    logits, losses = rounds.forward(own, prompts)
    (losses["focal"] + losses["dice"]).backward()
    assert decoded == [] and prompts[:, 2].any()
    cells = own.coarse_head.out(
        own.network.decoder.coarse(own.network.encode(rounds.image[rounds.segmented], detail=False), prompts)
    )
    assert cells.shape == (2, 1, 16, 16, 16)
    assert torch.allclose(logits, F.interpolate(cells, scale_factor=4, mode="trilinear"), atol=1e-4)
    decoder = own.network.decoder
    resting = [decoder.blocks[-1], *decoder.upscales[-2:], decoder.head]
    assert all(p.grad is None for part in resting for p in part.parameters())
    assert own.coarse_head.out.weight.grad.abs().sum() > 0


def test_which_steps_are_coarse_is_drawn_from_seed_and_step():
    config = dataclasses.replace(CONFIG, coarse=0.7)
    drawn = [Rounds(_at(step, number), config, "cpu").coarse for step in range(60) for number in (0, 3)]
    assert drawn[::2] == drawn[1::2]  # the same in every process
    assert 30 <= sum(drawn[::2]) <= 54  # 42 in the mean
    assert not any(Rounds(_at(step, 0), CONFIG, "cpu").coarse for step in range(5))


def _at(step, number):
    small = pair(*(mask[16:48, 16:48, 16:48] for mask in (CUBE, SHIFTED)))
    return collate([small], CONFIG.hu_window, [(7, step, number)])


def test_accumulated_batches_give_the_mean_gradient(network):
    config = dataclasses.replace(CONFIG, rounds=1, gradient_clip=1e9)
    batches = [batch(pair(CUBE, SHIFTED), seed=1), batch(pair(SHIFTED, NOTHING), seed=2)]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = []
    for chosen in (batches[:1], batches[1:], batches):
        network.load_state_dict(state)
        train_step(network, optimiser(network, rate=1e-12), chosen, config)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.allclose((gradients[0] + gradients[1]) / 2, gradients[2], atol=1e-6)


def test_what_a_step_descends(network, monkeypatch):
    """0.2 focal + 0.8 Dice + the error of the heatmaps, the gradient cut to the norm of the configuration."""
    one = batch(pair(CUBE, SHIFTED))
    rounds = Rounds(one, CONFIG, "cpu")
    _, losses = rounds.forward(network, rounds.prompts())
    (0.2 * losses["focal"] + 0.8 * losses["dice"] + losses["heatmap"]).backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters()]).double()  # whose norm is exact
    network.zero_grad()
    config = dataclasses.replace(CONFIG, rounds=1, gradient_clip=float(expected.norm()) / 2)
    network.load_state_dict(network.state_dict())
    train_step(network, torch.optim.SGD(network.parameters(), 0.0), [one], config)
    cut = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert (cut - expected / 2).norm() < 1e-4 * expected.norm()


def test_gradients_that_are_not_finite_change_nothing(network):
    before = [p.detach().clone() for p in network.parameters()]
    parameter = next(network.network.decoder.parameters())
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="gradients must stay finite"):
        train_step(network, optimiser(network), [batch(pair(CUBE, SHIFTED))], CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_a_loss_that_is_not_finite_changes_nothing(network):
    broken = pair(CUBE, SHIFTED)
    broken.hu[0, 0, 0, 0] = np.nan
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(FloatingPointError, match="losses must stay finite"):
        train_step(network, optimiser(network), [batch(broken)], CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_p_learns_a_pair_by_heart():
    """On patches of 32³, which are quicker."""
    cube, shifted, nothing = (mask[8:40, 8:40, 8:40] for mask in (CUBE, SHIFTED, NOTHING))
    torch.manual_seed(0)
    network = TrueMaskNetwork(build("tiny")).train()
    one = batch(pair(cube, shifted, offset=(10, 0, -5)), pair(shifted, nothing, offset=(30, 0, 0)))
    own = torch.optim.AdamW(_parameter_groups(network.network, CONFIG), 3e-3)
    errors = [train_step_true_masks(network, own, [one], CONFIG)[0].heatmap for _ in range(40)]
    empty = 2 / 3 * float(click_map([(16, 16, 16)], (32, 32, 32)).square().mean())  # an empty heatmap's error
    assert errors[-1] < 0.3 * empty


def test_every_weight_of_p_moves():
    """Its gradients are tiny, as most of a heatmap is empty; see `_parameter_groups`."""
    torch.manual_seed(0)
    network = TrueMaskNetwork(build("tiny")).train()
    own = torch.optim.AdamW(_parameter_groups(network.network, CONFIG), 1e-3)
    before = {name: p.detach().clone() for name, p in network.network.cross_patch.named_parameters()}
    train_step_true_masks(network, own, [batch(pair(CUBE, SHIFTED, offset=(10, 0, -5)))], CONFIG)
    moved = {n: (p - before[n]).abs().median() for n, p in network.network.cross_patch.named_parameters()}
    assert {n for n, m in moved.items() if m < 5e-4} == set()  # Adam's first step is the rate itself
