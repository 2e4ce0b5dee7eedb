"""The simulated annotators of scripts/label_in_turn.py: how they click, and that a scan is given out once."""

import copy
from types import MappingProxyType

import numpy as np
import pytest
from tests.app.labelling import scan

from ctsam3d.data.io import Case, write_mask
from ctsam3d.labelapp import label_in_turn
from ctsam3d.labelapp.label_in_turn import MAX_CLICKS, annotate


class Client:
    """Answers each request with the next mask."""

    def __init__(self, folder, case, *masks):
        self.folder, self.case, self.masks, self.asked, self.saved = folder, case, list(masks), [], []

    def infer(self, model, image, params):
        self.asked.append(copy.deepcopy(params))
        mask, path = self.masks[min(len(self.asked), len(self.masks)) - 1], self.folder / "reply.nii.gz"
        write_mask(path, mask, self.case.volume)
        return str(path), {}

    def next_sample(self, strategy, params):
        return {"id": self.case.name}

    def save_label(self, image, path, tag, params):
        self.saved.append((image, tag, params["label_info"]))


@pytest.fixture
def case():
    volume, labels = scan(0)
    return Case("a", volume, MappingProxyType({"box": lambda: labels == 1}))


def test_an_annotator_clicks_what_is_wrong_until_the_mask_is_good(case, tmp_path):
    target = case.mask("box")
    grown = target.copy()
    grown[-4:] = True
    client = Client(tmp_path, case, np.zeros_like(target), grown, target)
    assert annotate(client, case, "box", tmp_path) == 3
    first, second, third = ((len(asked["foreground"]), len(asked["background"])) for asked in client.asked)
    assert (first, second, third) == ((1, 0), (2, 0), (2, 1))
    assert all(target[tuple(click)] for click in client.asked[-1]["foreground"])
    assert not target[tuple(client.asked[-1]["background"][0])]
    assert client.asked[0]["label"] == "box" and not (tmp_path / "reply.nii.gz").exists()


def test_an_annotator_gives_up(case, tmp_path):
    empty = np.zeros_like(case.mask("box"))
    assert annotate(Client(tmp_path, case, empty), case, "box", tmp_path) <= MAX_CLICKS


def test_scans_are_submitted_and_given_out_once(case, tmp_path):
    client, left = Client(tmp_path, case, case.mask("box")), {"a": case}
    label_in_turn._label([client], left, 1, "first", ["box"], tmp_path)
    assert client.saved == [("a", "final", [{"name": "box", "idx": 1}])] and not left
    with pytest.raises(RuntimeError, match="a scan must be given out once, 'a' was"):
        label_in_turn._label([client], left, 1, "first", ["box"], tmp_path)


def test_efforts_before_and_after_the_training():
    def saved(time, clicks, version):
        row = {"structure": "liver", "client": "anna", "version": version, "clicks": clicks, "negative": 1, "undone": 0,
               "seconds": 60.0, "dsc": 0.9, "nsd": 0.8}  # fmt: skip
        return {"event": "saved", "time": time, "image": f"i{time}", "user": "", "structures": [row]}

    events = [saved(10, 6, "v1"), saved(20, 4, "v1"), saved(40, 3, "v2"), {"event": "click", "time": 5}]
    lines = label_in_turn.before_and_after(events, 30).splitlines()
    assert [line.split("|")[1:6] for line in lines[-2:]] == [
        [" liver ", " before ", " v1 ", " 2 ", " 5.000 "],
        [" liver ", " after ", " v2 ", " 1 ", " 3.000 "],
    ]
