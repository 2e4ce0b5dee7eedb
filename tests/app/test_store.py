"""The datastore: what is saved stays, among threads, processes, crashes and torn files. Small files of any content."""

import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ctsam3d.labelapp import history, records
from ctsam3d.labelapp.archive_store import ArchiveStore
from ctsam3d.labelapp.store import StudyStore

JSON = "datastore_v2.json"


class Folder:
    """A studies folder, and what a client would send."""

    def __init__(self, root: Path):
        self.studies, self.sent = root / "studies", root / "sent"
        self.studies.mkdir()
        self.sent.mkdir()

    def file(self, content: str, ext: str = ".nii.gz") -> str:
        path = self.sent / f"sent{ext}"
        path.write_text(content)
        return str(path)

    def image(self, name: str, content: str = "image", ext: str = ".nii.gz") -> None:
        (self.studies / f"{name}{ext}").write_text(content)

    def open(self, **options) -> StudyStore:
        return StudyStore(str(self.studies), **options)

    def json(self) -> dict:
        return json.loads((self.studies / JSON).read_text())

    def label(self, name: str, tag: str = "final") -> str:
        return (self.studies / "labels" / tag / f"{name}.nii.gz").read_text()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def info(value: str) -> dict:
    return {"label_info": [{"name": value, "idx": 1}]}


def names(found: dict) -> list[str]:
    return [entry["name"] for entry in found["label_info"]]


# ---- what it records -----------------------------------------------------------------------------------------------


def test_images_and_labels_in_the_folder_are_recorded(folder):
    for name in ("a", "b.1"):
        folder.image(name)
    folder.image("c", ext=".nrrd")
    for hidden in (".writing-x-d", "e.txt"):
        (folder.studies / hidden).write_text("")
    (folder.studies / "labels" / "original").mkdir(parents=True)
    (folder.studies / "labels" / "original" / "a.nii.gz").write_text("label")
    store = folder.open(extensions=["*.nii.gz", "*.nrrd", "*.txt", "*.png"])
    assert sorted(store.list_images()) == ["a", "b.1", "c"]
    assert store.get_image_uri("c") == str(folder.studies / "c.nrrd")
    assert store.get_labels_by_image_id("a") == {"original": "a"}
    assert store.get_unlabeled_images() == store.list_images()


def test_monai_labels_own_datastore_reads_what_is_written(folder):
    folder.image("a")
    store = folder.open()
    store.update_image_info("a", {"patient": "7"})
    store.save_label("a", folder.file("label"), "final", info("liver"))
    theirs = LocalDatastore(str(folder.studies))
    assert theirs.get_labeled_images() == ["a"]
    assert theirs.get_image_info("a")["patient"] == "7"
    assert names(theirs.get_label_info("a", "final")) == ["liver"]
    assert theirs.datalist() == store.datalist()


def test_what_monai_label_has_written_is_read(folder):
    folder.image("a")
    theirs = LocalDatastore(str(folder.studies))
    theirs.update_image_info("a", {"patient": "7"})
    theirs.save_label("a", folder.file("label"), "final", info("liver"))
    store = folder.open()
    assert store.json() == theirs.json()
    store.save_label("a", folder.file("better"), "final", info("spleen"))
    first, second = store.label_versions("a", "final")
    assert (first.number, first.path.read_text(), names(first.info)) == (1, "label", ["liver"])
    assert (second.number, second.path.read_text(), names(second.info)) == (2, "better", ["spleen"])


def test_opening_changes_nothing_where_nothing_has_changed(folder):
    folder.image("a")
    folder.open().save_label("a", folder.file("label"), "final", info("liver"))
    before = (folder.studies / JSON).stat()
    folder.open()
    assert (folder.studies / JSON).stat() == before


def test_a_label_saved_again_keeps_its_history(folder):
    folder.image("a")
    store = folder.open()
    for number, name in enumerate(("liver", "spleen", "liver"), start=1):
        assert store.save_label("a", folder.file(f"label {number}"), "final", info(name)) == "a"
        assert store.get_label_info("a", "final")["version"] == number
    assert folder.label("a") == "label 3"
    versions = store.label_versions("a", "final")
    assert [v.number for v in versions] == [1, 2, 3]
    assert [v.path.read_text() for v in versions] == ["label 1", "label 2", "label 3"]
    assert [names(v.info) for v in versions] == [["liver"], ["spleen"], ["liver"]]
    assert store.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}


