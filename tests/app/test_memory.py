"""The heap is trimmed once some time after work, and again after more work."""

import sys
import threading
import time

import numpy as np
import psutil
import pytest

from ctsam3d.labelapp.memory import Trimmer, malloc_trim


def test_one_trim_for_all_work_of_a_while():
    trimmed = threading.Semaphore(0)
    trimmer = Trimmer(0.05, trimmed.release)
    for _ in range(5):
        trimmer.worked()
    assert trimmed.acquire(timeout=10) and not trimmed.acquire(timeout=0.3)
    trimmer.worked()
    assert trimmed.acquire(timeout=10)


def test_nothing_is_trimmed_without_work():
    trimmed = threading.Semaphore(0)
    Trimmer(0.01, trimmed.release)
    time.sleep(0.1)
    assert not trimmed.acquire(blocking=False)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_holes_between_what_is_kept_go_back():
    rss = psutil.Process().memory_info
    blocks = [np.ones(12_500) for _ in range(2_000)]  # 100 kB each, which are no mappings of their own
    full = rss().rss
    kept = blocks[::20]
    del blocks
    malloc_trim()
    assert len(kept) == 100 and full - rss().rss > 100e6
