"""Statistics of runs against values computed by hand."""

import numpy as np
import pandas as pd
import pytest

from ctsam3d.evaluation.simulate import Result
from ctsam3d.evaluation.statistics import Interval, auc, costs, interval, noc, patient_means


def frame_of(runs, clicks=(1, 3, 5), **columns):
    """A frame as results.csv: `runs` maps (case, structure, seed) to its DSC after each number of clicks."""
    rows = [
        Result(*run, count, dsc, dsc / 2, 1.0, 1, dsc / 4) for run, scores in runs.items()
        for count, dsc in zip(clicks, scores)
    ]  # fmt: skip
    return pd.DataFrame([vars(row) for row in rows]).assign(**columns)


RUNS = frame_of(
    {
        ("b", "liver", 0): (0.90, 0.91, 0.95),
        ("b", "liver", 1): (0.50, 0.85, 0.80),
        ("a", "spleen", 0): (0.10, 0.20, 0.84999),
        ("a", "liver", 0): (0.86, 0.10, 0.90),
    }
)


def test_noc_is_the_first_number_of_clicks_that_is_enough():
    table = noc(RUNS, 0.85)
    assert table.columns.tolist() == ["case", "structure", "seed", "clicks", "failed"]
    assert table.to_numpy().tolist() == [
        ["b", "liver", 0, 1, False],
        ["b", "liver", 1, 3, False],  # just enough is enough, and what comes later does not count
        ["a", "spleen", 0, 5, True],  # a failure counts with the largest number
        ["a", "liver", 0, 1, False],
    ]
    assert noc(RUNS, 0.9)["clicks"].tolist() == [1, 5, 5, 5]
    assert noc(RUNS, 0.9)["failed"].tolist() == [False, True, True, False]
    assert noc(RUNS, 0.45, score="nsd")["clicks"].tolist() == [1, 5, 5, 5]


def test_noc_of_runs_with_other_numbers_of_clicks_and_of_rows_in_any_order():
    both = pd.concat([RUNS, frame_of({("t", "tumour", 0): (0.1, 0.2, 0.3)}, (1, 9, 10))])
    assert noc(both, 0.85)["clicks"].tolist() == [1, 3, 5, 1, 10]
    mixed = noc(RUNS.sample(frac=1, random_state=0), 0.85)
    assert dict(zip(mixed["case"] + mixed["structure"] + mixed["seed"].astype(str), mixed["clicks"])) == {
        "bliver0": 1, "bliver1": 3, "aspleen0": 5, "aliver0": 1
    }  # fmt: skip


def test_a_mask_that_stays_empty_is_a_failure_and_a_right_one_none():
    runs = frame_of({("a", "liver", 0): (0.0, 0.0, 0.0), ("a", "liver", 1): (1.0, 1.0, 1.0)})
    assert noc(runs, 1.0)["failed"].tolist() == [True, False]
    assert auc(runs)["auc"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("target", [-0.1, 85, float("nan")])
def test_a_target_is_a_share(target):
    with pytest.raises(ValueError, match="target must be a share from 0 to 1"):
        noc(RUNS, target)


def test_auc_is_the_mean_height_of_the_trapezoids():
    table = auc(RUNS)
    assert table.columns.tolist() == ["case", "structure", "seed", "auc"]
    assert table["case"].tolist() == ["b", "b", "a", "a"]
    # (0.90 + 0.91) / 2 and (0.91 + 0.95) / 2, each over half of the clicks 1 to 5
    assert table["auc"].tolist()[:2] == pytest.approx([(0.905 + 0.93) / 2, (0.675 + 0.825) / 2])
    # Uneven steps weigh as much as they are wide; what lies beyond the fifth click does not count.
    uneven = frame_of({("a", "liver", 0): (0.0, 1.0, 1.0, 0.0)}, (1, 2, 5, 9))
    assert auc(uneven)["auc"].tolist() == [pytest.approx((0.5 * 1 + 1.0 * 3) / 4)]
    assert auc(uneven, first=2, last=9)["auc"].tolist() == [pytest.approx((1.0 * 3 + 0.5 * 4) / 7)]
    assert auc(RUNS, "nsd_2mm")["auc"].iloc[0] == pytest.approx(0.9175 / 4)


def test_auc_without_its_ends_is_not_known():
    assert auc(frame_of({("a", "liver", 0): (0.5, 0.6)}, (1, 3)))["auc"].isna().all()
    assert auc(frame_of({("a", "liver", 0): (0.5, 0.6)}, (3, 5)))["auc"].isna().all()
    with pytest.raises(ValueError, match="first must be smaller than last, got 5 and 5"):
        auc(RUNS, first=5)


def test_the_mean_is_over_structures_of_the_means_over_patients():
    after_one = RUNS[RUNS["clicks"] == 1]
    # liver: b has (0.90 + 0.50) / 2, a 0.86; spleen: a has 0.10
    assert interval(after_one).mean == pytest.approx(((0.70 + 0.86) / 2 + 0.10) / 2)
    assert interval(after_one).patients == 2
    assert interval(after_one, "nsd").mean == pytest.approx(0.44 / 2)


def test_a_patient_is_the_mean_of_his_scans_whatever_their_users():
    # Patient p: scan a by one user 0.2, scan b by three 0.8; q: scan c 0.6.
    runs = {("a", "x", 0): (0.2,)} | {("b", "x", seed): (0.8,) for seed in range(3)} | {("c", "x", 0): (0.6,)}
    frame = frame_of(runs, (1,)).assign(patient=["p", "p", "p", "p", "q"])
    assert patient_means(frame, "dsc")["x"].to_dict() == pytest.approx({"p": 0.5, "q": 0.6})
    assert interval(frame).mean == pytest.approx(0.55)
    assert patient_means(frame.drop(columns="patient"), "dsc")["x"].to_dict() == pytest.approx(
        {"a": 0.2, "b": 0.8, "c": 0.6}
    )
    # Tables of runs keep the patients.
    assert noc(frame, 0.5)["patient"].tolist() == ["p", "p", "p", "p", "q"]
    assert interval(noc(frame, 0.5), "clicks").patients == interval(auc(frame), "auc").patients == 2


def test_bounds_of_two_patients_are_their_own_means():
    # Of four equally likely draws, one is a twice and one is b twice; 95 % reach into both.
    frame = frame_of({("a", "liver", 0): (0.2,), ("b", "liver", 0): (0.6,)}, (1,))
    found = interval(frame)
    assert found == Interval(pytest.approx(0.4), pytest.approx(0.2), pytest.approx(0.6), 2)
    assert interval(frame, level=0.4) == Interval(pytest.approx(0.4), pytest.approx(0.4), pytest.approx(0.4), 2)


def test_bounds_are_those_of_the_normal_distribution_where_there_are_many_patients():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    frame = frame_of({(f"c{n}", "liver", 0): (value,) for n, value in enumerate(values)}, (1,))
    found, error = interval(frame, draws=4000), values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=6e-4
    )
    assert interval(frame, draws=4000) == found != interval(frame, draws=4000, seed=1)


