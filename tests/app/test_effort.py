"""The log of efforts: what a click and a save write, what they cost by hand, and what the report makes of it."""

import json

import numpy as np
import pytest
from tests.app.labelling import INFO, scan
from tests.app.pool import Clock

from ctsam3d.data.io import write_mask, write_volume
from ctsam3d.labelapp import effort
from ctsam3d.labelapp.effort import EffortLog, pending, read_events, summaries
from ctsam3d.labelapp.effort_report import find_logs, report, saved_structures, summary
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask
from ctsam3d.labelapp.versions import Versions


def click(time, structure="liver", client="one", clicks=((1, 2, 3, True),), undone=0, session="s", seconds=0.5, **more):
    return {"event": "click", "time": time, "session": session, "image": "i", "structure": structure, "client": client,
            "version": "v1", "clicks": [list(c) for c in clicks], "undone": undone, "seconds": seconds,
            "quality": 0.8, **more}  # fmt: skip


# ---- by hand -------------------------------------------------------------------------------------------------------


def test_what_clicks_cost():
    liver, spleen = summaries(
        [
            click(100, seconds=2.0),
            click(110, clicks=[(4, 5, 6, False), (7, 8, 9, True)], version="v2", session="t"),
            click(115, "spleen", clicks=[(4, 5, 6, True)]),
            click(400, clicks=[(1, 2, 3, True)], undone=1),  # after a pause; a click that was made before
        ],
        saved=420,
    )
    # 2 (the first answer), 10, and at most 60 of the 285; 20 until the save.
    assert liver["seconds"] == 92 and spleen["seconds"] == 5
    assert (liver["clicks"], liver["positive"], liver["negative"], liver["undone"]) == (3, 2, 1, 1)
    assert (liver["version"], liver["session"], liver["quality"]) == ("v1", "s", 0.8)
    assert liver["model_seconds"] == 3.0 and spleen["clicks"] == 1


def test_clients_do_not_share_their_time():
    one, two = summaries([click(0), click(5, client="two"), click(10)], saved=12)
    assert (one["client"], one["seconds"]) == ("one", 0.5 + 10 + 2)
    assert (two["client"], two["seconds"]) == ("two", 0.5 + 7)


def test_pending_ends_with_a_save():
    saved = {"event": "saved", "image": "i", "time": 1.5}
    events = [click(1), saved, click(2), click(3, image="other")]
    assert {image: len(clicks) for image, clicks in pending(events).items()} == {"i": 1, "other": 1}
    # A click while the save was noted belongs to the next one.
    assert pending([click(1), click(2), saved]) == {"i": [click(2)]}


def test_clicks_that_nobody_saves_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(effort, "MAX_EVENTS", 3)
    log = EffortLog(tmp_path / "effort.jsonl", Clock())
    for number in range(9):
        log._append(click(number))
    assert [event["time"] for event in log._known()["i"]] == [6, 7, 8] and len(log.events()) == 9


# ---- with a model --------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    """A task with a log, and a scan with the label map of its two boxes."""
    clock, (volume, labels) = Clock(), scan(0)
    log = EffortLog(tmp_path / "effort.jsonl", clock)
    engine = ClickEngine(Versions(tmp_path / "model"), "cpu", observe=log.clicked)
    write_volume(tmp_path / "scan.nii.gz", volume)
    write_mask(tmp_path / "label.nii.gz", labels, volume)
    return ClickInferTask(engine, ("box", "bar"), ""), log, clock, labels


def middle(labels, value):
    return [int(v) for v in np.argwhere(labels == value).mean(axis=0).round()]


def ask(task, folder, params):
    return task.segment({"expand": False, "client_id": "me", **params}, str(folder / "scan.nii.gz"), "scan", "c", False)


def test_clicks_and_a_save_are_written(bench, tmp_path):
    task, log, clock, labels = bench
    box, bar = middle(labels, 1), middle(labels, 2)
    ask(task, tmp_path, {"box": [box], "background": []})
    clock.now += 10
    ask(task, tmp_path, {"box": [box], "background": []})  # nothing new
    ask(task, tmp_path, {"box": [box], "bar": [bar], "background": [[0, 0, 0]]})
    first, box_again, of_bar = log.events()
    assert (first["structure"], first["clicks"], first["undone"]) == ("box", [[*box, True]], 0)
    assert first["client"] == "me" and first["image"] == "scan" and first["version"].startswith("tiny")
    assert 0 < first["quality"] <= 1 and first["seconds"] > 0
    assert box_again["clicks"] == [[0, 0, 0, False]]  # the click on the bar is no click of the box
    assert of_bar["clicks"] == [[*bar, True], [0, 0, 0, False]]
    clock.now += 5
    event = log.saved("scan", str(tmp_path / "label.nii.gz"), INFO, (), "reader")
    rows = {row["structure"]: row for row in event["structures"]}
    assert rows["box"]["clicks"] == 2 and rows["box"]["seconds"] == pytest.approx(10 + first["seconds"], abs=0.02)
    assert rows["bar"]["seconds"] == 5  # the two came in one request
    for value, name in ((1, "box"), (2, "bar")):
        held = next(own for key, own in task._engine._sessions._held.items() if key.structure == name)
        mask = held.session.mask() > 0
        by_hand = 2 * np.sum(mask & (labels == value)) / (mask.sum() + np.sum(labels == value))
        assert rows[name]["dsc"] == pytest.approx(by_hand, abs=1e-4) and 0 <= rows[name]["nsd"] <= 1
    assert log.saved("scan", str(tmp_path / "label.nii.gz"), INFO, ()) is None  # nobody has clicked since


