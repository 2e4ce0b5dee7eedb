"""What a scan without labels is worth looking at for, with a model whose eyes are known."""

import contextlib

import numpy as np
import pytest
from tests.eyes import Eyes

from ctsam3d.evaluation import scan_scores as module
from ctsam3d.evaluation.scan_scores import body_voxels, mean_prototypes, prototypes_of, scan_scores
from ctsam3d.volume import ModelGrid, Volume

AFFINE = np.diag([-1.5, -1.5, 1.5, 1.0])  # the axes of the model grid: zyx is kji


def rng():
    return np.random.default_rng(3)


def scan(bright=(slice(8, 24), slice(40, 56), slice(24, 40)), hu=300):
    """Air around a body of 0 HU with one bright block; its mask."""
    array = np.full((64, 64, 64), -1000, np.int16)
    array[4:60, 4:60, 4:60] = 0
    mask = np.zeros(array.shape, bool)
    mask[bright] = True
    array[mask] = hu
    return Volume(array, AFFINE), mask


def test_body_voxels_lie_in_the_body():
    volume, _ = scan()
    grid = ModelGrid.of(volume, 1.5)
    places = body_voxels(volume, grid)
    assert len(places) == 14**3 and places.min() >= 4 and places.max() < 60
    thick = Volume(volume.array_ijk[:, :, ::8].copy(), np.diag([-1.5, -1.5, 12.0, 1.0]))
    assert len(body_voxels(thick, ModelGrid.of(thick, 1.5))) == 14 * 14 * 7
    air = Volume(np.full((9, 9, 9), -1000, np.int16), AFFINE)
    assert body_voxels(air, ModelGrid.of(air, 1.5)).shape == (0, 3)


def test_body_voxels_are_those_of_an_oblique_grid_too():
    turned = [[1.2, 0.9, 0, 5], [-0.9, 1.2, 0, -3], [0, 0, -4.0, 7], [0, 0, 0, 1]]
    volume = Volume(np.zeros((30, 20, 6), np.int16), np.array(turned))
    grid = ModelGrid.of(volume, 1.5)  # every 4, 4 and 2 voxels, of 1.5, 1.5 and 4 mm
    expected = [grid.voxel_zyx((i, j, k)) for i in range(2, 30, 4) for j in range(2, 20, 4) for k in range(1, 6, 2)]
    assert [tuple(place) for place in body_voxels(volume, grid).tolist()] == expected


def test_a_prototype_finds_its_structure_in_another_scan():
    one, mask = scan()
    other, _ = scan((slice(40, 56), slice(8, 24), slice(24, 40)))
    eyes = Eyes()
    found = prototypes_of(eyes, one, {"block": lambda: mask, "missing": lambda: np.zeros_like(mask)})
    assert list(found) == ["block"]
    assert found["block"] == pytest.approx(np.array([3, 1]) / np.sqrt(10), abs=1e-4)  # 300 HU throughout the cell
    scores = scan_scores(eyes, other, mean_prototypes([found]), rng())
    z, y, x = eyes.clicks[0]
    assert 24 <= z < 40 and 8 <= y < 24 and 40 <= x < 56
    assert set(scores.disagreement) == set(scores.quality) == {"block"}
    assert scores.quality["block"] == pytest.approx(2 * 0.8 / 1.8, abs=1e-4)
    assert 0 < scores.disagreement["block"] < 1  # the ball moves with the click


def test_mean_prototypes():
    means = mean_prototypes([{"a": (1.0, 0.0)}, {"a": (0.0, 1.0), "b": (2.0, 0.0)}])
    assert means["a"] == pytest.approx(np.sqrt([0.5, 0.5])) and means["b"] == pytest.approx([1, 0])
    assert mean_prototypes([]) == {}


def test_without_prototypes_places_in_the_body_are_clicked():
    volume, _ = scan()
    eyes = Eyes()
    scores = scan_scores(eyes, volume, {}, rng())
    assert list(scores.quality) == ["any 1", "any 2", "any 3"]
    assert len(scores.embedding) == 2 * (2 + 2)
    assert scan_scores(Eyes(), volume, {}, rng()) == scores  # the same for the same generator


def test_the_cost_is_bounded_and_every_use_of_the_network_is_a_turn(monkeypatch):
    monkeypatch.setattr(module, "MAX_PATCHES", 2)
    volume = Volume(np.zeros((200, 64, 64), np.int16), AFFINE)
    eyes, turns = Eyes(), []

    @contextlib.contextmanager
    def turn():
        turns.append(1)
        yield

    prototypes = {f"s{n}": np.array([1.0, 0.0]) for n in range(9)}
    scores = scan_scores(eyes, volume, prototypes, rng(), turn)
    assert len(scores.quality) == module.MAX_STRUCTURES
    assert eyes.encoded == 2 + 3 * module.MAX_STRUCTURES
    assert len(turns) == eyes.encoded + len(eyes.clicks) == 2 + 6 * module.MAX_STRUCTURES


def test_a_mirrored_prediction_is_mirrored_back(monkeypatch):
    monkeypatch.setattr(module, "JITTER_VOXELS", 0)
    volume, _ = scan()
    prototypes = {"block": np.array([3, 1]) / np.sqrt(10)}
    assert scan_scores(Eyes(), volume, prototypes, rng()).disagreement["block"] == 0.0


def test_air_alone_has_an_embedding_and_no_clicks():
    scores = scan_scores(Eyes(), Volume(np.full((9, 9, 9), -1000, np.int16), AFFINE), {}, rng())
    assert scores.quality == {} and len(scores.embedding) == 8 and np.isnan(scores.of(scores.quality, ("a",)))


def test_mean_over_the_wanted_structures():
    scores = module.ScanScores((0.0,), {"a": 0.2, "b": 0.6, "c": 1.0})
    assert scores.of(scores.disagreement, ("a", "b", "x")) == pytest.approx(0.4)
    assert scores.of(scores.disagreement, ("x",)) == scores.of(scores.disagreement, ()) == pytest.approx(0.6)