def test_patients_are_drawn_with_all_that_is_theirs():
    # Two scans of each of two patients: as four they would vary less.
    scans = frame_of({(scan, "x", 0): (float(scan[0] == "b"),) for scan in ("a1", "a2", "b1", "b2")}, (1,))
    found = interval(scans.assign(patient=scans["case"].str[0]), level=0.5)
    assert (found.low, found.high, found.patients) == (0.0, 1.0, 2)  # a quarter of the draws is a alone, another b
    assert interval(scans.assign(patient=["a", "a", "b", "b2"])).patients == 3
    assert interval(scans, level=0.5).high < 1.0
    # An organ that one patient alone has is left out of the draws without that patient.
    rare = frame_of({("a", "x", 0): (0.4,), ("b", "x", 0): (0.4,), ("b", "rare", 0): (1.0,)}, (1,))
    assert interval(rare) == Interval(pytest.approx(0.7), pytest.approx(0.4), pytest.approx(0.7), 2)


def test_intervals_of_tables_of_runs():
    assert interval(noc(RUNS, 0.85), "clicks").mean == pytest.approx(((2 + 1) / 2 + 5) / 2)
    assert interval(auc(RUNS), "auc").patients == 2
    unknown = interval(auc(RUNS[RUNS["clicks"] == 1]), "auc")
    assert np.isnan([unknown.mean, unknown.low, unknown.high]).all()


def test_one_patient_has_no_interval():
    found = interval(frame_of({("a", "liver", 0): (0.2,), ("a", "liver", 1): (0.4,)}, (1,)))
    assert found.mean == pytest.approx(0.3) and found.patients == 1 and np.isnan([found.low, found.high]).all()


def test_what_has_no_interval_is_named():
    for frame in (RUNS, RUNS[:0]):
        with pytest.raises(ValueError, match="rows of one number of clicks"):
            interval(frame)
    for options in ({"level": 1.0}, {"level": 0.0}, {"draws": 0}):
        with pytest.raises(ValueError, match="level must lie between 0 and 1 and draws be at least 1"):
            interval(RUNS[RUNS["clicks"] == 1], **options)


def test_costs_count_the_clicks_that_were_made():
    frame = frame_of({("a", "liver", seed): (0.5, 0.5, 0.5) for seed in range(3)})
    frame["seconds"] = [3.0, 1.0, 0.0, 1.0, 2.0, 0.0, 2.0, 0.0, 4.0]
    frame["patches"] = [1, 2, 9, 1, 2, 9, 4, 9, 5]
    table = costs(frame)
    assert table.index.tolist() == ["first click", "later clicks"]
    assert table.loc["first click"].tolist() == pytest.approx([3, 2.0, 2.9, 1.0, 3.7])
    assert table.loc["later clicks"].tolist() == pytest.approx([3, 2.0, 3.8, 2.0, 4.7])
    assert table.columns.tolist() == ["count", "seconds_p50", "seconds_p95", "patches_p50", "patches_p95"]
    assert costs(frame[frame["clicks"] == 1]).index.tolist() == ["first click"]
