"""Fixtures and settings that several test modules share."""

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("ctsam3d", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("ctsam3d")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real CT cases that developers keep beside the repository; tests over them skip where they are absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real CT cases are not there: {folder}")
    return folder
