"""Networks beside each other."""

import dataclasses

import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint, combined
from ctsam3d.model import build
from ctsam3d.model.build import PRESETS
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.segmenter import Segmenter

SIZE = (64, 64, 64)
PLAIN = dataclasses.replace(PRESETS["tiny"], appearance=0, detail=0)


def members(**options):
    torch.manual_seed(0)
    networks = build("tiny").eval(), build(PLAIN).eval()
    own = [Checkpoint(network, (-500.0, 800.0), feedback=1, **options) for network in networks]
    return [dataclasses.replace(c, version=name, notes={"data": [name]}) for c, name in zip(own, "ab")]


def test_the_logits_are_the_mean_of_the_members():
    parts = members()
    network = combined(parts, "both").network
    image, prompts = torch.rand(1, 1, *SIZE), prompt_maps([(30, 30, 30)], [(9, 50, 9)], None, SIZE)[None]
    with torch.no_grad():
        expected = torch.stack([own.network(image, prompts) for own in parts]).mean(0)
        torch.testing.assert_close(network(image, prompts), expected)
        offset = torch.tensor([[0, 0, 32]])
        ours, first = (n.propose(image, image > 0.5, image, offset) for n in (network, parts[0].network))
    assert torch.equal(ours, first)
    assert [f.shape[1] for f in network.encode(image)] == [144 + 16, 32, 32, 64]


def test_they_travel_in_one_file(tmp_path):
    checkpoint.save(tmp_path / "both.safetensors", combined(members(), "both"))
    loaded = checkpoint.load(tmp_path / "both.safetensors")
    assert loaded.network.config == dataclasses.replace(PRESETS["tiny"], beside=(PLAIN,))
    assert (loaded.version, loaded.notes["data"]) == ("both", ["a", "b"])
    assert [own["version"] for own in loaded.notes["members"]] == ["a", "b"]
    Segmenter(loaded).warm_up()


@pytest.mark.parametrize(("name", "value"), [("hu_window", (0.0, 1.0)), ("feedback", 2)])
def test_members_must_see_the_same(name, value):
    first, second = members()
    with pytest.raises(ValueError, match=f"checkpoints must have one {name}, got"):
        combined([first, dataclasses.replace(second, **{name: value})], "both")


def test_one_is_not_enough_and_none_has_others_beside_it():
    first, second = members()
    with pytest.raises(ValueError, match="checkpoints must be two or more, got 1"):
        combined([first], "one")
    with pytest.raises(ValueError, match="beside must be of networks that have none beside them"):
        combined([first, combined([first, second], "both")], "three")
