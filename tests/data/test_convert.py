"""Miniatures of TotalSegmentator's download, whole and damaged, converted; killed at any step, and gone on with."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from filelock import FileLock
from tests.data.downloads import (
    AFFINE,
    BOXES,
    SHAPE,
    VALUES,
    VOXELS,
    box,
    ct,
    expected_map,
    read,
    save,
    write_map_case,
    write_masks_case,
    write_meta,
    write_v1,
)
from tests.data.test_convert_parts import sheared

from ctsam3d.data.convert import case as case_module
from ctsam3d.data.convert.totalseg import convert_totalseg

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_totalseg.py"


def convert(source, out, **options):
    return {record.case: record for record in convert_totalseg(source, out, test_share=0, **options).records}


def one(folder, out=None):
    """The record of the only case, and its label map if it has one."""
    out = out or folder / "out"
    (record,) = convert(folder / "in", out).values()
    label = out / "labels" / "final" / f"{record.case}.nii.gz"
    return record, read(label) if label.is_file() else None


def config(out):
    return json.loads((out / "datastore_v2.json").read_text())


# ---- what comes out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    """A converted miniature of v1: the download and the datastore."""
    folder = tmp_path_factory.mktemp("v1")
    source = write_v1(folder / "in")
    convert_totalseg(source, folder / "out")
    return source, folder / "out"


def test_images_and_label_maps(v1):
    source, out = v1
    for name in ("s0000", "s0001", "s0002", "s0003"):
        assert (out / f"{name}.nii.gz").read_bytes() == (source / name / "ct.nii.gz").read_bytes()
        label = nib.load(out / "labels" / "final" / f"{name}.nii.gz")
        assert label.get_data_dtype() == np.uint8 and np.allclose(label.affine, AFFINE)
        assert np.array_equal(np.asanyarray(label.dataobj), expected_map())
    names = [f"s000{n}.nii.gz" for n in range(4)]
    tables = {"datastore_v2.json", "split.csv", "report.csv", "report.md"}
    assert set(contents(out)) == {*names, *(f"labels/final/{name}" for name in names), *tables}


def test_the_datastores_record(v1):
    values = config(v1[1])
    assert (values["images_dir"], values["labels_dir"]) == (".", "labels")
    assert list(values["objects"]) == ["s0000", "s0001", "s0002", "s0003"]
    entry = values["objects"]["s0002"]
    assert entry["image"]["ext"] == ".nii.gz" and entry["image"]["info"]["split"] == "test"
    info = entry["labels"]["final"]["info"]
    assert info["label_info"] == [{"name": name, "idx": value} for name, value in VALUES.items()]
    assert (entry["labels"]["final"]["ext"], info["name"]) == (".nii.gz", "s0002.nii.gz")
    parts = [values["objects"][f"s000{n}"]["image"]["info"]["split"] for n in range(4)]
    assert parts == ["training", "training", "test", "training"]


def test_the_split_beside_it(v1):
    with open(v1[1] / "split.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["split"], row["source_split"]) for row in rows] == [
        ("s0000", "training", "train"), ("s0001", "training", "val"), ("s0002", "test", "test"),
        ("s0003", "training", "train"),
    ]  # fmt: skip


def test_the_report(v1):
    with open(v1[1] / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["s0000", "s0001", "s0002", "s0003"]
    assert rows[0]["shape"] == "14 x 12 x 10" and rows[0]["spacing_mm"] == "1.5 x 1.5 x 1.5"
    assert (rows[0]["structures"], rows[0]["labelled_voxels"]) == ("4", str(sum(VOXELS.values())))
    assert rows[0]["empty"] == "face brain" or rows[0]["empty"] == "brain face"
    page = (v1[1] / "report.md").read_text()
    assert "4 cases: 4 converted (3 for training, 1 for testing), 0 refused." in page
    assert "| empty masks | 8 | 4 | s0000, s0001, s0002, s0003 |" in page
    assert "| 5 | liver | 4 |" in page and "| 50 | brain | 0 |" in page


def test_names_of_version_2(tmp_path):
    masks = {
        "liver": box((5, 9), (1, 4), (1, 5)),
        "sacrum": box((1, 3), (1, 3), (1, 2)),
        "vertebrae_S1": box((1, 3), (1, 3), (3, 4)),
        "heart": box((11, 12), (1, 2), (1, 2)),
        "kidney_cyst_left": box((11, 11), (5, 5), (5, 5)),
    }
    write_masks_case(tmp_path / "in" / "s0", masks=masks, empty=("thyroid_gland",))
    record, labels = one(tmp_path)
    assert record.voxels == {"liver": 100, "sacrum": 36}
    assert record.dropped == ("heart", "kidney_cyst_left", "thyroid_gland")
    assert np.array_equal(labels, 5 * masks["liver"] + 92 * (masks["sacrum"] + masks["vertebrae_S1"]))
    assert record.overlap_voxels == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| heart | 1 |" in page and "| 92 | sacrum | 1 |" in page


@pytest.mark.parametrize("in_header", [False, True])
def test_one_label_map_a_case(tmp_path, in_header):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2, 3], labels[5, 5, 5], labels[6, 6, 6], labels[8, 8, 8] = 5, 51, 52, 77
    names = {5: "liver", 51: "heart", 52: "aorta", 53: "pulmonary_vein", 60: "spleen"}
    write_map_case(tmp_path / "in" / "s0", labels, names, in_header)
    record, converted = one(tmp_path)
    assert record.voxels == {"liver": 3, "aorta": 1}
    assert (record.dropped, record.empty) == (("heart", "value 77"), ("pulmonary_vein", "spleen"))
    assert (converted[2, 2, 3], converted[6, 6, 6], np.count_nonzero(converted)) == (5, 7, 4)


def test_a_case_without_labels_is_an_image_to_label(tmp_path):
    save(tmp_path / "in" / "s0" / "ct.nii.gz", ct())
    write_masks_case(tmp_path / "in" / "s1", masks={"skull": box((1, 2), (1, 2), (1, 2))})
    records = convert(tmp_path / "in", tmp_path / "out")
    assert [record.voxels for record in records.values()] == [{}, {}] and records["s1"].dropped == ("skull",)
    assert not list((tmp_path / "out" / "labels" / "final").iterdir())
    assert [entry["labels"] for entry in config(tmp_path / "out")["objects"].values()] == [{}, {}]
    assert "0 have labels, 2 are images alone" in (tmp_path / "out" / "report.md").read_text()


def test_a_case_of_dicom_slices(tmp_path, shared_data):
    shutil.copytree(shared_data / "dicom_ct_slab", tmp_path / "in" / "slab")
    record, labels = one(tmp_path)
    image = nib.load(tmp_path / "out" / "slab.nii.gz")
    assert image.shape == record.shape_ijk == labels.shape == (512, 512, 20) and record.voxels["liver"] > 0
    assert record.reoriented == 1  # its label map is in RAS, the slices are not


# ---- damage --------------------------------------------------------------------------------------------------------


def test_overlapping_masks(tmp_path):
    masks = {name: box(*spans) for name, spans in BOXES.items()}
    masks["hip_left"] = box((6, 9), (6, 8), (6, 8))  # 27 of its 36 voxels are the bladder's, whose label is later
    masks["kidney_left"] = box((6, 6), (2, 2), (2, 2))  # one voxel, wholly inside the liver
    write_masks_case(tmp_path / "in" / "s0", masks=masks)
    record, labels = one(tmp_path)
    assert record.overlap_voxels == 27 + 1 and record.covered == ("kidney_left",)
    assert record.voxels == VOXELS | {"hip_left": 9}
    assert labels[6, 6, 6] == 104 and labels[9, 6, 6] == 90 and labels[6, 2, 2] == 5


def test_tissues_fill_what_is_left_and_that_is_no_damage(tmp_path):
    everything = box((0, 13), (0, 11), (0, 9))
    masks = {name: box(*spans) for name, spans in BOXES.items()} | {"torso_fat": everything}
    write_masks_case(tmp_path / "in" / "s0", masks=masks)
    record, labels = one(tmp_path)
    assert record.overlap_voxels == 0 and record.voxels["visceral_fat"] == everything.size - sum(VOXELS.values())
    assert np.array_equal(np.where(labels == 106, 0, labels), expected_map())


def test_a_direction_that_is_not_orthonormal(tmp_path):
    affine = sheared(1e-3)
    write_masks_case(tmp_path / "in" / "s0", affine=affine)
    record, labels = one(tmp_path)
    assert record.direction_mended and np.array_equal(labels, expected_map())
    assert (record.reoriented, record.header_mended, record.resampled) == (0, 0, 0)  # the masks have the image's header
    image, label = (nib.load(path) for path in (tmp_path / "out").rglob("s0.nii.gz"))
    direction = image.affine[:3, :3] / 1.5
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    assert not np.allclose(image.affine, affine, atol=1e-5)
    assert np.allclose(image.affine, label.affine)
    assert np.array_equal(read(tmp_path / "out" / "s0.nii.gz"), ct())


def test_masks_on_other_grids(tmp_path):
    folder = write_masks_case(tmp_path / "in" / "s0")
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = (AFFINE @ [SHAPE[0] - 1, 0, 0, 1])[:3]
    save(folder / "segmentations" / "spleen.nii.gz", box(*BOXES["spleen"])[::-1], flipped)
    near = AFFINE.copy()
    near[2, 3] += 0.5
    save(folder / "segmentations" / "liver.nii.gz", box(*BOXES["liver"]), near)
    save(folder / "segmentations" / "rib_left_7.nii.gz", box(*BOXES["rib_left_7"])[:8], AFFINE)
    record, labels = one(tmp_path)
    assert (record.reoriented, record.header_mended, record.resampled) == (1, 1, 1)
    assert np.array_equal(labels, expected_map())


def cut_short(folder):
    """As ct.nii.gz of v1's s0864."""
    path = folder / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


