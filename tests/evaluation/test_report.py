"""Results on disk, and the whole evaluation of a phantom with an untrained network."""

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from ctsam3d import checkpoint, evaluation
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.evaluation.report import COLUMNS, RunInfo, Skipped, read_results, results_frame, write_report
from ctsam3d.evaluation.report_document import to_markdown
from ctsam3d.evaluation.report_groups import GROUPS
from ctsam3d.evaluation.report_sections import examples, make_document
from ctsam3d.evaluation.simulate import Result
from ctsam3d.model import build

RUN = RunInfo("default", "v7", "abc123", ("b", "phantoms"), ("a", "b"), (0, 1), 500, 1.5, 5.0, "cpu", "evaluate --x y")
FILES = ["clicks.png", "groups.png", "structures_dsc.png", "structures_nsd.png"]


def results():
    """liver: DSC 0.5 and 0.7 after one click, 0.9 and 0.9 after three; spleen only in one case."""
    return [
        Result("a", "liver", 0, 1, 0.5, 0.25, 1.0, 1),
        Result("a", "liver", 0, 3, 0.9, 0.75, 0.25, 2),
        Result("b", "liver", 0, 1, 0.7, 0.35, 3.0, 1),
        Result("b", "liver", 0, 3, 0.9, 0.85, 0.0, 1),
        Result("b", "spleen", 0, 1, 0.2, 0.1, 2.0, 1),
        Result("b", "spleen", 0, 3, 0.4, 0.3, 0.75, 1),
    ]


def text_of(results, run=RUN, skipped=()):
    """The report without its figures, which take seconds to draw."""
    return to_markdown(make_document(results_frame(results, run.patients), skipped, run, GROUPS, None, {}))


def test_csv_has_the_agreed_columns_and_every_result(tmp_path):
    write_report(tmp_path, results(), [], RUN)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS).startswith("case,structure,seed,clicks,dsc,nsd,seconds,patches")
    assert len(rows) == 6
    assert rows[1]["structure"] == "liver" and int(rows[1]["clicks"]) == 3 and float(rows[1]["dsc"]) == 0.9
    assert float(rows[3]["seconds"]) == 0.0 and int(rows[1]["patches"]) == 2
    assert [(row["case"], row["trained_on"]) for row in rows[1:3]] == [("a", "False"), ("b", "True")]


def test_report_says_what_was_run_and_the_means():
    text = text_of(results(), skipped=[Skipped("a", "spleen", 41)])
    for part in (
        "`default`",
        "v7",
        "abc123",
        "trained on: b, phantoms",
        "cases: a, b (trained on)",
        "seeds: 0, 1",
        "evaluate --x y",
        "the deepest point (mm) of the error",
    ):
        assert part in text
    assert "structures: 2; runs (case, structure, seed): 3" in text
    assert "NSD at a tolerance of 5 mm" in text
    assert "| structure | 1 click | 3 clicks |" in text
    assert "| liver | 0.600 | 0.900 |" in text and "| spleen | 0.200 | 0.400 |" in text
    assert "| **mean over structures** | **0.400** | **0.650** |" in text
    assert "| liver | 0.300 | 0.800 |" in text
    assert "| **mean over structures** | **0.200** | **0.550** |" in text
    assert "| first click | 2.00 | 2.90 | 1 | 1 | 3 |" in text  # p95 of 1, 2, 3: nine tenths from 2 to 3
    assert "| later clicks | 0.50 | 0.72 | 2 | 2 | 2 |" in text  # none made counts not
    assert "| a | spleen | 41 |" in text
    assert "weights of the run could not be read any more" in text  # no weights have the SHA-256 abc123


def test_pages_pictures_and_what_was_run_are_written_beside_it(tmp_path):
    text = write_report(tmp_path, results(), [], RUN).read_text()
    assert "## Skipped" not in text and "## Best, median and worst" not in text and "## Tumours" not in text
    for name in FILES:
        assert f"({name})" in text
        assert imread(tmp_path / name).std() > 0.01
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted([*FILES, "report.html", "report.json", "report.md", "results.csv"])
    assert json.loads((tmp_path / "report.json").read_text())["run"]["version"] == "v7"


