"""Two runs side by side: pairs, tests and intervals by hand, and the whole comparison from two folders."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from ctsam3d.evaluation.compare import by_score, by_structure, compare, compare_pairs, holm, pair
from ctsam3d.evaluation.report import RunInfo, write_report

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"
CASES = [f"case_{n}" for n in range(6)]


def frame_of(change=0.0, structures=("liver", "spleen"), seeds=(0, 1), clicks=(1, 5), cases=CASES):
    """Case n has a DSC of 0.4 + n / 100 for the liver, 0.1 less for others; `change` is added."""
    rows = [
        (case, structure, seed, count, 0.4 + int(case[-1]) / 100 - 0.1 * (structure != "liver") + change, 0.5, 1.0, 1)
        for case in cases
        for structure in structures
        for seed in seeds
        for count in clicks
    ]
    return pd.DataFrame(rows, columns="case structure seed clicks dsc nsd seconds patches".split())


def test_holm_multiplies_by_what_is_left_and_never_falls():
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06, 0.04 x 1 raised to 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    kept = holm([0.02, math.nan, 0.03])
    assert kept[0] == pytest.approx(0.04) and math.isnan(kept[1]) and kept[2] == pytest.approx(0.04)
    assert holm([]) == []


def test_pairs_are_tested_by_their_signed_ranks():
    a = np.arange(6) / 10
    better = compare_pairs("x", a, a + np.arange(1, 7) / 100)
    assert better.p == pytest.approx(2 / 2**6)  # all six of one sign: two of 64 arrangements
    assert better.difference == pytest.approx(0.035) and 0.01 <= better.low < 0.035 < better.high <= 0.06
    # Ranks 1 to 4 up and 5 down: of the 32 ways to give the ranks signs, those whose smaller side sums to at most 5.
    mixed = compare_pairs("x", np.zeros(5), np.array([0.1, 0.2, 0.3, 0.4, -0.5]))
    at_most_5 = sum(sum(n + 1 for n in range(5) if bits >> n & 1) <= 5 for bits in range(32))
    assert mixed.p == pytest.approx(2 * at_most_5 / 32)


def test_pairs_that_are_equal_or_few_are_no_evidence():
    same = compare_pairs("x", [0.1, 0.2], [0.1 + 1e-15, 0.2])
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    one = compare_pairs("x", [0.1], [0.9])
    assert one.pairs == 1 and one.p == 1.0 and math.isnan(one.low)
    none = compare_pairs("x", [math.nan], [0.5])
    assert none.pairs == 0 and math.isnan(none.p)


def test_only_common_rows_are_paired():
    a, b = frame_of(), frame_of(0.1, seeds=(1, 2), clicks=(5, 9))
    both = pair(a, b)
    assert len(both) == len(CASES) * 2 and set(both["seed"]) == {1} and set(both["clicks"]) == {5}
    with pytest.raises(ValueError, match="must share rows"):
        pair(a, frame_of(seeds=(7,)))


def test_a_patient_is_one_value_whatever_his_structures_and_cases():
    both = pair(frame_of(), frame_of(0.1))
    found = {one.name: one for one in by_score(both)}
    assert list(found) == ["DSC after 1 click", "DSC after 5 clicks", "NSD after 1 click", "NSD after 5 clicks"]
    dsc = found["DSC after 5 clicks"]
    assert dsc.pairs == 6 and dsc.a == pytest.approx(0.375) and dsc.difference == pytest.approx(0.1)
    assert dsc.p == pytest.approx(2 / 64) and dsc.adjusted == pytest.approx(4 * 2 / 64)  # of four rows
    assert found["NSD after 1 click"].p == 1.0
    two = by_score(both, {case: "one" for case in CASES[:5]})[0]
    assert two.pairs == 2 and two.a == pytest.approx((0.37 + 0.4) / 2)  # five cases are one patient: mean 0.37


def test_structures_are_compared_each_and_corrected_together():
    b = frame_of()
    b.loc[b["structure"] == "spleen", "dsc"] -= 0.2
    spleen, liver = by_structure(pair(frame_of(), b), "dsc", 5)
    assert (spleen.name, liver.name) == ("spleen", "liver")  # in the order of the labels
    assert spleen.difference == pytest.approx(-0.2) and spleen.adjusted == pytest.approx(2 * 2 / 64)
    assert liver.p == 1.0 and liver.adjusted == 1.0


def test_a_score_that_nobody_has_is_a_dash(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        frame_of().assign(nsd=math.nan).to_csv(tmp_path / name / "results.csv", index=False)
    assert "| NSD after 5 clicks | 0 | – | – | – | – | – | – |" in compare(
        tmp_path / "a", tmp_path / "b", tmp_path / "out"
    ).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two reports, of v1 and, where every DSC is 0.1 higher, of v2 at another tolerance."""
    folder = tmp_path_factory.mktemp("runs")
    for name, change, tolerance_mm in (("v1", 0.0, 5.0), ("v2", 0.1, 2.0)):
        run = RunInfo("w", name, "0", (), tuple(CASES), (0, 1), 500, 1.5, tolerance_mm, "cpu")
        write_report(folder / name, frame_of(change), [], run)
    return folder


