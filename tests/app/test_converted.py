"""A converted data set as the server, its next_sample and its training find it."""

import json
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.datastore.local import LocalDatastore
from monailabel.tasks.activelearning.first import First
from tests.app.conftest import free_port, start, stop, wait_until_up
from tests.app.labelling import scan
from tests.app.pool import ScanPool
from tests.data.miniatures import totalseg
from tests.eyes import Eyes

from ctsam3d.data.convert.totalseg import convert_totalseg
from ctsam3d.data.io import read_case, write_volume
from ctsam3d.data.labels import NAMES, our_name
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.labelapp.datalist import labelled_studies
from ctsam3d.labelapp.strategy import strategies

WITHOUT_COUNTERPART = {"prostate", "spinal_cord", "costal_cartilages"}  # of the 61 of ts_example, in v2's names


def download(folder: Path, shared_data: Path) -> Path:
    """The real abdomen with v2's names, an image to label, and a labelled case that is for testing."""
    folder.mkdir()
    (folder / "ts_example").symlink_to(shared_data / "ts_example")
    for number, name in enumerate(("bare", "held_out")):
        write_phantom_case(folder / name, make_phantom(number, (6, 6, 6), "abdomen"))
    for file in ("seg.nii.gz", "labels.json"):
        (folder / "bare" / file).unlink()
    (folder / "meta.csv").write_text("image_id;split\nts_example;train\nbare;val\nheld_out;test\n")
    return folder


def test_a_training_reads_the_converted_abdomen(app, tmp_path, shared_data):
    source = download(tmp_path / "download", shared_data)
    studies = app.team.studies
    assert convert_totalseg(source, studies).refused == ()
    before = (studies / "datastore_v2.json").read_bytes()
    datastore = LocalDatastore(str(studies))
    assert (studies / "datastore_v2.json").read_bytes() == before  # there was nothing to add or to mend
    assert sorted(datastore.list_images()) == ["bare", "held_out", "ts_example"]
    assert datastore.get_unlabeled_images() == ["bare"]
    assert First()({"strategy": "first"}, datastore)["id"] == "bare"
    found, skipped = labelled_studies(datastore, NAMES)
    assert skipped == {"held_out": "is held out for testing"}
    assert [study.name for study in found] == ["ts_example"]
    holds_what_was_downloaded(found[0].read(), read_case(shared_data / "ts_example"))
    app.press(max_epochs=1)
    assert app.drawn[0][0] == ["ts_example"]
    (volume,) = app.trainer.calls[0][0][0].volumes
    assert {"liver", "sacrum", "vertebrae_L5"} < set(volume.structures) < set(NAMES)


def holds_what_was_downloaded(converted, original):
    assert len(original.names) == 61 and len(converted.names) == 61 - 3 - 1  # S1 is part of the sacrum
    assert {name for name in original.names if not our_name(name)} == WITHOUT_COUNTERPART
    assert np.array_equal(converted.volume.array_ijk, original.volume.array_ijk)
    assert np.array_equal(converted.volume.affine_ras_mm, original.volume.affine_ras_mm)
    for name in converted.names:
        parts = [original.mask(theirs) for theirs in original.names if our_name(theirs) == name]
        assert len(parts) == 1 + (name == "sacrum")
        assert np.array_equal(converted.mask(name), np.any(parts, axis=0)), name


# ---- every strategy on it ------------------------------------------------------------------------------------------

TO_LABEL = ("s0100", "s0101", "s0102", "s0103")
WANTED = ["spleen", "liver"]
SCORED = {
    "coldstart": "the most typical scan of a group",
    "disagreement": "predictions disagree by",
    "click_effort": "expected after a click",
    "diverse_uncertain": "of the best of",
}  # and what each says of its choice


@pytest.fixture
def converted(tmp_path):
    """A miniature of TotalSegmentator's download, converted: a case to learn from, two held out, four without labels.

    With a desk whose model is a stand-in.
    """
    source = tmp_path / "download"
    totalseg(source)
    for number, name in enumerate(TO_LABEL):
        write_volume(source / name / "ct.nii.gz", scan(number)[0])
    with open(source / "meta.csv", "a", encoding="utf-8") as table:
        table.write("".join(f"{name};50;m;{part}\n" for name, part in zip(TO_LABEL, ("train", "train", "val", "test"))))
    assert convert_totalseg(source, tmp_path / "studies").refused == ()
    pool = ScanPool(tmp_path, 0)
    eyes = Eyes()
    pool.engine.segmenter = lambda: eyes
    return pool


def test_every_strategy_chooses_among_what_is_to_be_labelled(converted):
    assert converted.store.get_labeled_images() == ["s0000", "s0001", "s0002"]
    free = set(TO_LABEL[:-1])  # the last one is for testing
    names = list(strategies(converted.desk))
    assert set(SCORED) < set(names) and len(names) == 7
    for strategy in names:  # before anything is scored
        reply = converted.ask(strategy, structures=WANTED, k=9, seed=1)
        assert {sample["id"] for sample in reply["samples"]} == free, strategy
        assert reply["passed_over"] == {TO_LABEL[-1]: "is held out for testing"}
        converted.desk.leases.path.unlink()
    converted.look()
    version, found = converted.survey.scores(TO_LABEL)
    assert version == "eyes-1" and set(found) >= free
    assert all(set(WANTED[:1]) < set(found[image].quality) for image in free)  # the converted spleen is known again
    for strategy in names:
        chosen = []
        for client in ("one", "two", "three"):
            reply = converted.ask(strategy, client, structures=WANTED, seed=2)
            assert SCORED.get(strategy, "") in reply["reason"], (strategy, reply["reason"])
            chosen.append(reply["id"])
        assert set(chosen) == free, strategy  # nobody gets what another one has
        assert "id" not in converted.ask(strategy, "four", structures=WANTED)
        converted.desk.leases.path.unlink()


@pytest.mark.slow
def test_the_real_server_opens_it_and_serves_the_next_image(tmp_path, shared_data):
    studies, port = tmp_path / "studies", free_port()
    convert_totalseg(download(tmp_path / "download", shared_data), studies)
    process = start(studies, tmp_path, port)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, tmp_path / "server.log")
        client = MONAILabelClient(url, tmpdir=str(tmp_path))
        objects = client.datastore()["objects"]
        tags = {name: list(entry["labels"]) for name, entry in objects.items()}
        assert tags == {"bare": [], "held_out": ["final"], "ts_example": ["final"]}
        for strategy in ("random", "first"):
            assert client.next_sample(strategy, {})["id"] == "bare"
        query = {"label": "ts_example", "tag": "final"}
        info = requests.get(f"{url}/datastore/label/info", params=query, timeout=60).json()
        assert {entry["name"] for entry in info["label_info"]} < set(NAMES) and len(info["label_info"]) == 57
        label = requests.get(f"{url}/datastore/label", params=query, timeout=60).content
        assert label == (studies / "labels" / "final" / "ts_example.nii.gz").read_bytes()
        params = json.dumps({"foreground": [[60, 50, 60]], "background": [], "expand": False})
        reply = requests.post(
            f"{url}/infer/ctsam3d_points",
            params={"image": "ts_example", "output": "json"},
            data={"params": params},
            timeout=120,
        )
        assert reply.ok, reply.text
    finally:
        stop(process)