def test_a_frame_is_as_good_as_results_and_may_have_a_second_tolerance(tmp_path):
    frame = pd.DataFrame([vars(result) for result in results()]).assign(nsd_2mm=0.125)
    text = write_report(tmp_path, frame, [], RUN).read_text()
    assert "NSD at 5 mm" in text and "| **NSD at 2 mm** | **0.125** | **0.125** |" in text
    written = frame.assign(patient=frame["case"], trained_on=frame["case"] == "b")
    pd.testing.assert_frame_equal(read_results(tmp_path), written, check_dtype=False)


def test_patients_are_those_that_the_run_names(tmp_path):
    run = replace(RUN, patients={"a": "p", "b": "p"})
    text = write_report(tmp_path, results(), [], run).read_text()
    assert read_results(tmp_path)["patient"].tolist() == ["p"] * 6
    assert "- patients: 1\n" in text and "95 % interval |" not in text.split("## Clicks")[1].split("## ")[0]
    assert "- patients:" not in text_of(results()) and "| 95 % interval |" in text_of(results())


def test_long_series_of_names_are_cut_before_others():
    series = tuple(f"phantom_{n}" for n in range(40))
    text = text_of(results(), replace(RUN, trained_on=(*series, "sts_001", "sts_002", "ts_example")))
    assert "trained on: ts_example, sts_001, sts_002, phantom_0, phantom_1" in text and "and 13 others" in text


def test_long_lists_of_names_are_cut():
    text = text_of(results(), replace(RUN, trained_on=tuple(f"s{n:04}" for n in range(1139))))
    assert "s0029, and 1109 others" in text and "s0030" not in text


def test_the_rule_for_empty_masks_is_said():
    assert "one that stays empty scores 0; a structure that a case does not have is not clicked" in text_of(results())


def test_a_single_number_of_clicks(tmp_path):
    many = [Result("a", f"s{n}", 0, 1, 0.5, 0.5, 1.0, 1) for n in range(13)]
    text = write_report(tmp_path / "new" / "folder", many, [], RUN).read_text()
    assert "| s12 | 0.500 |" in text and "| later clicks |" not in text


def test_results_without_a_score_are_dashes(tmp_path):
    nan = float("nan")
    text = write_report(tmp_path, [Result("a", "liver", 0, 1, 0.5, nan, 0.0, 1)], [], RUN).read_text()
    assert "| **mean over structures** | **–** |" in text and "| **NSD at 5 mm** | **–** |" in text


def test_the_papers_figures_stand_beside_ours_on_its_data_alone():
    scored = [Result("a", "liver", 0, n, 0.8, 0.9, 1.0, 1) for n in (1, 5)]
    own, flare, coarse, btcv = (
        text_of(scored, replace(RUN, dataset=dataset, tolerance_mm=tolerance_mm))
        for dataset, tolerance_mm in (("", 5.0), ("flare22", 5.0), ("flare22", 2.0), ("btcv", 5.0))
    )
    assert "(paper)" not in own and "These data are not the paper's" in own
    assert flare.startswith("# Evaluation with simulated clicks: FLARE22\n")
    rows = [line for line in flare.splitlines() if "(paper) |" in line]
    assert [line.split("|")[2:4] for line in rows] == [[" – ", f" {v} "] for v in ("0.884", "0.722", "0.958", "0.682")]
    assert "CT-SAM3D (paper): text on FLARE22" in flare
    assert "0.884" in coarse and "0.958" not in coarse and "The paper's NSD is at 5 mm" in coarse
    assert "No figure of the paper on BTCV was found." in btcv
    with pytest.raises(ValueError, match="dataset must be one of"):
        replace(RUN, dataset="unheard of")


