"""Checkpoints: round trip, damage, and the published configuration file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctsam3d import checkpoint
from ctsam3d.model import build


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    values = {"labels": ("liver",), "version": "v1", "feedback": 2, "notes": {"a": [1]}}
    content = checkpoint.Checkpoint(build("tiny"), (-500, 800), **values)
    path = tmp_path / "w.safetensors"
    digest = checkpoint.save(path, content)
    return path, content, digest


def test_round_trip(saved):
    path, content, digest = saved
    loaded = checkpoint.load(path)
    assert (loaded.hu_window, loaded.spacing_mm, loaded.labels) == ((-500.0, 800.0), 1.5, ("liver",))
    assert (loaded.version, loaded.feedback, loaded.notes, loaded.sha256) == ("v1", 2, {"a": [1]}, digest)
    assert loaded.network.config == content.network.config and not loaded.network.training
    for name, tensor in content.network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name]), name


def test_half_precision_is_half_the_size(saved, tmp_path):
    path, content, _ = saved
    checkpoint.save(tmp_path / "h.safetensors", content, half=True)
    assert (tmp_path / "h.safetensors").stat().st_size < 0.55 * path.stat().st_size
    assert all(p.dtype == torch.float32 for p in checkpoint.load(tmp_path / "h.safetensors").network.parameters())


def test_changed_weights_are_noticed(saved):
    path, _, _ = saved
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_unreadable(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        checkpoint.load(path)


def test_foreign_and_incomplete(saved, tmp_path):
    path, _, _ = saved
    tensors = load_file(path)
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match="format"):
        checkpoint.load(tmp_path / "f.safetensors")
    del tensors["decoder.head.bias"]
    metadata = {"format": checkpoint.FORMAT, "config": json.dumps(build("tiny").config.as_dict())}
    metadata |= {"hu_window": "[-500, 800]", "spacing_mm": "1.5", "labels": "[]", "version": "v", "notes": "{}"}
    metadata["sha256"] = checkpoint.tensors_sha256(tensors)
    save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"missing \['decoder\.head\.bias'\]"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="'nothing'"):
        checkpoint.packaged_path("nothing")


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0,), (float("nan"), 1), "ab", None])
def test_bad_window(window):
    with pytest.raises(ValueError, match="hu_window"):
        checkpoint.check_hu_window(window)


@pytest.mark.parametrize(
    "text",
    [
        "__C.dataset.normalization_params = {'normalizer': 1, 'min_value': -120, 'max_value': 230.0}",
        "cfg['dataset'].normalization_params.min_value = -120\ncfg.dataset.normalization_params.max_value = 230",
        "dataset = dict(normalization_params=dict(min_value=-120, max_value=230), size=3)",
        "dataset = edict({'normalization_params': {'min_value': -120, 'max_value': 230}})",
    ],
)
def test_window_from_config(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text("import nothing_that_exists\nraise SystemExit\n" + text)
    assert checkpoint.read_config_window(path) == (-120.0, 230.0)


@pytest.mark.parametrize("text", ["x = 1", "a.normalization_params.min_value = 3", "def (", "a.min_value = 1"])
def test_window_not_in_config(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match="config_path"):
        checkpoint.read_config_window(path)


def test_published_file_must_be_weights(tmp_path):
    path = tmp_path / "params.pth"
    torch.save({"something": 1}, path)
    with pytest.raises(ValueError, match="model_state_dict"):
        checkpoint.import_published(path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.import_published(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.import_published(tmp_path / "none.pth")


def test_no_code_of_a_published_file_runs(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "params.pth"
    torch.save({"model_state_dict": {"a": Payload()}}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.import_published(path)
    assert not (tmp_path / "ran").exists()
