"""Labelled studies of a real datastore on disk, and the split that is never undone."""

import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore

from ctsam3d.data.io import write_mask, write_volume
from ctsam3d.labelapp.datalist import (
    Study,
    image_content,
    labelled_studies,
    patient_identity,
    structure_values,
)
from ctsam3d.labelapp.split import EXCLUDED, TRAINING, VALIDATION, Split
from ctsam3d.volume import Volume

LABELS = ("spleen", "liver", "tumour")
SHAPE = (12, 10, 8)


def volume(seed, shape=SHAPE):
    return Volume(np.random.default_rng(seed).integers(-200, 200, shape).astype(np.int16), np.diag([2.0, 2, 3, 1]))


class Store:
    """A datastore's folder, filled as a server fills it."""

    def __init__(self, folder):
        self.folder, self.work = folder / "studies", folder / "work"
        self.work.mkdir(parents=True)
        self.datastore = LocalDatastore(str(self.folder))

    def add(self, name, seed, **info):
        path = self.work / f"{name}.nii.gz"
        write_volume(path, volume(seed))
        self.datastore.add_image(name, str(path), info)

    def label(self, name, values, info=None, tag="final", shape=SHAPE):
        """Saves a label map that holds, in the plane k = v, the value v."""
        labels = np.zeros(shape, np.uint8)
        for value in values:
            labels[2:9, 2:9, value % 8] = value
        path = self.work / f"{name}-label.nii.gz"
        write_mask(path, labels, volume(0, shape))
        self.datastore.save_label(name, str(path), tag, {"label_info": info} if info is not None else {})

    def studies(self):
        """As the training's process finds them: by a datastore made anew."""
        return labelled_studies(LocalDatastore(str(self.folder)), LABELS)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


# ---- studies -------------------------------------------------------------------------------------------------------


def test_only_final_labels_count(store):
    for seed, name in enumerate(("done", "draft", "bare")):
        store.add(name, seed)
    store.label("done", [1])
    store.label("draft", [1], tag="original")
    studies, skipped = store.studies()
    assert [study.name for study in studies] == ["done"] and skipped == {}


def test_names_come_from_what_was_saved(store):
    store.add("named", 0, patient="A")
    store.label("named", [1, 3, 5], [{"name": "my cyst", "idx": 3}, {"name": "liver", "idx": 1}])
    case = store.studies()[0][0].read()
    assert (case.name, case.names, case.volume.shape_ijk) == ("named", ("liver", "my cyst"), SHAPE)
    assert np.argwhere(case.mask("my cyst"))[:, 2].tolist() == [3] * 49  # value 5 has no name and is left out
    assert case.mask("liver").sum() == 49 and case.mask("liver").dtype == bool


def test_names_fall_back_to_those_of_the_app(store):
    store.add("unnamed", 0)
    store.label("unnamed", [1, 3])
    case = store.studies()[0][0].read()
    assert case.names == ("spleen", "tumour")
    assert np.argwhere(case.mask("tumour"))[:, 2].tolist() == [3] * 49


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ([{"name": "b", "idx": 2}, {"name": "a", "idx": 7}], {"b": (2,), "a": (7,)}),
        ([{"name": "a", "idx": 4}, {"name": " a ", "idx": 1}], {"a": (1, 4)}),
        ([{"name": "a", "idx": "3"}, {"name": "b", "idx": 2.0}], {"b": (2,), "a": (3,)}),
        ([{"name": "Background", "idx": 1}, {"name": "a", "idx": 2}, {"name": "zero", "idx": 0}], {"a": (2,)}),
        ([{"name": "", "idx": 1}, {"idx": 2}, {"name": "x"}, 5, None, {"name": "a", "idx": 1}], {"a": (1,)}),
        ([{"name": "x", "idx": True}, {"name": "y", "idx": 1.5}, {"name": "z", "idx": "n"}, {"name": "w", "idx": -1}],
         None),
        ([{"name": "x", "idx": float("inf")}, {"name": "y", "idx": float("nan")}, {"name": 3, "idx": 1}], None),
        ([], None), (None, None), ("spleen", None), ({"name": "a", "idx": 1}, None),
    ],
)  # fmt: skip
def test_names_of_values(info, expected):
    assert structure_values(info, LABELS) == (expected or {"spleen": (1,), "liver": (2,), "tumour": (3,)})


def break_image(store):
    (store.folder / "s.nii.gz").write_bytes(b"broken")