def test_comparison_from_folders_to_pages(runs, tmp_path):
    path = compare(runs / "v1", runs / "v2" / "results.csv", tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "comparison.html", "comparison.md", "differences.png", "pairs.png",
    ]  # fmt: skip
    assert "| DSC after 5 clicks | 6 | 0.375 | 0.475 | +0.100 | +0.100 to +0.100 | 0.0312 | 0.1250 |" in text
    assert "| liver | 6 | 0.425 | 0.525 | +0.100 | +0.100 to +0.100 | 0.0312 | 0.0625 |" in text
    assert "version: A `v1`, B `v2`" in text and "different tolerances" in text
    assert "in both: 48 rows, of 6 cases and 2 structures; left out: 0 of A, 0 of B" in text
    assert imread(path.parent / "pairs.png").std() > 0.01
    assert "data:image/png" in (path.parent / "comparison.html").read_text(encoding="utf-8")


def test_cases_that_were_trained_on_are_named(tmp_path):
    for name, trained_on in (("a", ()), ("b", ("elsewhere", "case_2", "case_5"))):
        run = RunInfo("w", name, "0", trained_on, tuple(CASES), (0, 1), 500, 1.5, 5.0, "cpu")
        write_report(tmp_path / name, frame_of(), [], run)
    text = compare(tmp_path / "a", tmp_path / "b", tmp_path / "out").read_text(encoding="utf-8")
    assert (
        "**Of the 6 cases some were trained on**, which flatters those weights: A on 0, B on 2 (case_2, case_5)" in text
    )
    assert "trained on" not in compare(tmp_path / "a", tmp_path / "a", tmp_path / "out").read_text(encoding="utf-8")


def test_command_line_with_patients(runs, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("script_compare", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "patients.csv").write_text("case,patient\ncase_0,p\ncase_1,p\n")
    arguments = [str(runs / "v1"), str(runs / "v2"), "--out", str(tmp_path / "out")]
    script.main([*arguments, "--patients", str(tmp_path / "patients.csv")])
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'comparison.md'}\n"
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| DSC after 5 clicks | 5 |" in text and "--patients" in text
    (tmp_path / "patients.csv").write_text("case\nx\n")
    for wrong, word in ((["--patients", str(tmp_path / "patients.csv")], "patients must be"), (["--out"], "")):
        with pytest.raises(SystemExit) as stopped:
            script.main([*arguments, *wrong])
        assert stopped.value.code == 2 and word in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([str(runs), str(runs / "v2")])
    assert "results must be a folder with results.csv" in capsys.readouterr().err