def test_a_label_in_another_format_takes_the_place_of_the_first(folder):
    folder.image("a")
    store = folder.open()
    store.save_label("a", folder.file("first"), "final", {})
    store.save_label("a", folder.file("second", ".nrrd"), "final", {})
    assert [p.name for p in (folder.studies / "labels" / "final").iterdir()] == ["a.nrrd"]
    assert Path(store.get_label_uri("a", "final")).read_text() == "second"
    assert len(store.label_versions("a", "final")) == 2
    assert folder.open().json() == store.json()


def test_an_image_sent_again_keeps_its_labels_and_the_one_before(folder):
    store = folder.open()
    store.add_image("a", folder.file("first"), {"patient": "7"})
    store.save_label("a", folder.file("label"), "final", info("liver"))
    store.add_image("a", folder.file("first"), {})  # the same again: nothing to keep
    assert not (folder.studies / ".history" / ".images").exists()
    store.add_image("a", folder.file("second"), {"client_id": "me"})
    assert (folder.studies / "a.nii.gz").read_text() == "second"
    found = store.get_image_info("a")
    assert (found["patient"], found["client_id"]) == ("7", "me")
    assert names(store.get_label_info("a", "final")) == ["liver"] and folder.label("a") == "label"
    assert [p.read_text() for p in (folder.studies / ".history" / ".images" / "a").glob("*.gz")] == ["first"]


def test_an_image_sent_again_in_another_format(folder):
    store = folder.open()
    store.add_image("a", folder.file("first"), {})
    store.add_image("a", folder.file("second", ".nrrd"), {})
    assert store.get_image_uri("a") == str(folder.studies / "a.nrrd")
    assert not (folder.studies / "a.nii.gz").exists()
    assert folder.open().list_images() == ["a"]


def test_removing_a_label_leaves_its_history_and_removing_an_image_leaves_nothing(folder):
    folder.image("a")
    folder.image("b")
    store = folder.open()
    for name in ("a", "b"):
        store.save_label(name, folder.file("label"), "final", info("liver"))
    store.remove_label("a", "final")
    assert store.get_labeled_images() == ["b"] and not (folder.studies / "labels" / "final" / "a.nii.gz").exists()
    assert [v.number for v in store.label_versions("a", "final")] == [1]
    store.save_label("a", folder.file("again"), "final", {})
    assert store.get_label_info("a", "final")["version"] == 2
    store.remove_image("a")
    left = [path for path in folder.studies.rglob("*") if path.is_file() and path.name.startswith("a.")]
    assert left == [] and not (folder.studies / ".history" / "final" / "a").exists()
    assert store.list_images() == ["b"] and set(folder.json()["objects"]) == {"b"}


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store, file: store.save_label("nobody", file, "final", {}), ImageNotFoundException),
        (lambda store, file: store.update_image_info("nobody", {}), ImageNotFoundException),
        (lambda store, file: store.remove_image("nobody"), ImageNotFoundException),
        (lambda store, file: store.remove_label("a", "final"), LabelNotFoundException),
        (lambda store, file: store.update_label_info("a", "final", {}), LabelNotFoundException),
    ],
)
def test_what_is_not_there_changes_nothing(folder, call, error):
    folder.image("a")
    store = folder.open()
    before = (folder.studies / JSON).read_bytes()
    with pytest.raises(error):
        call(store, folder.file("x"))
    assert (folder.studies / JSON).read_bytes() == before
    assert list((folder.studies / ".history").glob("*")) == []


def test_names_descriptions_and_infos_are_kept(folder):
    folder.image("a")
    store = folder.open()
    store.set_name("ward 3")
    store.set_description("livers")
    given = {"scores": {"x": 1}}
    store.update_image_info("a", given)
    given["scores"]["x"] = 2
    store.save_label("a", folder.file("label"), "final", {})
    store.update_label_info("a", "final", {"seen": True})
    again = folder.open()
    assert (again.name(), again.description()) == ("ward 3", "livers")
    assert again.get_image_info("a")["scores"] == {"x": 1}
    assert again.get_label_info("a", "final")["seen"] is True


# ---- what others do to the folder ----------------------------------------------------------------------------------


def test_an_image_that_comes_back_has_its_record_again(folder):
    folder.image("a")
    store = folder.open()
    store.update_image_info("a", {"patient": "7"})
    store.save_label("a", folder.file("label"), "final", info("liver"))
    (folder.studies / "a.nii.gz").rename(folder.sent / "a.nii.gz")
    store.refresh()
    assert store.list_images() == []
    store = folder.open()
    (folder.sent / "a.nii.gz").rename(folder.studies / "a.nii.gz")
    store.refresh()
    assert store.get_image_info("a")["patient"] == "7"
    assert names(store.get_label_info("a", "final")) == ["liver"]


