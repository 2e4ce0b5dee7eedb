"""Fair turns on something that one thread at a time may use."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator


class Turns:
    """One turn at a time: clients in rotation, first come first served within a client, background work last.

    However many turns other clients ask for, a client's next one comes after the turn in progress and at most one turn
    of each other client that waits. Background work gets a turn when no client waits for one. Whoever has a turn must
    not ask for another one before it is over.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._busy = False  # nobody waits while it is False
        self._holder: str | None = None
        self._clients: OrderedDict[str, deque[threading.Event]] = OrderedDict()  # those that wait, the next one first
        self._background: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """A turn of `client`, from when it comes to the end of the block."""
        with self._turn(client):
            yield

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """A turn for background work, which should be short: a client may come meanwhile, and waits for its end."""
        with self._turn(None):
            yield

    @contextlib.contextmanager
    def _turn(self, client: str | None) -> Iterator[None]:
        self._wait(client)
        try:
            yield
        finally:
            self._pass_on()

    def _wait(self, client: str | None) -> None:
        with self._lock:
            if not self._busy:
                self._busy, self._holder = True, client
                return
            come = threading.Event()
            queue = self._background if client is None else self._clients.setdefault(client, deque())
            queue.append(come)
        come.wait()

    def _pass_on(self) -> None:
        """Gives the turn to the next that waits, if any."""
        with self._lock:
            if self._holder in self._clients:  # it has had its turn, the others come first
                self._clients.move_to_end(self._holder)
            self._holder = next(iter(self._clients), None)
            if self._holder is not None:
                queue = self._clients[self._holder]
                queue.popleft().set()
                if not queue:
                    del self._clients[self._holder]
            elif self._background:
                self._background.popleft().set()
            else:
                self._busy = False
