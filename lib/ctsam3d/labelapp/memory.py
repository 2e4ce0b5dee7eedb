"""Memory that nothing holds any more goes back to the system."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SECONDS = 20.0


def malloc_trim() -> None:
    """Has the C library give back all free pages; glibc's own, nothing where there is another one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))  # without Python's lock; some tenths of a second


class Trimmer:
    """Trims the heap some seconds after work.

    Sessions live for hours among the short-lived arrays of clicks. What those leave is free, but lies in holes between
    what is kept, and glibc gives back the end of its heap alone: half a gigabyte in fifty clicks.

    Args:
        seconds: from the first work after a trim to the next one.
        trim: what to call.
    """

    def __init__(self, seconds: float = SECONDS, trim: Callable[[], None] = malloc_trim):
        self._seconds, self._trim = seconds, trim
        self._lock = threading.Lock()
        self._waiting = False

    def worked(self) -> None:
        """There was work; another thread may say so at once."""
        with self._lock:
            if self._waiting:
                return
            self._waiting = True
        timer = threading.Timer(self._seconds, self._run)
        timer.daemon = True
        timer.name = "ctsam3d-memory"
        timer.start()

    def _run(self) -> None:
        with self._lock:
            self._waiting = False
        start = time.monotonic()
        self._trim()
        logger.debug("the heap was trimmed in %.3f s", time.monotonic() - start)