def test_a_label_that_vanishes_and_comes_back(folder):
    folder.image("a")
    store = folder.open()
    store.save_label("a", folder.file("label"), "final", info("liver"))
    label = folder.studies / "labels" / "final" / "a.nii.gz"
    label.rename(folder.sent / "label.nii.gz")
    store.refresh()
    assert store.get_labeled_images() == []
    (folder.sent / "label.nii.gz").rename(label)
    store.refresh()
    assert names(store.get_label_info("a", "final")) == ["liver"]  # the history knows this very file


def test_a_folder_that_cannot_be_listed_drops_nothing(folder, monkeypatch):
    folder.image("a")
    store = folder.open()
    folder.studies.rename(folder.sent / "away")
    with pytest.raises(OSError):
        store.refresh()
    assert store.list_images() == ["a"]


def test_the_server_follows_the_folder(folder):
    store = folder.open(auto_reload=True)
    folder.image("a")
    other = folder.open()
    wait(lambda: store.list_images() == ["a"])
    other.save_label("a", folder.file("label"), "final", info("liver"))
    wait(lambda: store.get_labeled_images() == ["a"])
    (folder.studies / "a.nii.gz").unlink()
    wait(lambda: store.list_images() == [])


def wait(reached) -> None:
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- torn files and crashes ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(folder):
    """Three images, of which two have a label."""
    for name in ("a", "b", "c"):
        folder.image(name)
    store = folder.open()
    store.update_image_info("c", {"patient": "7"})
    store.save_label("a", folder.file("of a"), "final", info("liver"))
    store.save_label("b", folder.file("of b"), "final", info("spleen"))
    return folder


@pytest.mark.parametrize(
    "torn", ["", "{", '{"objects": {"a"', "[]", '{"objects": {"a": 3}}', "[" * 100_000, "\xff\xfe"]
)
def test_a_torn_file_is_set_aside_and_nothing_is_lost(saved, torn):
    (saved.studies / JSON).write_bytes(torn.encode("latin-1"))
    store = saved.open()
    assert sorted(store.list_images()) == ["a", "b", "c"]
    assert store.get_image_info("c")["patient"] == "7"
    assert names(store.get_label_info("a", "final")) == ["liver"]
    assert names(store.get_label_info("b", "final")) == ["spleen"]  # the last one: of the history
    aside = list(saved.studies.glob(f"{JSON}.damaged-*"))
    assert [path.read_bytes() for path in aside] == [torn.encode("latin-1")]
    assert saved.json()["objects"].keys() == {"a", "b", "c"}


def test_file_and_backup_torn_leaves_what_the_folders_hold(saved):
    for path in (saved.studies / JSON, saved.studies / f"{JSON}.bak"):
        path.write_text("{")
    store = saved.open()
    assert sorted(store.list_images()) == ["a", "b", "c"]
    assert [names(store.get_label_info(name, "final")) for name in ("a", "b")] == [["liver"], ["spleen"]]


def test_a_missing_file_comes_back_from_the_backup(saved):
    (saved.studies / JSON).unlink()
    assert saved.open().get_image_info("c")["patient"] == "7"


def test_a_file_torn_while_the_server_runs_does_not_reach_it(saved):
    store = saved.open()
    (saved.studies / JSON).write_text("{")
    store.refresh()
    assert sorted(store.list_images()) == ["a", "b", "c"]
    store.update_image_info("a", {"x": 1})
    again = saved.open()
    assert again.get_image_info("a")["x"] == 1 and again.get_image_info("c")["patient"] == "7"
    assert json.loads((saved.studies / f"{JSON}.bak").read_text())["objects"].keys() == {"a", "b", "c"}


class Died(BaseException):
    """Stands in for kill -9: nothing catches it."""


