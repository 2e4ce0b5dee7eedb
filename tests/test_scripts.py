"""The command lines: one real process each where it counts, the rest through their main()."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.data.io import write_volume
from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.labelapp.team_loop import team_loop
from ctsam3d.model import build

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def refused(name, capsys, *arguments) -> str:
    """The message of a call that is refused: exit status 2 and one line that begins with `error:`."""
    with pytest.raises(SystemExit) as stopped:
        script(name).main([str(a) for a in arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: ") and message.count("\n") == 1 and message.endswith("\n")
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A phantom's scan and an untrained network."""
    folder = tmp_path_factory.mktemp("scripts")
    write_volume(folder / "ct.nii.gz", make_phantom(0, (4, 4, 4), "abdomen").volume)
    torch.manual_seed(0)
    checkpoint.save(folder / "w.safetensors", checkpoint.Checkpoint(build("tiny").eval(), (-500.0, 800.0)))
    return folder


def test_segment_writes_mask_and_picture(folder, tmp_path):
    scan = nib.load(folder / "ct.nii.gz")
    i, j, k = (n // 2 for n in scan.shape)
    clicks = ["--click", f"{i},{j},{k}", "--click", f"{i + 2}, {j},{k}", "--not", f"{i},{j + 6},{k}"]
    files = ["--out", tmp_path / "m.nii.gz", "--png", tmp_path / "o.png", "--weights", folder / "w.safetensors"]
    done = run("segment", folder / "ct.nii.gz", *clicks, *files)
    assert done.returncode == 0, done.stderr
    mask = nib.load(tmp_path / "m.nii.gz")
    array = np.asanyarray(mask.dataobj)
    assert array.shape == scan.shape and array.dtype == np.uint8 and set(np.unique(array)) <= {0, 1}
    assert np.allclose(mask.affine, scan.affine)
    assert (array[i, j, k], array[i + 2, j, k], array[i, j + 6, k]) == (1, 1, 0)
    voxels = int(array.sum())
    assert f"{voxels} voxels, {voxels * 0.064:.1f} ml, 3 clicks in " in done.stdout
    assert "m.nii.gz" in done.stdout and "o.png" in done.stdout
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_segment_answers_a_bad_click_without_a_traceback(folder, tmp_path):
    done = run("segment", folder / "ct.nii.gz", "--click", "900,3,4", "--out", tmp_path / "m.nii.gz",
               "--weights", folder / "w.safetensors")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: positive click (900, 3, 4) is outside the volume (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "m.nii.gz").exists()


@pytest.mark.parametrize(
    "text", ["1,2", "1,2,3,4", "1;2;3", "a,b,c", "1.5,2,3", "nan,1,2", "", "1 2 3", "1,,3", "-1,2"]
)
@pytest.mark.parametrize("argument", ["--click", "--not"])
def test_segment_names_a_click_that_is_no_voxel(folder, capsys, argument, text):
    message = refused("segment", capsys, folder / "ct.nii.gz", "--click", "1,2,3", argument, text, "--out", "m.nii.gz")
    assert argument in message and "three whole numbers i,j,k" in message and repr(text) in message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--click", "-1,2,3"], ["click (-1, 2, 3) is outside the volume"]),
        (["--click=1,2,3", "--not", "1,2,3"], ["click (1, 2, 3) must have one sign"]),
        (["--click", "1,", "2,", "3"], ["--click", "'1,'"]),
        (["--click"], ["--click"]),
        ([], ["--click"]),
        (["--click", "1,2,3", "--weights", "no_such"], ["weights", "'no_such'"]),
        (["--click", "1,2,3", "--weights", "no/such.safetensors"], ["weights", "no/such.safetensors"]),
        (["--click", "1,2,3", "--device", "quantum"], ["device", "'quantum'"]),
    ],
)
def test_segment_refuses(folder, capsys, tmp_path, arguments, parts):
    weights = [] if "--weights" in arguments else ["--weights", folder / "w.safetensors"]
    message = refused("segment", capsys, folder / "ct.nii.gz", "--out", tmp_path / "m.nii.gz", *weights, *arguments)
    assert all(part in message for part in parts), message
    assert not (tmp_path / "m.nii.gz").exists()