def test_another_user_is_said_to_be_another():
    text = text_of(results(), replace(RUN, user="jittered"))
    assert "a few mm beside the deepest point" in text
    assert "user: tired" in text_of(results(), replace(RUN, user="tired"))
    assert "The paper's user clicks the deepest point" in text
    assert "The paper's user" not in text_of(results())


def test_cases_that_were_trained_on_are_counted_at_the_top():
    text = text_of(results())
    assert "**1 of 2 cases were trained on**, which flatters these figures; the table" in text
    assert "Without them DSC is **0.900** after 3 clicks." in text  # a's liver
    assert "**2 of 2 cases were trained on**, which flatters these figures." in text_of(
        results(), replace(RUN, trained_on=("a", "b"))
    )
    assert "were trained on**" not in text_of(results(), replace(RUN, trained_on=("phantoms",)))


def test_cases_that_were_trained_on_are_marked_wherever_they_stand():
    tumours = [Result(case, "tumour", 0, 1, dsc, dsc, 1.0, 1) for case, dsc in (("a", 0.2), ("b", 0.6))]
    frame = results_frame(tumours)
    shown = {("a", "tumour"): "a.png", ("b", "tumour"): "b.png"}
    text = to_markdown(make_document(frame, [], RUN, GROUPS, None, shown))
    section = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    assert "Best: tumour of b (trained on), DSC 0.600" in section["Best, median and worst"]
    assert "worst: tumour of a, DSC 0.200" in section["Best, median and worst"]
    assert "| a | tumour |" in section["Failures"] and "| b (trained on) | tumour |" in section["Failures"]
    assert "| **DSC**, cases not trained on | **0.200** |" in section["Tumours"]
    assert "| a | 1 |" in section["Cases"] and "| b (trained on) | 1 |" in section["Cases"]


def test_structures_that_are_too_small_are_counted_in_the_head():
    text = text_of(results(), skipped=[Skipped("a", "spleen", 41), Skipped("b", "unicorn", 0)])
    assert "- left out as too small: 1 structures of cases" in text  # the other one is not there at all
    assert "too small" not in text_of(results())


def test_tumours_have_a_section():
    text = text_of([Result("a", name, 0, 10, 0.8, 0.9, 1.0, 1) for name in ("liver", "pancreas_tumour")])
    section = text.split("## Tumours")[1].split("## ")[0]
    assert "| pancreas_tumour | 0.800 |" in section and "liver" not in section


def test_best_median_and_worst_are_shown_where_there_are_pictures(tmp_path):
    scores = {"liver": 0.9, "spleen": 0.5, "stomach": 0.7, "colon": 0.1, "brain": 0.99}
    scored = [Result("a/1", name, 0, 1, dsc, dsc, 1.0, 1) for name, dsc in scores.items()]
    scored += [Result("a/1", "liver", 1, 1, 0.2, 0.2, 1.0, 1)]  # a second user: the pictures are of the first one
    assert examples(results_frame(scored)) == {
        ("a/1", "brain"): "Best", ("a/1", "stomach"): "Median", ("a/1", "colon"): "Worst"
    }  # fmt: skip
    Figure(figsize=(1, 1)).savefig(tmp_path / "picture.png")
    pictures = {("a/1", name): tmp_path / "picture.png" for name in ("brain", "stomach", "colon", "liver")}
    (tmp_path / "out" / "overlays").mkdir(parents=True)
    (tmp_path / "out" / "overlays" / "a-1_spleen.png").write_bytes(b"left by another run")
    text = write_report(tmp_path / "out", scored, [], RUN, pictures=pictures).read_text()
    shown = [line[2 : line.index("(")] for line in text.splitlines() if "](overlays/" in line]
    assert shown == [
        "Best: brain of a/1, DSC 0.990 after 1 click]",
        "Median: stomach of a/1, DSC 0.700 after 1 click]",
        "Worst: colon of a/1, DSC 0.100 after 1 click]",
    ]
    assert "By DSC, of 5 structures of cases; first user." in text
    assert (tmp_path / "out" / "overlays" / "a-1_liver.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png") == len(FILES) + 3