def lose_header(folder):
    save(folder / "segmentations" / "liver.nii.gz", box(*BOXES["liver"]), np.eye(4))


def break_mask(folder):
    (folder / "segmentations" / "liver.nii.gz").write_bytes(b"broken")


def shear_much(folder):
    save(folder / "ct.nii.gz", ct(), sheared(0.2))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_short, "path ct.nii.gz cannot be read"),
        (lose_header, "path segmentations/liver.nii.gz has the image's shape, but its affine is"),
        (break_mask, "path segmentations/liver.nii.gz cannot be read"),
        (shear_much, "direction must be orthonormal"),
    ],
)
def test_a_case_that_cannot_be_mended_is_refused_and_the_others_are_not(tmp_path, harm, words):
    for name in ("s0", "s1"):
        write_masks_case(tmp_path / "in" / name)
    harm(tmp_path / "in" / "s1")
    records = convert(tmp_path / "in", tmp_path / "out")
    assert records["s0"].refused == "" and records["s1"].refused.startswith(words)
    assert list(config(tmp_path / "out")["objects"]) == ["s0"]
    assert [path.name for path in (tmp_path / "out").rglob("s*.nii.gz")] == ["s0.nii.gz", "s0.nii.gz"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "2 cases: 1 converted (1 for training, 0 for testing), 1 refused." in page
    assert f"- `s1`: {words}" in page


def test_a_label_map_without_names_is_refused(tmp_path):
    write_map_case(tmp_path / "in" / "s0", np.ones(SHAPE, np.uint8), {1: "liver"})
    (tmp_path / "in" / "s0" / "labels.json").unlink()
    assert "must come with labels.json, or with the names" in one(tmp_path)[0].refused


# ---- going on ------------------------------------------------------------------------------------------------------


def contents(out):
    """Every file of a datastore, without the times in it."""
    files = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and ".conversion" not in path.parts and path.name != ".lock":
            text = path.read_bytes()
            if path.name == "datastore_v2.json":
                values = json.loads(text)
                for entry in values["objects"].values():
                    for part in (entry["image"], *entry["labels"].values()):
                        part["info"].pop("ts")
                values.pop("name")
                text = json.dumps(values)
            elif path.name == "report.csv":
                text = b"\n".join(line.rpartition(b",")[0] for line in text.splitlines())
            elif path.name == "report.md":
                text = b"\n".join(line for line in text.splitlines() if b"of work in all" not in line)
            files[str(path.relative_to(out))] = text
    return files


def test_a_finished_case_is_not_done_again_and_a_refused_one_is(tmp_path, monkeypatch):
    for name in ("s0", "s1"):
        write_masks_case(tmp_path / "in" / name)
    break_mask(tmp_path / "in" / "s1")
    convert(tmp_path / "in", tmp_path / "out")
    save(tmp_path / "in" / "s1" / "segmentations" / "liver.nii.gz", box(*BOXES["liver"]))
    done, read_image = [], case_module._read_image
    monkeypatch.setattr(case_module, "_read_image", lambda folder: done.append(folder.name) or read_image(folder))
    records = convert(tmp_path / "in", tmp_path / "out")
    assert done == ["s1"] and [record.refused for record in records.values()] == ["", ""]
    (tmp_path / "out" / "labels" / "final" / "s0.nii.gz").unlink()
    convert(tmp_path / "in", tmp_path / "out")
    assert done == ["s1", "s0"] and (tmp_path / "out" / "labels" / "final" / "s0.nii.gz").is_file()


def test_another_version_or_another_split_needs_another_folder(tmp_path):
    write_masks_case(tmp_path / "in" / "s0")
    write_meta(tmp_path / "in", {"s0": "train"})
    convert(tmp_path / "in", tmp_path / "out")
    write_meta(tmp_path / "in", {"s0": "test"})
    with pytest.raises(ValueError, match=r"case s0 is in .* for training, and would be for test now"):
        convert(tmp_path / "in", tmp_path / "out")
    write_meta(tmp_path / "in", {"s0": "train"})
    (tmp_path / "in" / "s0" / "segmentations" / "liver.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"case s0 is in .* already, from other files; give another --out"):
        convert(tmp_path / "in", tmp_path / "out")


def test_two_downloads_in_one_datastore(tmp_path):
    write_masks_case(tmp_path / "a" / "s0")
    write_masks_case(tmp_path / "b" / "s1")
    convert(tmp_path / "a", tmp_path / "out")
    assert list(convert(tmp_path / "b", tmp_path / "out")) == ["s0", "s1"]
    assert list(config(tmp_path / "out")["objects"]) == ["s0", "s1"]


def test_what_a_team_has_labelled_since_stays(tmp_path):
    for name in ("s0", "s1", "s2"):
        write_masks_case(tmp_path / "in" / name)
    out = tmp_path / "out"
    convert(tmp_path / "in", out, names=["s0", "s1"])
    values = config(out)
    values["description"] = "ours"
    values["objects"]["s0"]["labels"]["final"]["info"] = {"ts": 1, "label_info": [{"name": "cyst", "idx": 1}]}
    values["objects"]["s0"]["image"]["info"]["strategy"] = {"random": 1}
    values["objects"]["s1"]["labels"]["final"]["info"] = {"ts": 2, "name": "s1.nii.gz"}  # as a server finds a file
    values["objects"]["own"] = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}}
    (out / "datastore_v2.json").write_text(json.dumps(values))
    convert(tmp_path / "in", out)
    after = config(out)
    assert after["description"] == "ours" and list(after["objects"]) == ["s0", "s1", "own", "s2"]
    assert after["objects"]["s0"]["labels"] == values["objects"]["s0"]["labels"]
    assert after["objects"]["s0"]["image"]["info"]["strategy"] == {"random": 1}
    names = after["objects"]["s1"]["labels"]["final"]["info"]["label_info"]
    assert [entry["idx"] for entry in names] == [1, 5, 64, 104]