def test_segment_refuses_files_that_it_cannot_read_or_write(folder, capsys, tmp_path):
    ct, click = folder / "ct.nii.gz", ["--click", "1,2,3"]
    assert "nowhere.nii.gz" in refused("segment", capsys, tmp_path / "nowhere.nii.gz", *click, "--out", "m.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    assert "broken.nii.gz" in refused("segment", capsys, tmp_path / "broken.nii.gz", *click, "--out", "m.nii.gz")
    assert "--out and --png" in refused("segment", capsys, ct, *click)
    assert "--out: must end with" in refused("segment", capsys, ct, *click, "--out", "mask.jpg")
    assert "--png: must end with .png" in refused("segment", capsys, ct, *click, "--png", "picture.jpg")


def test_evaluate_writes_its_report_and_names_what_is_wrong(folder, capsys, tmp_path):
    write_phantom_case(tmp_path / "data" / "p", make_phantom(0, (6, 6, 6), "abdomen"))
    common = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--weights", folder / "w.safetensors"]
    script("evaluate").main([*map(str, common), "--clicks", "2,1", "--seeds", "1", "--structures", "spleen"])
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 3
    report = (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()  # the progress bar
    assert "--clicks 2,1 --seeds 1 --structures spleen`" in report and "scripts/evaluate.py" in report
    assert "'q'" in refused("evaluate", capsys, *common, "--cases", "q")
    assert "seeds" in refused("evaluate", capsys, *common, "--seeds", "0")
    with pytest.raises(SystemExit):
        script("evaluate").main([*map(str, common), "--clicks", "1,a"])
    assert "--clicks: must be whole numbers separated by commas, got '1,a'" in capsys.readouterr().err


def test_evaluate_proposals_names_what_is_wrong(folder, capsys, tmp_path):
    write_phantom_case(tmp_path / "data" / "p", make_phantom(0, (6, 6, 6), "abdomen"))
    common = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--weights", folder / "w.safetensors"]
    script("evaluate_proposals").main([*map(str, common), "--structures", "spleen"])
    assert "evaluate_proposals.py" in (tmp_path / "out" / "proposals.md").read_text()
    capsys.readouterr()  # the progress bar
    assert "'q'" in refused("evaluate_proposals", capsys, *common, "--cases", "q")


def test_train_names_what_is_wrong(capsys, tmp_path):
    common = ["--data", tmp_path, "--out", tmp_path / "out", "--preset", "tiny"]
    assert "must be a case or hold cases" in refused("train", capsys, *common)
    assert "epochs must be at least 1, got 0" in refused("train", capsys, *common, "--epochs", "0")


def test_team_loop_takes_its_sets_apart(monkeypatch, tmp_path):
    given, module = {}, script("team_loop")
    monkeypatch.setattr(module, "team_loop", lambda **values: given.update(values) or "report.md")
    sets = [f"here={tmp_path}", f"there={tmp_path}/x:a,b"]
    module.main(["--data", str(tmp_path), "--labelled", "c,d", "--out", str(tmp_path / "out"), "--measure", *sets])
    assert given["labelled"] == ["c", "d"] and given["options"] == {}
    assert given["sets"] == {"here": (tmp_path, None), "there": (tmp_path / "x", ["a", "b"])}
    inspect.signature(team_loop).bind(**given)


def test_import_weights_says_what_it_took(folder, capsys, tmp_path, monkeypatch):
    asked = []

    def imported(path, hu_window=None, config_path=None):
        asked.append((path, hu_window, config_path))
        notes = {"hu_window": "given by the caller", "left_out": ["mask_decoder.iou.weight"]}
        return checkpoint.Checkpoint(build("tiny"), hu_window, version="published-1", notes=notes)

    monkeypatch.setattr(checkpoint, "import_published", imported)
    out = tmp_path / "w.safetensors"
    script("import_weights").main(["params.pth", "--hu-window", "-125,225", "--out", str(out)])
    assert asked == [(Path("params.pth"), (-125.0, 225.0), None)]
    loaded, printed = checkpoint.load(out), capsys.readouterr().out
    assert loaded.hu_window == (-125.0, 225.0)
    for part in ("published-1", loaded.sha256, "-125 to 225, given by the caller", "mask_decoder.iou.weight"):
        assert part in printed


def test_combine_weights_puts_packaged_ones_beside_each_other(capsys, tmp_path):
    out = tmp_path / "both.safetensors"
    script("combine_weights").main(["tiny-next", "default", "--out", str(out), "--version", "both"])
    assert str(out) in capsys.readouterr().out
    loaded = checkpoint.load(out)
    assert loaded.version == "both" and len(loaded.network.config.beside) == 1 and loaded.feedback == 2
    assert "two or more, got 1" in refused("combine_weights", capsys, "default", "--out", out)
    assert "'nowhere'" in refused("combine_weights", capsys, "default", "nowhere", "--out", out)


def test_import_weights_names_what_is_wrong(capsys, tmp_path):
    out = ["--out", tmp_path / "w.safetensors"]
    assert "nowhere.pth" in refused("import_weights", capsys, tmp_path / "nowhere.pth", *out)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    message = refused("import_weights", capsys, tmp_path / "bad.pth", "--hu-window", "1,2", *out)
    assert "bad.pth" in message
    assert "hu_window" in refused("import_weights", capsys, tmp_path / "bad.pth", "--hu-window", "-1,-5", *out)
    assert "hu_window" in refused("import_weights", capsys, tmp_path / "bad.pth", "--hu-window", "wide", *out)
    assert ".safetensors" in refused("import_weights", capsys, tmp_path / "bad.pth", "--out", tmp_path / "w.pt")
    assert not (tmp_path / "w.safetensors").exists()
