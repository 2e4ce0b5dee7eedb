"""Expansions that a request had no time for go on between the clicks."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict

from ctsam3d.expansion import Expansion
from ctsam3d.labelapp.sessions import HeldSession, SessionKey, SessionStore
from ctsam3d.labelapp.turns import Turns

logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.2  # about how long a click may have to wait for the background


def told(expansion: Expansion) -> dict[str, int | str]:
    """What clients and the log are told of an expansion."""
    return {name: getattr(expansion, name) for name in ("proposed", "segmented", "rejected", "ended")}


class BackgroundExpansion:
    """Gives the sessions that are still expanding a slice of time each, in rotation, while no click waits.

    One thread, there only as long as there is work. A slice holds the network's turn and then the session: the turn
    first, since a session that was held while the turn is waited for would hold up its own clicks. Requests take the
    two the other way round; nothing can deadlock, as a slice never waits for a session.
    """

    def __init__(self, sessions: SessionStore, turns: Turns):
        self._sessions, self._turns = sessions, turns
        self._lock = threading.Lock()
        self._waiting: OrderedDict[SessionKey, weakref.ref[HeldSession]] = OrderedDict()  # the store alone keeps them
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, key: SessionKey, own: HeldSession) -> None:
        """Goes on with a session's expansion, until it ends, fails, a request takes the session, or it is forgotten.

        A request that took a session adds it again when it is done.
        """
        with self._lock:
            if self._closed:
                return
            self._waiting[key] = weakref.ref(own)
            if self._thread is None:
                # Not a daemon: the interpreter waits for the running slice, rather than ending under PyTorch.
                self._thread = threading.Thread(target=self._run, name="ctsam3d-expansion")
                self._thread.start()

    def close(self) -> None:
        """Begins no further slice, and waits for the running one."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._turns.idle():
                entry = self._next()
                if entry is None:
                    return
                if self._slice(*entry):
                    with self._lock:
                        self._waiting.setdefault(entry[0], weakref.ref(entry[1]))
                del entry  # or a forgotten session would live until the next turn

    def _next(self) -> tuple[SessionKey, HeldSession] | None:
        """The session whose slice is next; None, and the thread's end, where there is none."""
        with self._lock:
            while self._waiting and not self._closed and threading.main_thread().is_alive():
                key, reference = self._waiting.popitem(last=False)
                if (own := reference()) is not None:
                    return key, own
            self._thread = None
            return None

    def _slice(self, key: SessionKey, own: HeldSession) -> bool:
        """Whether there is more to do."""
        with self._sessions.between_requests(key, own) as free:
            if not free or not own.expanding:
                return False
            own.expanding = False  # what fails is not tried again before the next request
            try:
                own.session.go_on(SLICE_SECONDS)
            except Exception:
                logger.exception("%s of client %s: expansion in the background failed", key.structure, key.client)
                return False
            own.expanding = own.session.expanding
            if not own.expanding:
                logger.info(
                    "%s of client %s: expansion in the background ended, %s",
                    key.structure,
                    key.client,
                    told(own.session.expansion),
                )
            return own.expanding