def break_label(store):
    path = store.folder / "labels" / "final" / "s.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("values", "harm", "info", "words"),
    [
        ([1], break_image, None, ["image cannot be read", "damaged"]),
        ([1], break_label, None, ["label cannot be read", "damaged"]),
        ([], None, None, ["label must hold a structure, it is empty"]),
        ([5], None, None, ["label must hold a value with a name", "spleen 1, liver 2, tumour 3", "[5]"]),
        ([5], None, [{"name": "a", "idx": 4}], ["label must hold a value with a name, one of a 4, got [5]"]),
    ],
)
def test_a_study_that_cannot_be_used_says_why(store, values, harm, info, words):
    store.add("s", 0)
    store.label("s", values, info)
    if harm:
        harm(store)
    study = store.studies()[0][0]
    with pytest.raises(ValueError) as caught:
        study.read()
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(store.folder) not in str(caught.value)


def test_a_label_of_another_size(store):
    store.add("s", 0)
    store.label("s", [1], shape=(12, 10, 7))
    with pytest.raises(
        ValueError, match=r"label must lie on the scan's grid, shape \(12, 10, 8\).* got .*\(12, 10, 7\)"
    ):
        store.studies()[0][0].read()


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="image does not exist"):
        Study("s", str(tmp_path / "s.nii.gz"), str(tmp_path / "l.nii.gz"), {"a": (1,)}).read()


def test_one_study_that_cannot_be_fetched_does_not_hide_the_others(store, monkeypatch):
    for seed, name in enumerate("ab"):
        store.add(name, seed)
        store.label(name, [1])
    fetch = LocalDatastore.get_image_uri
    failing = lambda own, name: fetch(own, name) if name == "b" else 1 / 0  # noqa: E731
    monkeypatch.setattr(LocalDatastore, "get_image_uri", failing)
    studies, skipped = store.studies()
    assert [study.name for study in studies] == ["b"]
    assert skipped == {"a": "image or label cannot be fetched: division by zero"}


def test_labels_of_an_archive_are_brought_first(store, monkeypatch):
    """A DICOMweb datastore asks its archive for images and labels; the local copy behind it has what is needed."""
    store.add("1.2.3", 0, PatientID="P-1", Modality="CT")

    class Archive(DICOMWebDatastore):
        def __init__(self, path):
            LocalDatastore.__init__(self, path)

        def datalist(self, full_path=True):
            store.label("1.2.3", [2])
            self._init_from_datastore_file()

        def get_image_uri(self, image_id):
            return str(store.folder / f"{image_id}.nii.gz")

        def get_labeled_images(self, *_):
            raise AssertionError("cached for two hours")

        def get_label_uri(self, *_):
            raise AssertionError("wants the id of another series")

    studies, skipped = labelled_studies(Archive(str(store.folder)), LABELS)
    assert skipped == {} and [(study.name, study.patient) for study in studies] == [("1.2.3", "P-1")]
    assert studies[0].read().names == ("liver",)


@pytest.mark.parametrize(
    ("info", "identity"),
    [
        ({"patient": " A7 ", "PatientID": "P"}, "A7"),
        ({"PatientID": "P"}, "P"),
        ({"patient": 12}, "12"),
        ({"PatientID": "UNK"}, ""),
        ({"patient": None}, ""),
        ({}, ""),
    ],
)
def test_whose_image_it_is(info, identity):
    assert patient_identity(info) == identity


def test_content_is_that_of_the_voxels(tmp_path):
    scan = volume(1)
    moved = Volume(np.asfortranarray(scan.array_ijk), np.diag([1.0, 1, 1, 1]))
    assert image_content(scan) == image_content(moved)
    other = scan.array_ijk.copy()
    other[3, 4, 5] += 1
    assert image_content(Volume(other, scan.affine_ras_mm)) != image_content(scan)
    reshaped = Volume(np.ascontiguousarray(scan.array_ijk.T), scan.affine_ras_mm)
    assert image_content(reshaped) != image_content(scan)


# ---- the split -----------------------------------------------------------------------------------------------------


def of(part, count=1):
    """Identities that the hash sends to a part."""
    found = []
    for identity in map(str, itertools.count()):
        number = int(hashlib.sha256(f"patient {identity}".encode()).hexdigest()[:16], 16)
        if (number % 5 == 0) == (part == VALIDATION):
            found.append(identity)
        if len(found) == count:
            return found if count > 1 else found[0]


