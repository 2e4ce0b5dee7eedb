"""Validation on stand-ins with known answers, and the reference set as it really is."""

from types import SimpleNamespace

import numpy as np
import pytest

from ctsam3d.data.io import Case
from ctsam3d.data.phantom_sets import PhantomSpec, phantom_case
from ctsam3d.evaluation.simulate import Result
from ctsam3d.evaluation.validation import REFERENCE, Scores, summarise, validate
from ctsam3d.labelapp.retrain import REPLAY
from ctsam3d.segmenter import load
from ctsam3d.session import Session
from ctsam3d.volume import Volume


class Bright:
    """Stands in for a `Segmenter`: finds what is bright, and counts sessions."""

    info = SimpleNamespace(spacing_mm=1.5)

    def __init__(self):
        self.sessions = 0

    def session(self, volume, expand=True):
        assert not expand
        self.sessions += 1
        return Session(self, volume, expand)

    def features(self, volume, box_zyx, crop, mirrored):
        return crop() > 0

    def decode(self, features, prompts):
        return features.astype(np.float32)


def case(name="c", spacing_mm=1.5, **edges):
    """Bright cubes of the given edges, in voxels, in a row along i."""
    masks, hu = {}, np.full((100, 30, 30), -900, np.int16)
    for number, (structure, edge) in enumerate(edges.items()):
        masks[structure] = np.zeros(hu.shape, bool)
        masks[structure][20 * number + 1 : 20 * number + 1 + edge, 5 : 5 + edge, 5 : 5 + edge] = True
        hu[masks[structure]] = 100
    volume = Volume(hu, np.diag([spacing_mm] * 3 + [1.0]))
    return Case(name, volume, {structure: (lambda m=mask: m) for structure, mask in masks.items()})


def result(structure, seed, clicks, dsc, case="c"):
    return Result(case, structure, seed, clicks, dsc, 0.0, 0.0, 1)


def test_means_by_number_of_clicks_and_over_all():
    scores = summarise(
        [result("a", 0, 1, 0.2), result("a", 0, 3, 0.4), result("b", 0, 1, 0.6), result("b", 0, 3, 1.0, "d")]
    )
    assert scores == Scores((1, 3), (pytest.approx(0.4), pytest.approx(0.7)), cases=2, runs=2)
    assert scores.mean == pytest.approx(0.55)
    assert scores.by_clicks == {"1": 0.4, "3": 0.7}


def test_every_user_clicks_every_structure_that_is_large_enough():
    segmenter = Bright()
    cases = [case("one", large=10, small=3), case("two", other=8)]  # 1000, 27 and 512 voxels
    scores = validate(segmenter, iter(cases), seeds=3, min_voxels=200)
    assert (scores.clicks, scores.cases, scores.runs, segmenter.sessions) == ((1, 3, 5), 2, 6, 6)
    assert scores.dsc[0] == pytest.approx((2000 / 2027 + 1) / 2)  # the stand-in finds the small one too


def test_size_is_that_of_the_model_grid():
    assert validate(Bright(), [case(spacing_mm=1.5, a=5)], min_voxels=126) is None  # 125 voxels
    assert validate(Bright(), [case(spacing_mm=3.0, a=3)], min_voxels=216).runs == 2  # 27 of 8 model voxels each
    assert validate(Bright(), [case(spacing_mm=3.0, a=3)], min_voxels=217) is None
    assert validate(Bright(), []) is None


def test_the_structures_of_a_large_case_are_the_same_ones_each_time():
    asked = []

    def watched(name):
        whole = case(name, **{f"s{n}": 6 for n in range(5)})
        masks = {n: (lambda n=n: asked.append((name, n)) or whole.mask(n)) for n in whole.names}
        return Case(name, whole.volume, masks)

    for _ in range(2):
        assert validate(Bright(), [watched("x")], seeds=1, max_structures=2).runs == 2
    assert len(asked) == 4 and asked[:2] == asked[2:]
    assert len({n for name in "abcdefgh" for n in first(watched(name), asked)}) > 2  # not always the same two


def first(case, asked):
    asked.clear()
    validate(Bright(), [case], seeds=1, max_structures=2)
    return [name for _, name in asked]


def test_seeds_of_phantoms_are_kept_apart():
    """What weights are measured on was never trained on, not even by the packaged ones (1000 to 1023)."""
    measured, replayed = [{spec.seed for spec in specs} for specs in (REFERENCE, REPLAY)]
    assert len(measured) == len(REFERENCE) and not measured & (replayed | set(range(1000, 1024)))
    assert len({spec.name for spec in (*REFERENCE, *REPLAY)}) == len(REFERENCE) + len(REPLAY)
    assert 20 <= sum(len(spec.structures) for spec in REFERENCE) <= 25


def test_a_phantom_is_made_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    spec = PhantomSpec(3, "abdomen", (5.0, 5.0, 5.0), ("liver", "spleen", "no such thing"))
    made = phantom_case(tmp_path, spec)
    assert (made.name, made.names) == ("phantom_3_abdomen", ("liver", "spleen"))
    with monkeypatch.context() as still:
        still.setattr("ctsam3d.data.phantom_sets.make_phantom", None)
        assert np.array_equal(phantom_case(tmp_path, spec).mask("liver"), made.mask("liver"))
    for file, text in {"seg.nii.gz": b"broken", "ct.nii.gz": b"", "labels.json": b"{"}.items():
        (tmp_path / spec.name / file).write_bytes(text)
        assert np.array_equal(phantom_case(tmp_path, spec).mask("spleen"), made.mask("spleen"))
    with pytest.raises(ValueError, match="structures of phantom_3_abdomen must be among"):
        phantom_case(tmp_path, PhantomSpec(3, "abdomen", (5.0, 5.0, 5.0), ("trachea",)))


@pytest.mark.slow
def test_the_reference_set_holds_all_its_structures(tmp_path):
    for spec in REFERENCE:
        made = phantom_case(tmp_path, spec)
        assert made.names == spec.structures
    segmenter = load("default")
    every = len(REFERENCE[-1].structures)
    one = validate(segmenter, [made], seeds=1, max_structures=every)
    assert one == validate(segmenter, [made], seeds=1, max_structures=every)
    assert one.runs == every and 0 < one.dsc[0] < one.dsc[-1] < 1
