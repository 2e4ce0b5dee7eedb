"""The app as MONAI Label makes it, without a server: settings checked, models listed, nothing loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monailabel.interfaces.utils.app import app_instance

from ctsam3d.data.labels import NAMES
from ctsam3d.labelapp.conf import read_conf
from ctsam3d.labelapp.requests import RequestError

APP = Path(__file__).parents[2] / "apps" / "ctsam3d"


def make_app(studies, **conf):
    return app_instance(app_dir=str(APP), studies=str(studies), conf=conf or {"server_mode": "false"})


def test_defaults():
    conf = read_conf(None)
    assert conf.weights == "default"
    assert conf.labels == NAMES
    assert conf.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_seconds_of_expansion():
    assert read_conf({}).expand_seconds == 1.0
    assert read_conf({"expand_seconds": "0"}).expand_seconds == 0.0
    assert read_conf({"expand_seconds": "2.5"}).expand_seconds == 2.5


def test_labels_are_split_and_stripped():
    assert read_conf({"labels": "liver, my tumour ,spleen"}).labels == ("liver", "my tumour", "spleen")


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"labels": ""}, "at least one name"),
        ({"labels": "liver,,spleen"}, "no empty name"),
        ({"labels": "liver,spleen,liver"}, "'liver' twice"),
        ({"labels": "liver,background"}, "'background'"),
        ({"device": "tpu"}, "cpu or cuda, got 'tpu'"),
        ({"expand_seconds": "soon"}, "expand_seconds must be a number of seconds, 0 or more, got 'soon'"),
        ({"expand_seconds": "-1"}, "0 or more, got '-1'"),
        ({"expand_seconds": "nan"}, "0 or more, got 'nan'"),
        ({"expand_seconds": "inf"}, "0 or more, got 'inf'"),
        ({"device": "mps"}, "cpu or cuda, got 'mps'"),
        ({"precision": "half"}, "--conf precision must be one of auto, float32, got 'half'"),
    ],
)
def test_settings_that_cannot_be_used(conf, words):
    with pytest.raises(ValueError, match=words):
        read_conf(conf)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--conf weights must be .* got .*none\.safetensors"):
        read_conf({"weights": str(tmp_path / "none.safetensors")})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        read_conf({"device": "cuda"})


def test_own_labels_reach_both_info_and_values(tmp_path):
    info = make_app(tmp_path, labels="liver,tumour").info()
    assert info["labels"] == ["liver", "tumour"]
    assert info["models"]["ctsam3d"]["labels"] == ["liver", "tumour"]
    assert info["models"]["ctsam3d_points"]["labels"] == []
    assert info["models"]["ctsam3d"]["config"] == {"expand": True, "save": False}


def test_weights_that_cannot_be_read_are_told_at_the_click(tmp_path):
    """Made without looking into the weights, the app lists its models; a click says what is wrong."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"no weights")
    app = make_app(tmp_path / "studies", weights=str(weights))
    assert set(app.info()["models"]) == {"ctsam3d", "ctsam3d_points"}
    with pytest.raises(RequestError, match=r"weights .*weights\.safetensors cannot be loaded") as caught:
        app._engine.segmenter()
    assert caught.value.status == 503


@pytest.mark.slow
def test_the_server_does_not_start_with_a_wrong_setting(tmp_path):
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(tmp_path)]
    command += ["--host", "127.0.0.1", "--port", "0", "--conf", "device", "tpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert result.returncode != 0
    assert "--conf device must be cpu or cuda, got 'tpu'" in result.stdout + result.stderr