def test_about_one_patient_in_five(tmp_path):
    parts = Split(tmp_path / "s.json").assign([(f"P{n}", f"image{n}") for n in range(1000)])
    assert 160 <= parts.count(VALIDATION) <= 240 and set(parts) == {VALIDATION, TRAINING}


def test_all_images_of_a_patient_go_together(tmp_path):
    studies = [(f"P{n % 40}", f"image{n}") for n in range(200)]
    parts = Split(tmp_path / "s.json").assign(studies)
    assert all(len({part for part, (p, _) in zip(parts, studies) if p == patient}) == 1 for patient, _ in studies)


def test_the_record_outlives_the_process_and_a_new_hash(tmp_path, monkeypatch):
    studies = [(f"P{n}", f"image{n}") for n in range(30)]
    parts = Split(tmp_path / "s.json").assign(studies)
    monkeypatch.setattr("ctsam3d.labelapp.split.ONE_IN", 1)  # everyone new would be for validation
    split = Split(tmp_path / "s.json")
    assert split.assign(studies) == parts
    assert split.assign([*studies, ("new", "image")]) == [*parts, VALIDATION]


def test_an_image_in_validation_stays_there_under_another_patient(tmp_path):
    held, free = of(VALIDATION), of(TRAINING, 2)
    split = Split(tmp_path / "s.json")
    assert split.assign([(held, "x"), (free[0], "y"), ("", "z")])[:2] == [VALIDATION, TRAINING]
    assert split.assign([(free[1], "x")]) == [VALIDATION]  # and this patient comes with it
    assert split.assign([(free[1], "new")]) == [VALIDATION]


def test_a_patient_who_comes_into_validation_takes_along_only_what_was_never_trained_on(tmp_path):
    held, (free, other) = of(VALIDATION), of(TRAINING, 2)
    split = Split(tmp_path / "s.json")
    split.assign([(held, "x"), (free, "y")])
    # "x" turns out to be an image of `free`, whose "y" was trained on; "z" is new, and listed before "x"
    assert split.assign([(free, "z"), (free, "x"), (free, "y"), (other, "w")]) == [
        VALIDATION, VALIDATION, EXCLUDED, TRAINING
    ]  # fmt: skip


def test_a_trained_image_never_comes_into_validation(tmp_path):
    held, free = of(VALIDATION, 2), of(TRAINING)
    split = Split(tmp_path / "s.json")
    assert split.assign([(free, "y"), (held[0], "x")]) == [TRAINING, VALIDATION]
    assert split.assign([(held[0], "y")]) == [EXCLUDED]
    assert split.assign([(held[1], "y")]) == [TRAINING]  # a patient known by this image alone


def test_one_image_of_two_patients(tmp_path):
    held, (free, other) = of(VALIDATION), of(TRAINING, 2)
    split = Split(tmp_path / "s.json")
    assert split.assign([(free, "x"), (held, "x"), (other, "y")]) == [VALIDATION, VALIDATION, TRAINING]
    assert split.assign([(other, "y"), (held, "y")]) == [EXCLUDED, EXCLUDED]


def test_an_image_without_a_patient_is_its_own(tmp_path):
    split = Split(tmp_path / "s.json")
    parts = split.assign([("", f"image{n}") for n in range(40)])
    assert {VALIDATION, TRAINING} == set(parts)
    held = [f"image{n}" for n in range(40) if parts[n] == VALIDATION]
    assert split.assign([(of(TRAINING), held[0])]) == [VALIDATION]  # its patient is entered later


def test_no_names_in_the_record(tmp_path):
    Split(tmp_path / "s.json").assign([("Jane Doe", "a" * 64)])
    text = (tmp_path / "s.json").read_text()
    assert "Jane" not in text and set(json.loads(text)) == {"patients", "images"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"patients": {}}', '{"patients": {"a": "x"}, "images": {}}'])
def test_a_broken_record_is_an_error_and_not_a_new_split(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=r"split .*s\.json must be the record"):
        Split(tmp_path / "s.json")


def test_one_image_under_two_ids(store):
    store.add("a", 0)
    shutil.copyfile(store.folder / "a.nii.gz", store.work / "b.nii.gz")
    store.datastore.add_image("b", str(store.work / "b.nii.gz"), {"patient": "X"})
    store.label("a", [1])
    store.label("b", [2])
    one, other = (study.read() for study in store.studies()[0])
    assert image_content(one.volume) == image_content(other.volume)
