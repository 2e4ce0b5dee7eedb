"""P's proposals against a network whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.io import Case, read_case
from ctsam3d.data.phantoms import make_phantom_cases
from ctsam3d.evaluation import proposals
from ctsam3d.evaluation.proposals import (
    Proposal,
    best_threshold,
    evaluate_proposals,
    proposal_score,
    propose_around,
    summarise,
)
from ctsam3d.model import build
from ctsam3d.segmenter import Segmenter, load
from ctsam3d.volume import Volume


@pytest.fixture
def case():
    """A bar through a scan of 128 x 64 x 64 voxels in the model's own axes, bright as nothing else."""
    mask = np.zeros((128, 64, 64), bool)
    mask[:, 20:30, 20:30] = True
    volume = Volume(np.where(mask, 200, -100).astype(np.int16), np.diag([-1.5, -1.5, 1.5, 1.0]))
    return Case("bar", volume, {"bar": lambda: mask})


@pytest.fixture
def segmenter(monkeypatch):
    torch.manual_seed(0)
    segmenter = Segmenter(Checkpoint(build("tiny"), (-500.0, 800.0)))
    monkeypatch.setattr(segmenter.network, "propose", lambda image, mask, neighbour, offset: neighbour - 0.5)
    return segmenter


def test_a_peak_in_the_structure_is_a_hit(segmenter, case):
    found = propose_around(segmenter, case, ["bar"], seeds=range(3), stride=32)
    assert {(p.case, p.structure, p.steps) for p in found} == {("bar", "bar", 1)}  # only x has room
    assert all(p.hit and p.peak == pytest.approx(700 / 1300 - 0.5) and p.voxels == 6400 for p in found)


@pytest.mark.slow
def test_the_packaged_p_finds_its_way(tmp_path):
    """On a phantom of a seed that it has not seen: peaks in the structure, quiet where there is none."""
    make_phantom_cases(tmp_path, 1, 8100, (3.0, 3.0, 3.0), "abdomen")
    segmenter = load("default")
    case = read_case(tmp_path / "phantom_8100")
    names = ("spleen", "kidney_left", "pancreas", "vertebrae_L2", "gallbladder", "adrenal_gland_left")
    found = propose_around(segmenter, case, [name for name in names if name in case.structures], [0], stride=40)
    summary = summarise(found, segmenter.info.peak_threshold)
    assert summary["holding"] > 50 and summary["lacking"] > 20
    assert summary["hit"] >= 0.8 and summary["quiet"] >= 0.9 and summary["found"] >= 0.9


def test_a_mask_from_clicks(segmenter, case, monkeypatch):
    given = []
    monkeypatch.setattr(
        segmenter.network, "propose", lambda image, mask, neighbour, offset: given.append(mask) or neighbour
    )
    propose_around(segmenter, case, ["bar"], seeds=[0], clicks=2)
    assert set(given[0].unique().tolist()) <= {0.0, 1.0}


def test_summary():
    def proposal(voxels, peak, hit=False):
        return Proposal("c", "s", 0, 1, voxels, peak, hit)

    lacking = [proposal(0, n / 10) for n in range(11)]  # 0 to 1; nine of ten lie at or below 0.9
    holding = [proposal(500, 0.95, True), proposal(500, 0.95), proposal(500, 0.5, True), proposal(500, 0.1)]
    small = [proposal(10, 1.0, True)]  # neither holds the structure nor lacks it
    summary = summarise([*lacking, *holding, *small], threshold=0.5)
    assert summary.pop("quiet_at") == pytest.approx(0.9)
    shares = {"hit": 0.5, "found": 0.75, "found_hit": 2 / 3, "quiet": 5 / 11}
    assert summary == pytest.approx({"holding": 4, "lacking": 11, **shares})


def test_the_score_of_p_is_the_mean_of_two_shares(case, monkeypatch):
    found = [Proposal("c", "s", 0, 1, voxels, height, hit) for voxels, height, hit in (
        (500, 0.9, True), (500, 0.9, False), (500, 0.1, True), (500, 0.9, True),  # 2 of 4
        (10, 0.9, True), (0, 0.9, False), (0, 0.1, False), (0, 0.1, False), (0, 0.1, False), (0, 0.1, False),  # 4 of 5
    )]  # fmt: skip
    monkeypatch.setattr(proposals, "propose_around", lambda segmenter, case, names, seeds: found)
    segmenter = SimpleNamespace(info=SimpleNamespace(peak_threshold=0.5))
    assert proposal_score(segmenter, [case]) == pytest.approx((0.5 + 0.8) / 2)
    found = [own for own in found if own.voxels]
    assert proposal_score(segmenter, [case]) == pytest.approx((0.5 + 1) / 2)


def test_the_best_threshold_lies_between_the_peaks():
    def proposal(voxels, peak, hit=True):
        return Proposal("c", "s", 0, 1, voxels, peak, hit)

    lacking, holding = [proposal(0, p, False) for p in (0.1, 0.2, 0.3)], [proposal(500, p) for p in (0.15, 0.6, 0.8)]
    assert best_threshold([*lacking, *holding]) == pytest.approx(0.45)  # 2 of 3 above, 3 of 3 below
    with pytest.raises(ValueError, match="with and without the structure"):
        best_threshold(holding)


def test_calibrated_weights_carry_the_threshold(tmp_path):
    make_phantom_cases(tmp_path / "cases", 1, 7, (4.0, 4.0, 4.0), "abdomen")
    out = tmp_path / "calibrated.safetensors"
    evaluate_proposals(tmp_path / "cases", tmp_path / "out", structures=["spleen", "gallbladder"], calibrated=out)
    report, info = (tmp_path / "out" / "proposals.md").read_text(), checkpoint.load(out)
    assert f"threshold {info.peak_threshold:.4f}" in report
    packaged = checkpoint.load(checkpoint.packaged_path())
    assert info.sha256 == packaged.sha256 and info.peak_threshold != packaged.peak_threshold


def test_report_of_a_folder(tmp_path):
    make_phantom_cases(tmp_path / "cases", 1, 7, (4.0, 4.0, 4.0), "abdomen")
    report = tmp_path / "out" / "proposals.md"
    assert evaluate_proposals(tmp_path / "cases", tmp_path / "out", structures=["spleen"], threshold=0.25) == report
    rows = pd.read_csv(report.with_suffix(".csv"))
    assert set(rows["structure"]) == {"spleen"} and len(rows) > 5
    text = report.read_text()
    assert "threshold 0.2500" in text and "trained on: none of them" in text and "phantom_7;" in text
    with pytest.raises(ValueError, match=r"structures must be in one of the cases.*sponge"):
        evaluate_proposals(tmp_path / "cases", tmp_path / "out", structures=["sponge"])
