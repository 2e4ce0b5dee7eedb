"""Curation: both layouts, where the tissues come from, restarting, and what is said of a case that cannot be used."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from ctsam3d.data.curate import TISSUE_NAMES, curate
from ctsam3d.data.io import read_case, read_labels, read_volume, write_mask, write_volume
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantoms import Phantom, make_phantom
from ctsam3d.data.qa_sheet import draw_qa_sheet, label_colours

MUSCLE, VISCERAL, SUBCUTANEOUS = (VALUE_OF[name] for name in TISSUE_NAMES)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(0, (6.0, 6.0, 6.0), "abdomen")


def organs_of(phantom: Phantom) -> np.ndarray:
    return np.where(phantom.labels_ijk >= MUSCLE, np.uint8(0), phantom.labels_ijk)


def write_case(folder, phantom, names: dict[int, str], labels) -> None:
    write_volume(folder / "ct.nii.gz", phantom.volume)
    write_mask(folder / "seg.nii.gz", labels, phantom.volume)
    (folder / "labels.json").write_text(json.dumps({str(v): n for v, n in names.items()}))


def write_masks(folder, phantom, names) -> None:
    for name, value in names.items():
        write_mask(folder / f"{name}.nii.gz", phantom.labels_ijk == value, phantom.volume)


def table(path) -> pd.DataFrame:
    return pd.read_csv(path).set_index("case")


def test_a_label_map_gains_the_tissues(phantom, tmp_path):
    organs = organs_of(phantom)
    labels = np.where(organs == VALUE_OF["liver"], np.uint8(106), np.uint8(0))  # a value that a tissue would have
    labels[organs == VALUE_OF["spleen"]] = 7
    labels[:3, :3, :3] = 9  # without a name
    write_case(tmp_path / "data" / "p", phantom, {106: "liver", 7: "lump"}, labels)
    (tmp_path / "data" / "p" / "SOURCE.txt").write_text("a phantom")
    path = curate(tmp_path / "data", tmp_path / "out")
    out = tmp_path / "out" / "p"
    names = json.loads((out / "labels.json").read_text())
    assert names == {
        "7": "lump",
        "105": "skeletal_muscle",
        "106": "liver",
        "107": "subcutaneous_fat",
        "108": "visceral_fat",
    }
    written = read_labels(out / "seg.nii.gz", phantom.volume)
    assert np.array_equal(written[labels > 0], labels[labels > 0])
    case = read_case(out)
    assert np.array_equal(case.volume.array_ijk, phantom.volume.array_ijk)
    row = table(path).loc["p"]
    litres = 216 * np.count_nonzero(case.mask("visceral_fat")) / 1e6
    assert row["source"] == "rule" and row["visceral_fat_litres"] == pytest.approx(litres, abs=1e-4) and litres > 0.3
    assert 0 < row["share_before"] < row["share_after"] < 1
    assert (out / "SOURCE.txt").read_text() == "a phantom"
    assert (tmp_path / "out" / "qa" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_mask_files_gain_the_tissues_and_overlaps_are_kept(phantom, tmp_path):
    folder = tmp_path / "data" / "p"
    write_volume(folder / "ct.nii.gz", phantom.volume)
    write_masks(folder / "segmentations", phantom, {"aorta": VALUE_OF["aorta"], "aorta_true_lumen": VALUE_OF["aorta"]})
    curate(tmp_path / "data", tmp_path / "out")
    case = read_case(tmp_path / "out" / "p")
    assert set(case.names) == {"aorta", "aorta_true_lumen", *TISSUE_NAMES}
    assert np.array_equal(case.mask("aorta_true_lumen"), phantom.labels_ijk == VALUE_OF["aorta"])
    for name in TISSUE_NAMES:
        assert case.mask(name).any() and not (case.mask(name) & case.mask("aorta")).any()


@pytest.mark.parametrize("place", ["data/p/tissue_types", "data/p", "more/p"])
def test_totalsegmentators_tissues_are_taken_where_they_are(phantom, tmp_path, place):
    write_case(tmp_path / "data" / "p", phantom, dict(enumerate(NAMES[:104], 1)), organs_of(phantom))
    files = {"skeletal_muscle": MUSCLE, "torso_fat": VISCERAL, "subcutaneous_fat": SUBCUTANEOUS}
    write_masks(tmp_path / place, phantom, files)
    tissues = tmp_path / "more" if place.startswith("more") else None
    path = curate(tmp_path / "data", tmp_path / "out", tissues=tissues)
    assert table(path).loc["p", "source"] == "tissue_types"
    case = read_case(tmp_path / "out" / "p")
    for name in TISSUE_NAMES:
        assert np.array_equal(case.mask(name), phantom.labels_ijk == VALUE_OF[name])


def test_a_case_that_has_the_tissues_keeps_them(phantom, tmp_path):
    names = {**dict(enumerate(NAMES, 1)), 106: "torso_fat"}
    write_case(tmp_path / "data" / "p", phantom, names, phantom.labels_ijk)
    row = table(curate(tmp_path / "data", tmp_path / "out")).loc["p"]
    assert row["source"] == "labels" and row["share_before"] < 0.5 < 0.85 < row["share_after"]
    assert np.array_equal(read_labels(tmp_path / "out" / "p" / "seg.nii.gz", phantom.volume), phantom.labels_ijk)
    assert np.array_equal(read_case(tmp_path / "out" / "p").mask("visceral_fat"), phantom.labels_ijk == VISCERAL)


def test_a_datastore_stays_one_and_its_record_names_the_tissues(phantom, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    organs, info = organs_of(phantom), [{"name": "liver", "idx": 5}]
    for name in ("a", "b"):
        write_volume(data / f"{name}.nii.gz", phantom.volume)
    write_mask(data / "labels" / "final" / "a.nii.gz", organs, phantom.volume)
    final = {"ext": ".nii.gz", "info": {"label_info": info}}
    record = {
        "name": "s",
        "objects": {"a": {"image": {}, "labels": {"final": final}}, "b": {"image": {}, "labels": {}}},
    }
    (data / "datastore_v2.json").write_text(json.dumps(record))
    path = curate(data, out)
    labels = read_labels(out / "labels" / "final" / "a.nii.gz", phantom.volume)
    assert np.array_equal(labels[organs > 0], organs[organs > 0])
    assert {MUSCLE, VISCERAL, SUBCUTANEOUS} <= set(np.unique(labels).tolist())
    assert np.array_equal(read_volume(out / "a.nii.gz").array_ijk, phantom.volume.array_ijk)
    assert list(table(path).index) == ["a"]
    store = json.loads((out / "datastore_v2.json").read_text())
    tissues = [{"name": name, "idx": VALUE_OF[name]} for name in TISSUE_NAMES]
    assert store["name"] == "s" and list(store["objects"]) == ["a"]
    assert store["objects"]["a"]["labels"]["final"]["info"]["label_info"] == info + tissues


def test_an_interrupted_run_goes_on_and_a_broken_case_stops_no_other(phantom, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_case(data / name, phantom, {5: "liver"}, organs_of(phantom))
    curate(data, out, cases=["c"])
    stamp = (out / "c" / "seg.nii.gz").stat().st_mtime_ns
    (data / "a" / "seg.nii.gz").write_bytes(b"broken")
    with pytest.raises(ValueError, match=re.escape("1 of 3 are not: a: path ")):
        curate(data, out)
    assert list(table(out / "tissues.csv").index) == ["b", "c"]
    shutil.copyfile(data / "b" / "seg.nii.gz", data / "a" / "seg.nii.gz")
    rows = table(curate(data, out))
    assert list(rows.index) == ["a", "b", "c"] and rows.drop(columns="source").nunique().max() == 1
    assert (out / "c" / "seg.nii.gz").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_processes_give_the_same_table(phantom, tmp_path):
    for name in ("a", "b"):
        write_case(tmp_path / "data" / name, phantom, {5: "liver"}, organs_of(phantom))
    one, two = (curate(tmp_path / "data", tmp_path / f"out{n}", workers=n) for n in (1, 2))
    assert one.read_text() == two.read_text()


def test_what_is_wrong_is_named(phantom, tmp_path):
    write_case(tmp_path / "data" / "p", phantom, {5: "liver"}, organs_of(phantom))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"cases must be among \['p'\], got \['q'\]"):
        curate(tmp_path / "data", tmp_path / "out", cases=["q"])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        curate(tmp_path / "data", tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="out must lie outside data"):
        curate(tmp_path / "data", tmp_path / "data")
    with pytest.raises(ValueError, match="data must hold case folders"):
        curate(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="data must be a folder"):
        curate(tmp_path / "nowhere", tmp_path / "out")


def test_qa_sheet_colours_and_shapes(phantom, tmp_path):
    colours = label_colours()
    assert colours(0)[3] == 0 and len({colours(v) for v in (MUSCLE, VISCERAL, SUBCUTANEOUS)}) == 3
    with pytest.raises(ValueError, match="labels_ijk must have the scan's shape"):
        draw_qa_sheet(tmp_path / "a.png", phantom.volume, np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1), bool), "")
    shape = phantom.volume.shape_ijk
    draw_qa_sheet(tmp_path / "a.png", phantom.volume, np.zeros(shape, np.uint8), np.zeros(shape, bool), "no body")
    assert (tmp_path / "a.png").exists()