STEPS = {
    "staged": (history.History, "add"),
    "version stored": (history.History, "publish"),
    "published": (records.RecordFile, "write"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("image", ["a", "c"])  # one that has a label already, and one that has none
def test_a_crash_while_saving_leaves_the_old_label_or_the_new_one(saved, monkeypatch, step, image):
    def die(*_):
        raise Died

    store = saved.open()
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nor does anything tidy up
        with pytest.raises(Died):
            store.save_label(image, saved.file("new"), "final", info("tumour"))
    monkeypatch.setattr(history.psutil, "pid_exists", lambda _: False)
    again = saved.open()
    found = names(again.get_label_info(image, "final")) if image in again.get_labeled_images() else None
    text = saved.label(image) if found else None
    assert (text, found) in (
        [("new", ["tumour"]), ("of a", ["liver"])] if image == "a" else [("new", ["tumour"]), (None, None)]
    )
    assert names(again.get_label_info("b", "final")) == ["spleen"]
    left = [p.name for p in saved.studies.rglob(".*") if p.is_file() and p.name != ".lock"]
    assert left == []
    again.save_label(image, saved.file("newest"), "final", info("cyst"))
    assert (saved.label(image), names(saved.open().get_label_info(image, "final"))) == ("newest", ["cyst"])


def test_a_crash_between_backup_and_record(saved, monkeypatch):
    """Both are then names of one file, which renaming would leave as it is."""

    def die(*_):
        raise Died

    store = saved.open()
    with monkeypatch.context() as patch:
        patch.setattr(records, "atomic_path", die)
        with pytest.raises(Died):
            store.update_image_info("a", {"x": 1})
    again = saved.open()
    assert "x" not in again.get_image_info("a")
    again.update_image_info("a", {"x": 2})
    assert saved.open().get_image_info("a")["x"] == 2
    assert [p.name for p in saved.studies.glob(".writing-*")] == []


def test_a_failed_write_is_seen_by_nobody(saved, monkeypatch):
    store = saved.open()
    before = store.json()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.RecordFile, "write", full)
        with pytest.raises(OSError):
            store.update_image_info("a", {"x": 1})
    assert store.json() == before
    store.update_image_info("a", {"x": 1})
    assert saved.open().get_image_info("a")["x"] == 1


# ---- many at once --------------------------------------------------------------------------------------------------


def test_threads_lose_nothing_and_readers_see_whole_lists(folder):
    for number in range(40):
        folder.image(f"i{number}")
    store, stop, seen = folder.open(), threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append((len(store.list_images()), len(store.get_unlabeled_images()) <= 40, bool(store.json())))

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        list(pool.map(lambda n: store.update_image_info(f"i{n % 40}", {f"k{n}": n}), range(120)))
        stop.set()
        reader.result()
    assert set(seen) == {(40, True, True)}
    again = folder.open()
    assert all(again.get_image_info(f"i{n % 40}")[f"k{n}"] == n for n in range(120))


def update_away(studies: Path, process: int, updates: int) -> None:
    store, label = StudyStore(str(studies)), studies.parent / f"label{process}.nii.gz"
    for n in range(updates):
        store.update_image_info(f"i{n % 4}", {f"{process}-{n}": n})
        if n % 10 == 0:
            label.write_text(f"{process} {n}")
            store.save_label(f"i{n % 4}", str(label), f"tag{process}", {"n": n})


def test_four_processes_lose_no_update(folder):
    """``CTSAM3D_UPDATES=1000`` is the full size."""
    updates = int(os.environ.get("CTSAM3D_UPDATES", 200))
    for number in range(4):
        folder.image(f"i{number}")
    folder.open()
    fork = multiprocessing.get_context("fork")  # a fresh process would import for ten seconds
    processes = [fork.Process(target=update_away, args=(folder.studies, n, updates)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    store = folder.open()
    for process in range(4):
        found = [store.get_image_info(f"i{n % 4}").get(f"{process}-{n}") for n in range(updates)]
        assert found == list(range(updates))
        numbers = [v.info["n"] for i in range(4) for v in store.label_versions(f"i{i}", f"tag{process}")]
        assert sorted(numbers) == list(range(0, updates, 10))


def test_a_change_turns_one_record_into_text(folder, monkeypatch):
    """What an update costs must not grow with the number of images: 8,000 of them took MONAI Label 0.4 s."""
    for number in range(50):
        folder.image(f"i{number}")
    store, made, line = folder.open(), [], records._line
    monkeypatch.setattr(records, "_line", lambda image, record: made.append(image) or line(image, record))
    store.update_image_info("i7", {"x": 1})
    store.save_label("i9", folder.file("label"), "final", {})
    assert made == ["i7", "i9"]


# ---- over a DICOM archive ------------------------------------------------------------------------------------------


def test_the_copy_of_an_archive_is_as_safe(folder):
    client = SimpleNamespace(base_url="http://pacs/dicom-web")
    store = ArchiveStore(client, {"Modality": "CT"}, cache_path=str(folder.studies))
    StudyStore.add_image(store, "1.2.3", folder.file("image"), {"PatientID": "7"})
    StudyStore.save_label(store, "1.2.3", folder.file("first"), "original", info("liver"))
    LocalDatastore.get_image_info(store, "1.2.3")
    StudyStore.save_label(store, "1.2.3", folder.file("second"), "original", info("spleen"))
    assert [v.path.read_text() for v in store.label_versions("1.2.3", "original")] == ["first", "second"]
    again = ArchiveStore(client, {"Modality": "CT"}, cache_path=str(folder.studies))
    assert again.get_image_info("1.2.3")["PatientID"] == "7"
