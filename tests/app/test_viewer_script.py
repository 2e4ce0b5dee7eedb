"""The parts of the browser page's script that need no browser, tested in their own language where node is there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ctsam3d.labelapp.viewer_page import FOLDER

TESTS = Path(__file__).with_name("viewer.test.mjs")


def test_the_script():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not there")
    done = subprocess.run(
        [node, "--test", str(TESTS)],
        env={**os.environ, "VIEWER": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
