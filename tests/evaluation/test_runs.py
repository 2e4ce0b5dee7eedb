"""Whole evaluations: every data set in its own layout, runs that stop and go on, and runs of several processes."""

import dataclasses
import json
import multiprocessing
import os
import socket

import pandas as pd
import pytest
import torch
from tests.data import miniatures
from tests.data.miniatures import BLOCK, LAYOUTS
from tests.evaluation import standin
from tests.evaluation.standin import SameHu

from ctsam3d import evaluation
from ctsam3d.data import datasets
from ctsam3d.data.datasets import BTCV_NAMES, FLARE22_NAMES, find_dataset
from ctsam3d.evaluation import Skipped
from ctsam3d.evaluation.runs import Part, Parts, Run, Settings, code_sha256
from ctsam3d.evaluation.simulate import Result

QUICK = {"clicks": (1, 2), "seeds": 1, "min_voxels": 50, "expand": False}


@pytest.fixture
def segmenter(monkeypatch):
    own = SameHu()
    monkeypatch.setattr(evaluation, "load", lambda weights, device: own)
    return own


@pytest.fixture
def reports(monkeypatch):
    """What the report was given, in the place of a report, and without its pictures."""
    given = []
    monkeypatch.setattr(evaluation, "write_report", lambda out, *values, pictures: given.append(values) or out)
    monkeypatch.setattr(evaluation, "_pictures", lambda *about: {})
    return given


@pytest.fixture
def pictures(monkeypatch):
    """The pictures that the report was given, in the place of a report."""
    given = []
    monkeypatch.setattr(evaluation, "write_report", lambda out, *values, pictures: given.append(pictures) or out)
    return given


def write(layout, folder):
    folder.mkdir()
    LAYOUTS[layout](folder)
    return folder


# ---- data sets -------------------------------------------------------------------------------------------------------