def test_examples_that_are_one_are_named_together():
    two = [Result("a", name, 0, 1, dsc, dsc, 1.0, 1) for name, dsc in (("liver", 0.9), ("spleen", 0.5))]
    assert examples(results_frame(two)) == {("a", "liver"): "Best", ("a", "spleen"): "Median and worst"}
    assert examples(results_frame(two[:1])) == {("a", "liver"): "Best and median and worst"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="nsd"), "columns .*nsd are not there"),
        (lambda frame: pd.concat([frame, frame[:1]]), r"one row per .*\['a', 'liver', 0, 1\] twice"),
        (lambda frame: frame.assign(dsc=1.5), "dsc of .*from 0 to 1"),
        (lambda frame: frame[:0], "at least one row"),
    ],
)
def test_what_is_no_table_of_results_is_refused(tmp_path, change, message):
    change(pd.DataFrame([vars(result) for result in results()])).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_results(tmp_path / "nowhere")


def test_no_results_are_no_report(tmp_path):
    with pytest.raises(ValueError, match=r"1 were skipped: absent, or fewer than 500 voxels of 1\.5 mm"):
        write_report(tmp_path, [], [Skipped("a", "liver", 3)], RUN)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two small phantoms, a folder that is no case, and an untrained network."""
    folder = tmp_path_factory.mktemp("data")
    for seed in (0, 1):
        write_phantom_case(folder / f"phantom_{seed}", make_phantom(seed, (6, 6, 6), "abdomen"))
    (folder / "no_case").mkdir()
    torch.manual_seed(0)
    checkpoint.save(
        folder / "tiny.safetensors", checkpoint.Checkpoint(build("tiny").eval(), (-500.0, 800.0), version="random")
    )
    return folder


def test_evaluation_from_folder_to_report(data, tmp_path):
    path = evaluation.evaluate(
        data,
        tmp_path,
        weights=data / "tiny.safetensors",
        cases=["phantom_1"],
        structures=["gallbladder", "spleen", "unicorn"],
        clicks=(1, 2),
        seeds=2,
        min_voxels=10_000,
        overlays=True,
        expand=False,
        command="the command",
    )
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["case"], r["structure"], r["seed"], r["clicks"]) for r in rows] == [
        ("phantom_1", "spleen", str(seed), str(n)) for seed in (0, 1) for n in (1, 2)
    ]
    text = path.read_text()
    assert "version `random`" in text and "the command" in text and "trained on: not said" in text
    skipped = {
        line.split("|")[2].strip(): int(line.split("|")[3])
        for line in text.split("## Skipped")[1].splitlines()
        if "| phantom_1" in line
    }
    assert "| ours (tiny) |" in text  # the network's cost is counted from the weights
    assert skipped["unicorn"] == 0 and skipped["gallbladder"] == 107 * 64
    assert imread(tmp_path / "overlays" / "phantom_1_spleen.png").ndim == 3


def test_cases_are_the_labelled_folders(data):
    assert [p.name for p in evaluation.find_cases(data)] == ["phantom_0", "phantom_1"]
    assert [p.name for p in evaluation.find_cases(data, ["phantom_1"])] == ["phantom_1"]
    with pytest.raises(ValueError, match=r"phantom_0.*got \['no_case'\]"):
        evaluation.find_cases(data, ["no_case"])
    with pytest.raises(ValueError, match="has none"):
        evaluation.find_cases(data / "no_case")
    with pytest.raises(FileNotFoundError, match="data must be"):
        evaluation.find_cases(data / "nowhere")


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"clicks": ()}, {"min_voxels": 0}, {"tolerance_mm": float("nan")}])
def test_bad_numbers_are_named(data, tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        evaluation.evaluate(data, tmp_path, weights=data / "tiny.safetensors", **bad)