def test_what_was_taken_back_and_a_restart(bench, tmp_path):
    task, log, _, labels = bench
    box = middle(labels, 1)
    ask(task, tmp_path, {"box": [box, [box[0] + 2, *box[1:]]]})
    ask(task, tmp_path, {"box": [box]})
    assert [(len(event["clicks"]), event["undone"]) for event in log.events()] == [(2, 0), (0, 1)]
    with open(log.path, "ab") as file:
        file.write(b'{"event": "click", "torn')
    again = EffortLog(log.path, Clock())
    event = again.saved("scan", str(tmp_path / "label.nii.gz"), INFO, ())
    (row,) = event["structures"]
    assert (row["clicks"], row["undone"], row["dsc"]) == (2, 1, None)  # the session is gone, the clicks are not
    assert [event["event"] for event in read_events(log.path)] == ["click", "click", "saved"]


def test_a_label_on_another_grid_is_noted_without_scores(bench, tmp_path):
    task, log, _, labels = bench
    ask(task, tmp_path, {"box": [middle(labels, 1)]})
    (row,) = log.saved("scan", str(tmp_path / "none.nii.gz"), INFO, ())["structures"]
    assert row["clicks"] == 1 and row["dsc"] is None


def test_a_structure_that_the_label_does_not_name_is_not_compared(bench, tmp_path):
    task, log, _, labels = bench
    ask(task, tmp_path, {"box": [middle(labels, 1)], "bar": [middle(labels, 2)]})
    rows = log.saved("scan", str(tmp_path / "label.nii.gz"), INFO[:1], ())["structures"]
    assert {row["structure"]: row["dsc"] is None for row in rows} == {"box": False, "bar": True}


def test_replies_say_how_sure_the_model_is(bench, tmp_path):
    task, _, _, labels = bench
    _, reply = ask(task, tmp_path, {"box": [middle(labels, 1)]})
    assert "confidence" not in reply
    _, reply = ask(task, tmp_path, {"box": [middle(labels, 1)], "suggest": True})
    found = reply["confidence"]["box"]
    assert 0 < found["quality"] <= 1 and 0 <= found["unsure"] <= 1
    least = found["least_sure"]
    assert all(0 <= v < n for v, n in zip(least["ijk"], labels.shape)) and 0 <= least["probability"] <= 1
    assert least["click"] == ("negative" if least["probability"] > 0.5 else "positive")
    assert json.dumps(reply["confidence"])


# ---- the report ----------------------------------------------------------------------------------------------------


def saved(time, version, clicks, seconds, dsc):
    row = {"structure": "liver", "client": "me", "version": version, "clicks": clicks, "negative": 1, "undone": 0,
           "seconds": seconds, "dsc": dsc, "nsd": None}  # fmt: skip
    return {"event": "saved", "time": time, "image": f"i{time}", "user": "", "structures": [row]}


def test_report_by_version(tmp_path):
    events = [saved(1, "v1", 6, 60, 0.8), saved(2, "v1", 4, 30, 0.9), saved(3, "v2", 2, 12, None)]
    one, two = summary(saved_structures(events), ["version"])
    assert (one["saved"], one["clicks"], one["minutes"], one["dsc"]) == (2, 5.0, 0.75, 0.85)
    assert (two["saved"], two["clicks"], two["minutes"], two["dsc"]) == (1, 2.0, 0.2, "")
    log = tmp_path / "model" / "active" / "x" / "effort.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert find_logs(tmp_path) == [log]
    text = report([log])
    assert "3 structures of 3 scans, saved from 1970-01-01 to 1970-01-01" in text and "| v2 |" in text
    assert "| me | 3 |" in text.split("By annotator")[1]
    log.write_text(json.dumps(click(1)) + "\n")
    with pytest.raises(ValueError, match="it holds 1 requests with clicks and no such save"):
        report([log])
    with pytest.raises(ValueError, match="there is no log in"):
        find_logs(tmp_path / "model")