TOTALSEG_V2 = ("spleen", "atrial_appendage_left", "vertebrae_L5", "visceral_fat")
EVALUATED = {  # layout: cases, structures, clicks by default, and the report's name of the data set
    "cases": (("a", "b"), ("spleen", "liver"), 9, ""),
    "totalseg": (("s0001", "s0002"), TOTALSEG_V2, 9, "totalseg"),
    "datastore": (("s0001",), ("spleen", "liver"), 9, "totalseg"),
    "flare22": (("FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARETs_0001"), FLARE22_NAMES, 9, "flare22"),
    "btcv": (("img0001", "img0002"), BTCV_NAMES, 9, "btcv"),
    "msd_pancreas": (("pancreas_001", "pancreas_004", "pancreas_210"), ("pancreas_tumour",), 10, "msd_pancreas"),
    "msd_colon": (("colon_001", "colon_004", "colon_210"), ("colon_tumour",), 10, "msd_colon"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_is_evaluated_as_it_was_downloaded(layout, segmenter, reports, tmp_path):
    cases, structures, most_clicks, name = EVALUATED[layout]
    data = write(layout, tmp_path / "data")
    out = evaluation.evaluate(data, tmp_path / "out", **QUICK | {"clicks": None})
    ((results, skipped, run),) = reports
    assert out == tmp_path / "out" and skipped == []
    assert (run.cases, run.dataset, run.user, run.tolerance_mm) == (cases, name, "deepest", 5.0)
    expected = [(case, structure) for case in cases for structure in structures]
    got = list(dict.fromkeys((result.case, result.structure) for result in results))
    assert sorted(got) == sorted(expected) and [case for case, _ in got] == sorted(case for case, _ in got)
    assert max(result.clicks for result in results) == most_clicks
    # The stand-in finds a block whole: image and labels belong together.
    assert all((result.dsc, result.nsd, result.nsd_2mm) == (1.0, 1.0, 1.0) for result in results)


def test_cases_come_from_a_list_a_split_or_names(segmenter, reports, tmp_path):
    data, out = write("msd_colon", tmp_path / "data"), tmp_path / "out"
    (tmp_path / "test.txt").write_text("colon_210\ncolon_001\n")
    evaluation.evaluate(data, out, case_list=tmp_path / "test.txt", **QUICK)
    assert reports[-1][2].cases == ("colon_210", "colon_001")
    evaluation.evaluate(data, out, cases=["colon_004"], dataset="msd_colon", **QUICK)
    assert reports[-1][2].cases == ("colon_004",)
    with pytest.raises(ValueError, match="cases must be chosen in one way, got cases and case_list"):
        evaluation.evaluate(data, out, cases=["colon_004"], case_list=tmp_path / "test.txt", **QUICK)
    with pytest.raises(ValueError, match="split 'test' must have cases"):
        evaluation.evaluate(data, out, split="test", **QUICK)


def test_small_and_absent_structures_are_left_out_and_named_where_asked_for(segmenter, reports, tmp_path):
    data = write("cases", tmp_path / "data")
    evaluation.evaluate(data, tmp_path / "out", structures=["unicorn", "liver"], cases=["a"], **QUICK)
    results, skipped, _ = reports[-1]
    assert {r.structure for r in results} == {"liver"} and skipped == [Skipped("a", "unicorn", 0)]
    # 6 x 6 x 6 voxels of 1.5 mm are as many of the model grid.
    evaluation.evaluate(data, tmp_path / "out", cases=["a"], **QUICK | {"min_voxels": BLOCK**3 + 1})
    results, skipped, _ = reports[-1]
    assert results == [] and skipped == [Skipped("a", name, BLOCK**3) for name in ("spleen", "liver")]
    evaluation.evaluate(data, tmp_path / "out", cases=["a"], **QUICK | {"min_voxels": BLOCK**3})
    results, skipped, _ = reports[-1]
    assert len(results) == 4 and skipped == []


def test_patients_are_those_of_the_file_else_of_the_data_set(segmenter, reports, tmp_path):
    data = write("totalseg", tmp_path / "data")
    rows = ["image_id;split;patient", "s0000;train;p0", "s0001;test;p1", "s0002;test;p2"]
    (data / "meta.csv").write_text("\n".join(rows) + "\n")
    evaluation.evaluate(data, tmp_path / "out", **QUICK)
    assert reports[-1][2].patients == {"s0001": "p1", "s0002": "p2"}
    (tmp_path / "patients.csv").write_text("case,patient\ns0002,p1\n")
    evaluation.evaluate(data, tmp_path / "out", patients=tmp_path / "patients.csv", **QUICK)
    assert reports[-1][2].patients == {"s0001": "p1", "s0002": "p1"}
    evaluation.evaluate(write("cases", tmp_path / "plain"), tmp_path / "out", **QUICK)
    assert reports[-1][2].patients == {}


def test_the_most_memory_of_all_parts_is_that_of_the_run(segmenter, reports, tmp_path, monkeypatch):
    data, taken = write("cases", tmp_path / "data"), iter((100.0, 900.0, 300.0, 200.0))
    monkeypatch.setattr(evaluation.runs, "peak_memory_mb", lambda device: next(taken))
    evaluation.evaluate(data, tmp_path / "out", **QUICK)
    assert reports[-1][2].memory_mb == 900.0
    evaluation.evaluate(data, tmp_path / "out", **QUICK)  # from its parts: nothing is measured now
    assert reports[-1][2].memory_mb == 900.0
    evaluation.evaluate(data, tmp_path / "out", **QUICK | {"min_voxels": BLOCK**3 + 1})
    assert reports[-1][2].memory_mb is None


def test_sizes_are_counted_at_the_models_spacing(segmenter, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(miniatures, "SPACING_MM", 3.0)
    data, voxels = write("cases", tmp_path / "data"), BLOCK**3 * 8  # a voxel of 3 mm holds 2 x 2 x 2 of the model's
    evaluation.evaluate(data, tmp_path / "out", cases=["a"], **QUICK | {"min_voxels": voxels + 1})
    assert reports[-1][:2] == ([], [Skipped("a", name, voxels) for name in ("spleen", "liver")])
    evaluation.evaluate(data, tmp_path / "out", cases=["a"], **QUICK | {"min_voxels": voxels})
    assert {result.structure for result in reports[-1][0]} == {"spleen", "liver"} and reports[-1][1] == []


def test_empty_masks_of_a_download_are_no_structures(segmenter, reports, tmp_path):
    data = write("totalseg", tmp_path / "data")
    evaluation.evaluate(data, tmp_path / "out", cases=["s0001"], structures=["liver", "spleen"], **QUICK)
    assert reports[-1][1] == [Skipped("s0001", "liver", 0)]
    evaluation.evaluate(data, tmp_path / "out", cases=["s0001"], **QUICK)
    assert reports[-1][1] == []


@pytest.mark.parametrize("bad", [{"user": "perfect"}, {"split": "tset"}, {"dataset": "flare"}, {"clicks": (0,)}])
def test_what_cannot_be_used_is_named_before_anything_runs(bad, tmp_path):
    data = write("cases", tmp_path / "data")
    with pytest.raises(ValueError, match=next(iter(bad))):
        evaluation.evaluate(data, tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


# ---- stopping and going on -------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_stopped(segmenter, reports, tmp_path, monkeypatch):
    data, options = write("cases", tmp_path / "data"), QUICK | {"seeds": 2}
    evaluation.evaluate(data, tmp_path / "whole", **options)
    whole, sessions = reports[-1], segmenter.sessions
    assert sessions == 2 * 2 * 2  # cases, structures, seeds

    simulate, calls = evaluation.runs.simulate, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 6:  # in the middle of the second case's first structure
            raise KeyboardInterrupt
        return simulate(*arguments)

    monkeypatch.setattr(evaluation.runs, "simulate", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(data, tmp_path / "out", **options)
    monkeypatch.setattr(evaluation.runs, "simulate", simulate)
    segmenter.sessions = 0
    evaluation.evaluate(data, tmp_path / "out", **options)
    assert segmenter.sessions == 4  # two structures of the second case, two seeds each
    assert [without_seconds(r) for r in reports[-1][0]] == [without_seconds(r) for r in whole[0]]

    monkeypatch.setattr(datasets, "read_case", None)  # nothing is read where nothing is left to do
    evaluation.evaluate(data, tmp_path / "out", **options)
    assert segmenter.sessions == 4 and reports[-1][0] == reports[-2][0]  # nothing is clicked again, seconds included


def without_seconds(result):
    return dataclasses.replace(result, seconds=0.0)


@pytest.mark.parametrize(
    "other", [{"clicks": (1, 3)}, {"seeds": 2}, {"tolerance_mm": 3.0}, {"user": "random"}, {"expand": True}]
)
def test_parts_of_other_settings_are_another_run(segmenter, reports, tmp_path, other):
    data = write("cases", tmp_path / "data")
    for expected, options in ((4, QUICK), (0, QUICK), (4 * other.get("seeds", 1), QUICK | other), (0, QUICK)):
        segmenter.sessions = 0
        evaluation.evaluate(data, tmp_path / "out", **options)
        assert segmenter.sessions == expected


def test_parts_of_other_weights_data_or_code_are_another_run(segmenter, reports, tmp_path, monkeypatch):
    data = write("cases", tmp_path / "data")

    def sessions():
        segmenter.sessions = 0
        evaluation.evaluate(data, tmp_path / "out", **QUICK)
        return segmenter.sessions

    assert (sessions(), sessions()) == (4, 0)
    os.utime(data / "a" / "seg.nii.gz", ns=(1, 1))
    assert (sessions(), sessions()) == (2, 0)  # of that case
    for field, value in (("sha256", "1" * 64), ("peak_threshold", 0.25), ("hu_window", (-100.0, 200.0))):
        monkeypatch.setattr(segmenter.info, field, value)
        assert (sessions(), sessions()) == (4, 0)
    monkeypatch.setattr(evaluation.runs, "code_sha256", lambda: "other")
    assert (sessions(), sessions()) == (4, 0)


def test_best_median_and_worst_are_drawn_once_and_all_on_demand(segmenter, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "REACH", 0.1)  # no click finds a block whole, so that scores differ
    miniatures.cases(tmp_path / "data", ("a", "b"), (1, 5, 7))

    def drawn(**options):
        segmenter.sessions = 0
        evaluation.evaluate(tmp_path / "data", tmp_path / "out", **QUICK | options)
        return segmenter.sessions, set(pictures[-1])

    sessions, three = drawn()
    assert sessions == 6 + 3 and len(three) == 3
    assert drawn() == (0, three)  # they are there already
    structures = {(case, name) for case in "ab" for name in ("spleen", "liver", "aorta")}
    assert drawn(overlays=True) == (3, structures)  # those that were missing
    paths = pictures[-1]
    assert len(set(paths.values())) == 6 and all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())
    paths["a", "aorta"].unlink()
    assert drawn(overlays=True) == (1, structures) and drawn() == (0, three)
    # Those of other weights or settings are other pictures.
    assert drawn(clicks=(1, 3))[0] == 6 + 3 and not set(pictures[-1].values()) & set(paths.values())


def test_pictures_on_demand_cost_no_session_of_their_own(segmenter, pictures, tmp_path):
    data = write("cases", tmp_path / "data")
    evaluation.evaluate(data, tmp_path / "out", overlays=True, **QUICK | {"seeds": 2})
    assert segmenter.sessions == 2 * 2 * 2 and len(pictures[-1]) == 4


def test_cases_that_cannot_be_read_do_not_cost_the_others(segmenter, reports, tmp_path):
    data = write("cases", tmp_path / "data")
    whole = (data / "a" / "ct.nii.gz").read_bytes()
    (data / "a" / "ct.nii.gz").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cases must be usable.* a: path .*ct\.nii\.gz cannot be read"):
        evaluation.evaluate(data, tmp_path / "out", **QUICK)
    assert reports == [] and segmenter.sessions == 2
    (data / "a" / "ct.nii.gz").write_bytes(whole)
    evaluation.evaluate(data, tmp_path / "out", **QUICK)
    assert segmenter.sessions == 4 and {r.case for r in reports[-1][0]} == {"a", "b"}


def settings(**changes):
    own = Settings(
        "0" * 64, (-1.0, 1.0), 1.5, 0, 0.5, (1,), (0,), 5.0, "deepest", True, "cpu", "float32", code_sha256()
    )
    return dataclasses.replace(own, **changes)


def test_parts_keep_what_they_were_given(tmp_path):
    miniatures.cases(tmp_path / "data", ("a",))
    (files,) = find_dataset(tmp_path / "data").cases
    own = Parts(tmp_path / "parts", settings()).of(files)
    assert own.names is None and own.get("x") is None
    names = ("../x", "x", "X", "rib left/1", "ü.json")
    result = Result("a", "x", 0, 1, 1 / 3, 2 / 7, 0.1, 2, 1e-9)
    parts = {name: Part(7 + n, (result,), 1000.5 + n) for n, name in enumerate(names)}
    own.set_names(names)
    for name, part in parts.items():
        own.set(name, part)
    again = Parts(tmp_path / "parts", settings()).of(files)
    assert again.names == names and {name: again.get(name) for name in names} == parts
    assert all(path.is_relative_to(own.folder) for path in (tmp_path / "parts").rglob("structure-*"))
    assert Parts(tmp_path / "parts", settings(expand=False)).of(files).names is None
    (broken,) = own.folder.glob("structure-x.json")
    for text in ("", "{}", "[1]", json.dumps({"voxels": 1, "results": [{"case": "a"}]})):
        broken.write_text(text)
        assert own.get("x") is None


def test_what_is_not_done_is_not_gathered(tmp_path):
    miniatures.cases(tmp_path / "data", ("a",))
    found = find_dataset(tmp_path / "data")
    run = Run(Parts(tmp_path / "parts", settings()))
    with pytest.raises(ValueError, match="must hold the results"):
        run.gather(found.cases)
    run.parts.of(found.cases[0]).set_names(("liver",))
    with pytest.raises(ValueError, match="must hold the results of liver"):
        run.gather(found.cases)


# ---- several processes -----------------------------------------------------------------------------------------------

SHARDED = QUICK | {"clicks": (1, 3), "seeds": 2, "user": "jittered"}


def work(rank, count, port, data, out):
    """One process as torchrun starts it."""
    torch.set_num_threads(1)  # a forked process has none of the threads of its parent
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert (evaluation.evaluate(data, out, **SHARDED) is None) == (rank > 0)


def test_two_processes_write_what_one_does(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "REACH", 0.1)  # 4.3 voxels: no click finds a block whole
    miniatures.cases(tmp_path / "data", ("a", "b", "c"), (1, 5, 7))
    evaluation.evaluate(tmp_path / "data", tmp_path / "one", **SHARDED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (2, port, tmp_path / "data", tmp_path / "two")
    workers = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    one, two = (csv_without_seconds(tmp_path / name / "results.csv") for name in ("one", "two"))
    assert one == two and len(one.splitlines()) == 1 + 3 * 3 * 2 * 2
    assert 0 < pd.read_csv(tmp_path / "two" / "results.csv")["dsc"].min() < 1


def csv_without_seconds(path):
    """The bytes of results.csv, in which nothing stands for seconds."""
    lines = [line.split(b",") for line in path.read_bytes().splitlines()]
    column = lines[0].index(b"seconds")
    return b"\n".join(b",".join(line[:column] + line[column + 1 :]) for line in lines)
