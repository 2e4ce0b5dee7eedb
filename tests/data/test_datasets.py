"""Public data sets in their own file layouts, as miniatures: what is found, under which names, with which labels."""

import json
import os

import numpy as np
import pytest
from tests.data import miniatures
from tests.data.miniatures import BLOCK, LAYOUTS, hu_of

from ctsam3d.data import datasets
from ctsam3d.data.datasets import BTCV_NAMES, FLARE22_NAMES, find_dataset, read_case_list, read_patients
from ctsam3d.data.labels import NAMES


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    for name, write in LAYOUTS.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


def values_of(case):
    """The value of each structure that is there, told from the HU under its mask, which must be one block."""
    found = {}
    for name in case.names:
        mask = case.mask(name)
        assert mask.dtype == bool and mask.shape == case.volume.shape_ijk
        if mask.any():
            (hu,) = np.unique(case.volume.array_ijk[mask])
            assert np.count_nonzero(mask) == BLOCK**3
            found[name] = int(hu) // hu_of(1)
    return found


# What the miniatures hold, said once more by hand: kind, cases, and the published value of each structure.
EXPECTED = {
    "cases": ("cases", ["a", "b"], {"spleen": 1, "liver": 5}),
    "totalseg": (
        "totalseg",
        ["s0000", "s0001", "s0002"],
        {"spleen": 1, "atrial_appendage_left": 2, "vertebrae_L5": 3, "visceral_fat": 4},
    ),
    "datastore": ("totalseg", ["s0001", "s0002"], {"spleen": 1, "liver": 5}),
    "flare22": (
        "flare22",
        ["FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARETs_0001"],
        {
            **{"liver": 1, "kidney_right": 2, "spleen": 3, "pancreas": 4, "aorta": 5, "inferior_vena_cava": 6},
            **{"adrenal_gland_right": 7, "adrenal_gland_left": 8, "gallbladder": 9, "esophagus": 10, "stomach": 11},
            **{"duodenum": 12, "kidney_left": 13},
        },
    ),
    "btcv": (
        "btcv",
        ["img0001", "img0002"],
        {
            **{"spleen": 1, "kidney_right": 2, "kidney_left": 3, "gallbladder": 4, "esophagus": 5, "liver": 6},
            **{"stomach": 7, "aorta": 8, "inferior_vena_cava": 9, "portal_vein_and_splenic_vein": 10, "pancreas": 11},
            **{"adrenal_gland_right": 12, "adrenal_gland_left": 13},
        },
    ),
    "msd_pancreas": (
        "msd_pancreas",
        ["pancreas_001", "pancreas_004", "pancreas_210"],
        {"pancreas": 1, "pancreas_tumour": 2},
    ),
    "msd_colon": ("msd_colon", ["colon_001", "colon_004", "colon_210"], {"colon_tumour": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_is_recognised_and_read(layouts, layout):
    kind, names, values = EXPECTED[layout]
    found = find_dataset(layouts / layout)
    assert (found.kind, [case.name for case in found.cases]) == (kind, names)
    for files in found.cases:
        case = files.read()
        assert case.name == files.name and values_of(case) == values
    assert find_dataset(layouts / layout, kind).cases == found.cases


def test_organs_bear_the_names_of_totalseg():
    for names in (FLARE22_NAMES, BTCV_NAMES):
        assert len(names) == 13 and set(names) <= set(NAMES)


def test_tumour_data_sets_are_there_for_the_tumour(layouts):
    assert find_dataset(layouts / "msd_pancreas").structures == ("pancreas_tumour",)
    assert find_dataset(layouts / "msd_colon").structures == ("colon_tumour",)
    assert find_dataset(layouts / "btcv").structures is None


def test_splits(layouts):
    def names(layout, split=None):
        return [case.name for case in find_dataset(layouts / layout).chosen(split=split)]

    assert names("totalseg") == names("totalseg", "test") == ["s0001", "s0002"]
    assert names("totalseg", "train") == ["s0000"] and len(names("totalseg", "all")) == 3
    assert names("datastore") == ["s0001"] and names("datastore", "train") == ["s0002"]
    assert len(names("flare22")) == 3 and names("flare22", "test") == ["FLARETs_0001"]
    assert names("cases") == ["a", "b"]
    with pytest.raises(ValueError, match="split 'val' must have cases"):
        names("totalseg", "val")
    with pytest.raises(ValueError, match="split must be one of train, val, test or all, got 'tset'"):
        names("totalseg", "tset")


def test_cases_are_chosen_by_name_in_the_order_given(layouts):
    found = find_dataset(layouts / "flare22")
    chosen = found.chosen(["FLARETs_0001", "FLARE22_Tr_0001", "FLARETs_0001"])
    assert [case.name for case in chosen] == ["FLARETs_0001", "FLARE22_Tr_0001"]
    with pytest.raises(ValueError, match=r"FLARE22_Tr_0001.*got \['FLARE22_Tr_0009'\]"):
        found.chosen(["FLARE22_Tr_0009"])


def test_two_files_for_one_structure_are_its_union(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "V1_FROM_V2", {"one": "sacrum", "other": "sacrum"})
    values = np.zeros((3, 1, 1), np.uint8)
    for index, name in enumerate(("one", "other")):
        mask = values.copy()
        mask[index] = 1
        miniatures.save(tmp_path / "s1" / "segmentations" / f"{name}.nii.gz", mask)
    miniatures.save(tmp_path / "s1" / "ct.nii.gz", np.arange(3, dtype=np.int16).reshape(3, 1, 1))
    case = find_dataset(tmp_path, "totalseg").cases[0].read()
    assert case.names == ("sacrum",) and case.mask("sacrum").ravel().tolist() == [True, True, False]
    # In a folder of cases, names are taken as they are.
    assert find_dataset(tmp_path, "cases").cases[0].read().names == ("one", "other")


def test_a_label_map_is_read_when_a_mask_is_wanted_and_once(layouts, monkeypatch):
    calls = []
    own = datasets.read_labels
    monkeypatch.setattr(datasets, "read_labels", lambda *a: calls.append(a) or own(*a))
    case = find_dataset(layouts / "btcv").cases[0].read()
    assert calls == []
    case.mask("spleen"), case.mask("liver")
    assert len(calls) == 1


def test_a_datastore_label_without_names_has_those_of_totalseg(tmp_path):
    miniatures.datastore(tmp_path)
    store = json.loads((tmp_path / "datastore_v2.json").read_text())
    store["objects"]["s0001"]["labels"]["final"]["info"] = {}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(store))
    case = find_dataset(tmp_path).cases[0].read()
    assert case.names == NAMES and values_of(case) == {"spleen": 1, "liver": 5}


def test_the_datastore_of_monai_label_is_read(tmp_path):
    LocalDatastore = pytest.importorskip("monailabel.datastore.local").LocalDatastore
    miniatures.save_pair(tmp_path / "store/s0001.nii.gz", tmp_path / "label.nii.gz", (1, 5))
    store = LocalDatastore(str(tmp_path / "store"), extensions=("*.nii.gz",))
    store.save_label("s0001", str(tmp_path / "label.nii.gz"), "final", {"label_info": [{"name": "aorta", "idx": 5}]})
    store.update_image_info("s0001", {"split": "test"})
    (files,) = find_dataset(tmp_path / "store").chosen()
    assert files.split == "test" and values_of(files.read()) == {"aorta": 5}


def test_a_fingerprint_follows_the_files(tmp_path):
    miniatures.cases(tmp_path, ("a",))
    files = find_dataset(tmp_path).cases[0]
    assert [path.name for path in files.files] == ["ct.nii.gz", "seg.nii.gz", "labels.json"]
    before = files.fingerprint()
    assert find_dataset(tmp_path).cases[0].fingerprint() == before
    changed = tmp_path / "a" / "labels.json"
    os.utime(changed, ns=(1, 1))
    assert files.fingerprint() != before
    changed.unlink()
    with pytest.raises(OSError):
        files.fingerprint()


def test_case_list(tmp_path):
    path = tmp_path / "test.txt"
    path.write_text("colon_001\n\n# of another paper\nimagesTr/colon_004.nii.gz  # with its file\n", encoding="utf-8")
    assert read_case_list(path) == ("colon_001", "colon_004")
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"case_list .*test\.txt must name at least one case"):
        read_case_list(path)
    with pytest.raises(FileNotFoundError, match="case_list must be an existing text file"):
        read_case_list(tmp_path / "nowhere.txt")
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="must be a text file"):
        read_case_list(path)


