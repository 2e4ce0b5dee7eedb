"""A browser, and a server with tokens for it."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.app.conftest import Scan, copy_scan, free_port, start, stop, wait_until_up

from ctsam3d.data.phantoms import make_phantom, write_phantom_case
from ctsam3d.labelapp.viewer_page import NIIVUE

HERE = Path(__file__).parent
TOKEN = "reader-token-0123456789"
_MINUTES = 9


@dataclass(frozen=True)
class Site:
    """A server that asks for a token, its studies folder, and its scans with organs."""

    url: str
    studies: Path
    scans: dict[str, Scan]

    @property
    def headers(self) -> dict[str, str]:
        """What a request needs to be let in."""
        return {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="session")
def chromium():
    """The path of Chromium; skips, or under `scripts/e2e` fails, where a part of what the tests need is missing."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    needed = {
        "chromium": found,
        "node": shutil.which("node"),
        "playwright-core": (HERE / "node_modules" / "playwright-core").is_dir(),
        "NiiVue": NIIVUE.is_file(),
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        (pytest.fail if os.environ.get("CTSAM3D_E2E") else pytest.skip)(f"run scripts/e2e: there is no {missing}")
    return found


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    work = tmp_path_factory.mktemp("site")
    studies = work / "studies"
    studies.mkdir()
    phantom = write_phantom_case(work / "phantom", make_phantom(1, (2.0, 2.0, 3.0), "abdomen"))
    scans = {"phantom": copy_scan(phantom, studies, "phantom")}
    example = HERE.parents[2] / "shared" / "data" / "ts_example"
    if example.is_dir():
        scans["ts_example"] = copy_scan(example, studies, "ts_example")
    (work / "tokens").write_text(f"annotator reader {TOKEN}\nadmin chief chief-token-0123456789\n")
    (work / "tokens").chmod(0o600)
    port = free_port()
    settings = ("--conf", "token_file", str(work / "tokens"), "--conf", "expand_seconds", "0.05")
    process = start(studies, work, port, *settings)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield Site(url, studies, scans)
    finally:
        stop(process)


def run_script(script: str, out: Path, given: dict) -> dict:
    """The result of a script in the browser; pictures go to `out`, or to where ``CTSAM3D_E2E`` says."""
    if os.environ.get("CTSAM3D_E2E"):
        out = Path(os.environ["CTSAM3D_E2E"], f"{Path(script).stem}_{given.get('image', 'all')}")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    (out / "input.json").write_text(json.dumps({"out": str(out), **given}))
    command = ["node", str(HERE / script), str(out / "input.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_MINUTES * 60)
    assert (out / "result.json").is_file(), done.stderr
    result = json.loads((out / "result.json").read_text())
    assert "failure" not in result, f"{result['failure']}\n{result['problems']}\nsee {out}"
    assert result["hosts"] == [given["url"].removeprefix("http://")], "the page asks others than its own server"
    return {**result, "out": out}


@pytest.fixture
def drive(chromium, site, tmp_path):
    """Runs a script with its input in the browser, where nothing may go wrong; its result."""

    def drive(script: str, **values) -> dict:
        result = run_script(script, tmp_path, {"chromium": chromium, "url": site.url, "token": TOKEN, **values})
        assert result["problems"] == []
        return result

    return drive