def in_a_child(action, step):
    """Runs `action` in a process that is killed (SIGKILL) as it is about to rename a file for the `step`-th time.

    Returns:
        Whether it came to that.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        left, rename = [step], os.replace

        def replace(*names):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*names)

        os.replace = replace
        os.close(2)
        action()
    finally:
        os._exit(0)


def test_killed_at_every_step_it_leaves_whole_files_and_goes_on(tmp_path):
    """A file comes into being by a rename, so what is between two of them is the same to whoever looks."""
    source, whole = tmp_path / "in", tmp_path / "whole"
    for seed in range(2):
        write_masks_case(source / f"s{seed}", seed)
    convert_totalseg(source, whole)
    expected = contents(whole)
    for step in range(1, 100):
        out = tmp_path / f"killed{step}"
        killed = in_a_child(lambda: convert_totalseg(source, out), step)  # noqa: B023
        found = contents(out)
        started = {name for name in found if name.startswith(".writing-")}
        assert not [name for name in started if ".nii" in name]  # nothing that a server would take for an image
        assert all(found[name] == expected[name] for name in found.keys() - started)
        convert_totalseg(source, out)
        assert contents(out) == expected
        assert not [*out.rglob(".writing-*"), *out.glob(".conversion/work/*")]
        if not killed:
            break
        shutil.rmtree(out)
    assert step == 2 * 5 + 4 + 1  # five renames a case, the four tables at the end, and the call that is not killed


def test_several_processes_do_the_same(v1, tmp_path):
    source, out = v1
    convert_totalseg(source, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(out)


@pytest.mark.slow  # two processes import the package anew
def test_workers_end_when_they_lose_their_parent(tmp_path):
    for n in range(60):
        write_masks_case(tmp_path / "in" / f"s{n:02}")
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--in", str(tmp_path / "in"), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not list(out.glob(".conversion/cases/*.json")):
        time.sleep(0.005)
    others = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(others, timeout=60)
    assert alive == []
    for path in (*out.glob("*.nii.gz"), *out.glob("labels/final/*.nii.gz")):
        read(path)
    assert len(convert_totalseg(tmp_path / "in", out).records) == 60


def test_one_conversion_at_a_time(tmp_path):
    write_masks_case(tmp_path / "in" / "s0")
    (tmp_path / "out" / ".conversion").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / ".conversion" / "lock"),
        pytest.raises(ValueError, match=r"out .* must have one conversion at a time, another is writing"),
    ):
        convert_totalseg(tmp_path / "in", tmp_path / "out")


def test_workers_must_be_some(tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        convert_totalseg(tmp_path, tmp_path / "out", workers=0)


# ---- the command line ----------------------------------------------------------------------------------------------


def main(*arguments):
    spec = importlib.util.spec_from_file_location("convert_totalseg_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def test_the_script_says_what_it_did(tmp_path, capsys):
    for name in ("s0", "s1"):
        write_masks_case(tmp_path / "in" / name)
    cut_short(tmp_path / "in" / "s1")
    main("--in", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    said = capsys.readouterr()
    assert "refused s1: path ct.nii.gz cannot be read" in said.out
    assert "1 cases converted, 1 refused" in said.out and "report.md" in said.out
    assert "converting" in said.err  # the progress bar


def test_the_script_refuses_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main("--in", tmp_path / "none", "--out", tmp_path / "out")
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1
    assert message.startswith("error: in must be an existing folder")