def test_patients_of_a_table(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("patient,case,age\np,001,60\nNA,b,\n")
    assert read_patients(path) == {"001": "p", "b": "NA"}
    for text in ("case\nx\n", "case,patient\nx,\n", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="patients"):
            read_patients(path)
    with pytest.raises(FileNotFoundError, match="patients must be an existing CSV file"):
        read_patients(tmp_path / "nowhere.csv")


def test_patients_come_from_the_data_set_or_are_the_cases(layouts, tmp_path):
    miniatures.datastore(tmp_path)
    path = tmp_path / "datastore_v2.json"
    store = json.loads(path.read_text())
    store["objects"]["s0001"]["image"]["info"]["patient"] = 7
    path.write_text(json.dumps(store))
    assert [case.patient for case in find_dataset(tmp_path).cases] == ["7", "s0002"]
    assert [case.patient for case in find_dataset(layouts / "btcv").cases] == ["img0001", "img0002"]


def test_a_table_of_cases_that_cannot_be_used_is_named(tmp_path):
    miniatures.totalseg(tmp_path)
    (tmp_path / "meta.csv").write_text("image_id;split\ns0001;tset\n")
    with pytest.raises(ValueError, match=r"meta .*meta\.csv must have a split of .* got tset"):
        find_dataset(tmp_path)


def test_what_is_no_data_set_is_named(layouts, tmp_path):
    with pytest.raises(FileNotFoundError, match="data must be an existing folder"):
        find_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"dataset must be auto or one of cases, .*got 'flare'"):
        find_dataset(layouts / "flare22", "flare")
    with pytest.raises(ValueError, match="must be a folder of cases or a data set"):
        find_dataset(tmp_path)
    for kind in ("cases", "totalseg", "flare22", "btcv"):
        with pytest.raises(ValueError, match=f"must hold cases of the data set {kind}"):
            find_dataset(tmp_path, kind)
    with pytest.raises(ValueError, match=r"must hold dataset\.json"):
        find_dataset(tmp_path, "msd_colon")
    with pytest.raises(ValueError, match="must list cases with the labels 0 to 1 of msd_colon"):
        find_dataset(layouts / "msd_pancreas", "msd_colon")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match="must list labels and training cases"):
        find_dataset(tmp_path, "msd_colon")
    (tmp_path / "datastore_v2.json").write_text('{"objects": [1]}')
    with pytest.raises(ValueError, match="must be the record of a MONAI Label datastore"):
        find_dataset(tmp_path)


def test_a_folder_of_several_data_sets_is_not_guessed(layouts):
    with pytest.raises(ValueError, match="must be one data set, it has files of flare22 and btcv; say which"):
        find_dataset(layouts)
    assert find_dataset(layouts, "btcv").kind == "btcv"


def test_a_file_that_is_there_twice_is_refused(tmp_path):
    miniatures.btcv(tmp_path)
    miniatures.save(tmp_path / "predicted" / "label0001.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"must hold each file once, label0001\.nii\.gz"):
        find_dataset(tmp_path)
