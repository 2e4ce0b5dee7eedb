"""Versions of the weights on disk, the engine that serves them, and the script that goes back."""

import dataclasses
import gc
import importlib.util
import multiprocessing
import os
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from ctsam3d import checkpoint
from ctsam3d.checkpoint import Checkpoint
from ctsam3d.data.io import write_volume
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask
from ctsam3d.labelapp.requests import RequestError
from ctsam3d.labelapp.versions import BASE, SwitchedError, Versions, describe, read_version
from ctsam3d.model import build
from ctsam3d.volume import Volume

ROLLBACK = Path(__file__).parents[2] / "scripts" / "rollback.py"


def weights(seed, folder):
    """Random weights, as they come back from disk."""
    torch.manual_seed(seed)
    path = folder / f"seed{seed}.safetensors"
    checkpoint.save(path, Checkpoint(build("tiny").eval(), (-500.0, 800.0), version=f"seed{seed}"))
    return checkpoint.load(path)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three different weights, and the folder of their files."""
    folder = tmp_path_factory.mktemp("weights")
    return [weights(seed, folder) for seed in range(3)], folder


def publish(versions, trained, parent, **notes):
    name = versions.add(trained, parent, notes)
    versions.publish(name, versions.current())
    return name


@pytest.fixture
def trained(seeds, tmp_path):
    """A base of its own, and two versions: the second was trained from the first."""
    (base, one, two), folder = seeds
    versions = Versions(tmp_path / "model", str(folder / "seed0.safetensors"))
    first = publish(versions, one, base, gate="better")
    second = publish(versions, two, checkpoint.load(versions.path(first)), gate="again")
    return versions, first, second


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_nothing_published_serves_the_base(tmp_path, seeds):
    default = Versions(tmp_path / "model")
    assert (default.current(), default.list()) == (BASE, [])
    assert default.served_path() == checkpoint.packaged_path("default")
    path = seeds[1] / "seed0.safetensors"
    assert Versions(tmp_path / "model", str(path)).served_path() == path
    assert not (tmp_path / "model").exists()


def test_versions_carry_where_they_come_from(trained, seeds):
    versions, first, second = trained
    base, one, two = seeds[0]
    assert first == f"v1-{one.sha256[:8]}" and second == f"v2-{two.sha256[:8]}"
    assert [version.name for version in versions.list()] == [first, second]
    assert (versions.folder / "current").read_text() == f"{second}\n"
    assert versions.served_path() == versions.path(second)
    loaded = checkpoint.load(versions.path(second))
    assert (loaded.version, loaded.sha256) == (second, two.sha256)
    assert loaded.notes == {"parent": first, "lineage": [one.sha256, base.sha256], "gate": "again"}
    assert read_version(versions.path(first)).lineage == (base.sha256,)


def test_the_same_weights_again_are_the_same_version(trained, seeds):
    versions, first, _ = trained
    again = publish(versions, seeds[0][1], seeds[0][0], gate="once more")
    assert again == first == versions.current()
    assert read_version(versions.path(first)).notes["gate"] == "once more"
    assert len(versions.list()) == 2


def test_going_back(trained):
    versions, first, second = trained
    assert versions.roll_back() == first == versions.current()
    assert versions.roll_back() == BASE == versions.current()
    assert versions.served_path() == versions.base_path
    with pytest.raises(ValueError, match="it is the base already"):
        versions.roll_back()
    assert versions.roll_back(second) == second == versions.current()
    assert versions.roll_back("base") == BASE
    assert [version.name for version in versions.list()] == [first, second]  # nothing is lost


@pytest.mark.parametrize("to", ["v9-00000000", "../seed0", "", ".hidden", "a/b"])
def test_going_back_to_what_is_not_there_changes_nothing(trained, to):
    versions, _, second = trained
    with pytest.raises((FileNotFoundError, ValueError), match="version must be"):
        versions.roll_back(to)
    assert versions.current() == second


def test_going_back_to_a_damaged_version_changes_nothing(trained):
    versions, first, second = trained
    content = bytearray(versions.path(first).read_bytes())
    content[-100] ^= 1
    versions.path(first).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        versions.roll_back()
    versions.path(first).unlink()
    with pytest.raises(ValueError, match=r"parent 'v1-\w+' of v2-\w+ must be in .* it is neither"):
        versions.roll_back()
    assert versions.current() == second


def test_a_publication_that_comes_too_late(trained, seeds):
    versions, first, second = trained
    versions.roll_back(first)
    late = versions.add(seeds[0][0], seeds[0][2], {})
    with pytest.raises(SwitchedError, match=f"switched from {second} to {first} during the training"):
        versions.publish(late, second)
    assert versions.current() == first and len(versions.list()) == 3


def test_of_the_refused_versions_the_last_one_is_kept(trained, tmp_path):
    versions, first, second = trained
    parent = checkpoint.load(versions.path(first))

    def refuse(seed):
        return versions.add(weights(seed, tmp_path), parent, {"accepted": False})

    def names():
        return [version.name for version in versions.list()]

    refused = [refuse(seed) for seed in (3, 4, 5)]
    assert [name.split("-")[0] for name in refused] == ["v3", "v4", "v5"]
    assert names() == [first, second, refused[2]]
    versions.roll_back(refused[2])  # somebody wants it all the same
    sixth = refuse(6)
    assert names() == [first, second, refused[2], sixth]
    seventh = publish(versions, weights(7, tmp_path), checkpoint.load(versions.path(sixth)), accepted=True)
    last = refuse(8)
    assert names() == [first, second, sixth, seventh, last]  # the parent of what is served stays


def test_a_publication_that_fails_leaves_the_old_version(trained, seeds, monkeypatch):
    versions, _, second = trained
    before = sorted(versions.folder.rglob("*"))
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            versions.add(dataclasses.replace(seeds[0][0], sha256="f" * 64), seeds[0][2], {})
    assert versions.current() == second
    assert sorted(versions.folder.rglob("*")) == before


def test_weights_of_ones_own_give_way_only_to_their_descendants(trained, seeds, caplog):
    versions, first, second = trained
    folder = seeds[1]
    for weights in ("seed0", "seed1", "seed2"):  # the base, the tensors of `first`, and those of `second` itself
        assert Versions(versions.folder, str(folder / f"{weights}.safetensors")).served_path() == versions.path(second)
    versions.roll_back(first)
    assert not caplog.records
    other = folder / "seed2.safetensors"
    assert Versions(versions.folder, str(other)).served_path() == other
    assert "does not descend from" in caplog.text
    assert Versions(versions.folder).served_path() == versions.path(first)  # with default ones, whatever is current


def test_half_written_files_are_cleared_and_never_listed(trained):
    versions, _, second = trained
    left = [versions.folder / ".writing-x-v7-00000000.safetensors", versions.folder / "run" / ".writing-y-state.pt"]
    left[1].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    assert len(versions.list()) == 2
    versions.clear_temporary()
    assert not any(path.exists() for path in left) and versions.current() == second


def test_list_in_words(trained):
    versions, first, second = trained
    (versions.folder / "mine.safetensors").write_bytes(b"broken")
    text = describe(versions).splitlines()
    assert text[0].startswith("  base: ") and text[1].startswith("  mine: weights ") and "cannot be read" in text[1]
    assert text[2:4] == [f"  {first}: from seed0, ?, 0 studies in all", "    better"]
    assert text[4].startswith(f"* {second}: from {first}")
    (versions.folder / "current").write_text("../x")
    assert describe(versions).splitlines()[4].startswith(f"  {second}")


def publish_for_ever(folder, files):
    """A process that switches to and fro."""
    torch.set_num_threads(1)  # a forked process has none of the parent's threads, and would wait for them
    versions = Versions(folder)
    parent = checkpoint.load(files[0])
    while True:
        for file in files:
            publish(versions, checkpoint.load(file), parent)


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_whole_version(tmp_path, seeds):
    files = [seeds[1] / f"seed{number}.safetensors" for number in range(2)]
    versions, context = Versions(tmp_path / "model"), multiprocessing.get_context("fork")
    rng, served = np.random.default_rng(0), set()
    for _ in range(12):
        process = context.Process(target=publish_for_ever, args=(versions.folder, files))
        process.start()
        end = time.monotonic() + rng.uniform(0.1, 0.6)
        while time.monotonic() < end:
            served.add(checkpoint.load(versions.served_path()).version)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert checkpoint.load(versions.served_path()).version == versions.current() or versions.current() == BASE
    versions.clear_temporary()
    assert {path.name for path in versions.folder.iterdir()} <= {
        "current", ".switch.lock", *(f"{version.name}.safetensors" for version in versions.list())
    }  # fmt: skip
    assert len(served) >= 2


# ---- the engine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "noise.nii.gz"
    noise = np.random.default_rng(0).normal(0, 100, (40, 36, 20)).astype(np.int16)
    write_volume(path, Volume(noise, np.diag([2.0, 2.0, 4.0, 1.0])))
    return str(path)


def version_of(engine, scan, client, *names):
    clicks = {name: [[20, 18, 5 + n]] for n, name in enumerate(names or ["spleen"])}
    params = {**clicks, "result_write_to_file": False}
    return ClickInferTask(engine, ("spleen", "liver"), "").segment(params, scan, "noise", client)[1]["version"]


def test_new_sessions_take_the_new_version_and_running_ones_keep_theirs(trained, scan):
    versions, first, second = trained
    versions.roll_back(first)
    engine = ClickEngine(versions, "cpu")
    assert version_of(engine, scan, "early") == first
    versions.roll_back(second)
    assert version_of(engine, scan, "early") == first
    assert version_of(engine, scan, "late") == second
    assert version_of(engine, scan, "early", "spleen", "liver") == f"{first}, {second}"  # each says its own
    versions.roll_back("base")
    assert [version_of(engine, scan, client) for client in ("early", "late", "new")] == [first, second, "seed0"]


def test_weights_are_freed_with_their_last_session(trained, scan):
    versions, first, second = trained
    versions.roll_back(first)
    engine = ClickEngine(versions, "cpu")
    assert version_of(engine, scan, "early") == first
    network = weakref.ref(engine.segmenter().network)
    versions.roll_back(second)
    assert version_of(engine, scan, "late") == second
    gc.collect()
    assert network() is not None  # the early session may go on
    engine._sessions._held.clear()
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("name", ["v7-00000000", "broken", "../../etc/passwd", "", "x" * 5000])
def test_a_broken_current_stops_no_click(trained, scan, name, caplog):
    versions, _, second = trained
    (versions.folder / "broken.safetensors").write_bytes(b"no weights")
    engine = ClickEngine(versions, "cpu")
    assert version_of(engine, scan, "before") == second
    (versions.folder / "current").write_text(name)
    assert version_of(engine, scan, "new") == second
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert version_of(engine, scan, "another") == second
    assert [record for record in caplog.records if record.levelname == "ERROR"] == errors and len(errors) == 1
    assert f"{second} stay in use" in errors[0].getMessage()
    assert version_of(ClickEngine(versions, "cpu"), scan, "after a restart") == "seed0"
    versions.roll_back("base")
    assert version_of(engine, scan, "mended") == "seed0"


def test_a_folder_in_the_place_of_current(trained, scan):
    versions, _, second = trained
    engine = ClickEngine(versions, "cpu")
    assert version_of(engine, scan, "before") == second
    (versions.folder / "current").unlink()
    (versions.folder / "current").mkdir()
    assert version_of(engine, scan, "new") == second


def test_neither_current_nor_base(tmp_path, seeds, scan):
    path = tmp_path / "gone.safetensors"
    engine = ClickEngine(Versions(tmp_path, str(path)), "cpu")
    with pytest.raises(RequestError, match=r"weights .*gone\.safetensors cannot be loaded") as refused:
        version_of(engine, scan, "a")
    assert refused.value.status == 503
    path.write_bytes((seeds[1] / "seed1.safetensors").read_bytes())
    assert version_of(engine, scan, "a") == "seed1"  # it is there now


# ---- the script ----------------------------------------------------------------------------------------------------


def rollback(capsys, *arguments):
    spec = importlib.util.spec_from_file_location("script_rollback", ROLLBACK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        assert stopped.code == 2
    return capsys.readouterr()


def test_the_script(tmp_path, seeds, capsys):
    (base, one, _), folder = seeds
    versions = Versions(tmp_path / "app" / "model" / "ctsam3d", str(folder / "seed0.safetensors"))
    name = publish(versions, one, base, gate="better by far")
    common = ["--app", tmp_path / "app", "--weights", folder / "seed0.safetensors"]
    assert f"* {name}: from seed0" in rollback(capsys, *common, "--list").out
    assert rollback(capsys, *common).out == "current: base\n"
    assert rollback(capsys, *common, "--to", name).out == f"current: {name}\n"
    wrong = rollback(capsys, *common, "--to", "v3").err
    assert wrong == f"error: version must be one of base, {name}, got 'v3'\n"
    assert "--app must be the folder of the app" in rollback(capsys, "--app", tmp_path / "none").err
    assert not (tmp_path / "none").exists()
