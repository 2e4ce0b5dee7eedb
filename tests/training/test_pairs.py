"""What is drawn: places, structures, empty neighbours, and that image and mask are changed alike."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from tests.training.boxes import STILL, boxes, lone

from ctsam3d.training.cases import VolumeCache
from ctsam3d.training.config import Augmentation, TrainingConfig
from ctsam3d.training.pairs import TrainingVolume, draw_labelled_patch, draw_pair
from ctsam3d.volume import OUTSIDE_HU

FULL = TrainingConfig(preset="tiny", augmentation=STILL, empty_share=0)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return VolumeCache(tmp_path_factory.mktemp("volumes")).get(boxes())


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    """A structure of one voxel, so that a mask tells where the anchor lies in its patch."""
    mask = np.zeros((200, 200, 200), bool)
    mask[100, 100, 100] = True
    return lone(mask, tmp_path_factory.mktemp("point"))


def test_both_patches_hold_the_structure_and_its_image(volume):
    rng = np.random.default_rng(0)
    for _ in range(50):
        pair = draw_pair(volume, 64, FULL, rng)
        assert pair.hu.shape == pair.target.shape == (2, 64, 64, 64)
        assert pair.hu.dtype == np.float32 and pair.target.dtype == bool
        assert pair.target[0].any() and pair.target[1].any()
        assert np.unique(pair.hu[pair.target]).tolist() in ([100.0], [300.0])
        assert set(np.unique(pair.hu)) <= {100.0, 300.0, -1000.0, OUTSIDE_HU}


def test_structures_are_drawn_by_a_power_of_their_size(volume):
    rng = np.random.default_rng(0)
    drawn = [draw_pair(volume, 64, FULL, rng) for _ in range(400)]
    small = np.mean([pair.hu[pair.target][0] == 300 for pair in drawn])
    assert small == pytest.approx(216**0.7 / (216**0.7 + 8000**0.7), abs=0.05)


@pytest.mark.parametrize("flip", [0, 1])
def test_centres_deviate_from_the_anchor_by_at_most_half_a_patch(point, flip):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, flip=flip))
    drawn = [draw_pair(point, 64, config, rng).target for _ in range(300)]
    places = np.array([[np.argwhere(target)[0] for target in pair] for pair in drawn])  # (300, U and V, 3)
    assert places.min() == 0 and places.max() == 63  # the anchor may lie anywhere in the patch
    assert np.abs(places.mean(0) - 31.5).max() < 4
    apart = np.abs(places[:, 0] - places[:, 1])
    assert apart.min() < 5 and 55 < apart.max() <= 63
    assert abs(np.corrcoef(places[:, 0, 0], places[:, 1, 0])[0, 1]) < 0.2  # U and V are drawn apart


def test_patches_of_a_pair_overlap_as_their_offset_says(point):
    """Where U and V show the same voxel they show the same HU, also flipped, turned and scaled together."""
    rng = np.random.default_rng(4)
    textured = dataclasses.replace(point, hu_zyx=(np.arange(200**3) % 997).reshape(200, 200, 200).astype(np.int16))
    for augmentation in (STILL, dataclasses.replace(STILL, flip=0.5), dataclasses.replace(STILL, flip=0.5, spatial=1)):
        config = dataclasses.replace(FULL, augmentation=augmentation)
        for _ in range(10):
            pair = draw_pair(textured, 64, config, rng)
            offset = np.argwhere(pair.target[0])[0] - np.argwhere(pair.target[1])[0]  # V's first voxel in U
            assert offset.tolist() == pair.offset.tolist()
            in_u = tuple(slice(max(0, o), min(64, 64 + o)) for o in offset)
            in_v = tuple(slice(max(0, -o), min(64, 64 - o)) for o in offset)
            assert np.allclose(pair.hu[0][in_u], pair.hu[1][in_v], atol=1e-2)


def test_a_share_of_the_pairs_has_an_empty_neighbour(volume):
    rng = np.random.default_rng(0)
    drawn = [draw_pair(volume, 64, dataclasses.replace(FULL, empty_share=0.25), rng) for _ in range(300)]
    empty = [not pair.target[1].any() for pair in drawn]
    assert np.mean(empty) == pytest.approx(0.25, abs=0.06)
    assert all(pair.target[0].any() for pair in drawn)


def test_an_empty_neighbour_lies_within_a_patch(tmp_path):
    """HU that grow along z alone tell where a patch was cut."""
    mask = np.zeros((260, 260, 260), bool)
    mask[130, 130, 130] = True
    ramp = np.broadcast_to(np.arange(260, dtype=np.int16) * 10, mask.shape)  # HU = 10 k, k to Superior
    volume = lone(mask, tmp_path, hu=np.ascontiguousarray(ramp))
    rng, config = np.random.default_rng(0), dataclasses.replace(FULL, empty_share=1)
    starts = np.array([draw_pair(volume, 64, config, rng).hu[:, 0, 0, 0] / 10 for _ in range(200)])
    apart = starts[:, 1] - starts[:, 0]
    assert np.abs(apart).max() <= 64 and apart.min() < -50 and apart.max() > 50


def test_a_structure_that_fills_the_scan_has_no_empty_neighbour(tmp_path):
    volume = lone(np.ones((150, 150, 150), bool), tmp_path)
    config = dataclasses.replace(FULL, empty_share=1)
    pairs = [draw_pair(volume, 64, config, np.random.default_rng(seed)) for seed in range(10)]
    # Beyond the scan is air without structure: a neighbour out there is empty, one inside cannot be.
    assert any(pair.target[1].any() for pair in pairs)


def test_augmentation_moves_image_and_mask_together(volume):
    rng = np.random.default_rng(1)
    config = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, flip=0.5, spatial=1.0))
    for _ in range(20):
        pair = draw_pair(volume, 64, config, rng)
        value = 100 if np.median(pair.hu[pair.target]) <= 100 else 300
        bright = pair.hu > (value - 1000) / 2  # half-way to the air, where the mask is cut too
        assert (bright & pair.target).sum() / pair.target.sum() > 0.95


def test_intensity_changes_alike_in_both_patches(tmp_path):
    volume = lone(np.ones((150, 150, 150), bool), tmp_path)  # 100 HU everywhere
    config = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, intensity=1.0))
    rng = np.random.default_rng(0)
    means = np.array([[hu[target].mean() for hu, target in zip(p.hu, p.target)] for p in
                      (draw_pair(volume, 64, config, rng) for _ in range(50))])  # fmt: skip
    assert np.allclose(means[:, 0], means[:, 1], atol=1e-2)
    assert means.min() >= 100 * 0.9 - 30 and means.max() <= 100 * 1.1 + 30 and np.ptp(means) > 30


def test_noise_and_blur(tmp_path):
    volume = lone(np.ones((100, 100, 100), bool), tmp_path)
    noisy = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, noise=1.0))
    pairs = [draw_pair(volume, 64, noisy, np.random.default_rng(seed)) for seed in range(20)]
    spread = [p.hu[p.target].std() for p in pairs]
    assert min(spread) >= 0 and 5 < max(spread) <= 21
    blurred = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, blur=1.0))
    assert np.allclose(draw_pair(volume, 64, blurred, np.random.default_rng(0)).hu.max(), 100, atol=1)


def test_same_seed_same_pair(volume):
    config = TrainingConfig(preset="tiny")
    a, b = (draw_pair(volume, 64, config, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a.hu, b.hu) and np.array_equal(a.target, b.target)


def test_a_structure_of_its_own_contrast(tmp_path):
    """Every structure gains one value; what is not labelled keeps its own, and both patches gain alike."""
    mask = np.zeros((150, 150, 150), bool)
    mask[:, :, 75:] = True
    volume = lone(mask, tmp_path)  # 100 HU in the structure, -100 elsewhere
    config = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, contrast=1.0, contrast_hu=100.0))
    gained = []
    for seed in range(40):
        pair = draw_pair(volume, 64, config, np.random.default_rng(seed))
        inner = [ndimage.binary_erosion(target, iterations=3) for target in pair.target]
        rests = [~target & (hu > -150) for hu, target in zip(pair.hu, pair.target)]  # -1000 lies beyond the scan
        outer = [ndimage.binary_erosion(rest, iterations=3) for rest in rests]
        own = np.concatenate([hu[m] for hu, m in zip(pair.hu, inner)])
        rest = np.concatenate([hu[m] for hu, m in zip(pair.hu, outer)])
        assert np.ptp(own) < 0.1 and np.allclose(rest, -100, atol=0.1)
        gained.append(own.mean() - 100)
    assert 10 < sum(abs(g) < 0.1 for g in gained) < 32  # half of them gain nothing
    assert max(gained) > 20 and min(gained) < -20


def test_a_lesion_takes_the_place_of_the_structure(volume):
    config = dataclasses.replace(FULL, augmentation=dataclasses.replace(STILL, lesion=1.0))
    for seed in range(12):
        pair = draw_pair(volume, 64, config, np.random.default_rng(seed))
        assert pair.target[0].any() and pair.target[1].any()  # both hold the anchor
        in_u, in_v = (tuple(slice(max(0, s * o), min(64, 64 + s * o)) for o in pair.offset) for s in (1, -1))
        assert np.array_equal(pair.target[0][in_u], pair.target[1][in_v])  # one lesion, seen from two places


def test_a_labelled_patch_is_the_volume_flipped_at_most():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, (20, 20, 20)).astype(np.uint8)
    volume = TrainingVolume(
        "case", "content", (labels * 100).astype(np.int16), labels,
        {v: np.argwhere(labels == v) for v in (1, 2)}, {v: int((labels == v).sum()) for v in (1, 2)}, ("a", "b"),
    )  # fmt: skip
    plain = Augmentation(spatial=1.0, intensity=0.0, noise=0.0, blur=0.0)
    config = TrainingConfig(preset="tiny", augmentation=plain)
    hu, found = draw_labelled_patch(volume, 32, config, np.random.default_rng(1))
    assert hu.shape == found.shape == (32, 32, 32) and found.any()
    inside = hu > -1000
    np.testing.assert_array_equal(hu[inside], found[inside] * 100.0)
    assert not found[~inside].any()
