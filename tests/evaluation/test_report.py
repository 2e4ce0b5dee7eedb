"""Results on disk, and the whole evaluation of a phantom with an untrained network."""

import csv

import pytest
import torch
from matplotlib.image import imread

from ctsam3d import checkpoint, evaluation
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.evaluation.report import COLUMNS, RunInfo, Skipped, write_report
from ctsam3d.evaluation.simulate import Result
from ctsam3d.model import build

RUN = RunInfo("default", "v7", "abc123", ("b", "phantoms"), ("a", "b"), (0, 1), 500, 1.5, 2.0, "cpu", "evaluate --x y")


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


def test_csv_has_the_agreed_columns_and_every_result(tmp_path):
    write_report(tmp_path, results(), [], RUN)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS).startswith("case,structure,seed,clicks,dsc,nsd,seconds,patches")
    assert len(rows) == 6
    assert rows[1]["structure"] == "liver" and int(rows[1]["clicks"]) == 3 and float(rows[1]["dsc"]) == 0.9
    assert float(rows[3]["seconds"]) == 0.0 and int(rows[1]["patches"]) == 2


def test_report_says_what_was_run_and_the_means(tmp_path):
    path = write_report(tmp_path / "new", results(), [Skipped("a", "spleen", 41)], RUN)
    text = path.read_text()
    for part in (
        "`default`",
        "v7",
        "abc123",
        "trained on: b, phantoms",
        "cases: a, b (trained on)",
        "seeds: 0, 1",
        "evaluate --x y",
    ):
        assert part in text
    assert "structures: 2; runs (case, structure, seed): 3" in text
    assert "NSD at a tolerance of 2 mm" in text
    assert "| structure | 1 click | 3 clicks |" in text
    assert "| liver | 0.600 | 0.900 |" in text and "| spleen | 0.200 | 0.400 |" in text
    assert "| **mean over structures** | **0.400** | **0.650** |" in text
    assert "| liver | 0.300 | 0.800 |" in text
    assert "| **mean over structures** | **0.200** | **0.550** |" in text
    assert "| first click | 2.00 | 3 |" in text and "| later clicks | 0.50 | 2 |" in text  # none made counts not
    assert "| a | spleen | 41 |" in text


def test_figures_are_pictures_that_the_report_shows(tmp_path):
    text = write_report(tmp_path, results(), [], RUN).read_text()
    assert "## Skipped" not in text
    for name in ("dsc.png", "nsd.png"):
        assert f"({name})" in text
        assert imread(tmp_path / name).std() > 0.01
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dsc.png", "nsd.png", "report.md", "results.csv"]


def test_many_structures_and_a_single_number_of_clicks(tmp_path):
    many = [Result("a", f"s{n}", 0, 1, 0.5, 0.5, 1.0, 1) for n in range(13)]
    text = write_report(tmp_path, many, [], RUN).read_text()
    assert "| s12 | 0.500 |" in text and "later clicks" not in text


def test_no_results_are_no_report(tmp_path):
    with pytest.raises(ValueError, match="1 were skipped"):
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
        command="the command",
    )
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["case"], r["structure"], r["seed"], r["clicks"]) for r in rows] == [
        ("phantom_1", "spleen", str(seed), str(n)) for seed in (0, 1) for n in (1, 2)
    ]
    text = path.read_text()
    assert "version `random`" in text and "the command" in text and "trained on: not said" in text
    skipped = {
        line.split("|")[2].strip(): int(line.split("|")[3]) for line in text.splitlines() if "| phantom_1" in line
    }
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
