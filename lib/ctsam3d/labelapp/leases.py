"""Which scan was handed out to whom: no two clients get the same one, also after a restart.

The state is one JSON file that is replaced whole, under a lock that threads and processes share. A lease ends when its
scan is submitted, when its client asks for the next one without having submitted it (it was skipped), when it is given
back, or after a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ctsam3d.data.files import atomic_path

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 30.0  # a choice takes parts of a second
SKIPPED_SECONDS = 24 * 3600.0  # for which a client gets a scan that it skipped only when there is no other


@dataclass(frozen=True)
class Lease:
    """A scan that a client has.

    Attributes:
        client: key of who has it, see `routes_tasks`.
        name: of the client as others may read it.
        since, until: seconds since the epoch.
    """

    client: str
    name: str
    since: float
    until: float


class LeaseTable:
    """The leases at one moment, to be changed by whoever holds the lock.

    Attributes:
        now: seconds since the epoch; nothing in the table has ended by then.
        held: the lease of each image that has one.
        skipped: when each client skipped which image.
    """

    def __init__(self, now: float, held: dict[str, Lease], skipped: dict[str, dict[str, float]]):
        self.now = now
        self.held = {image: lease for image, lease in held.items() if lease.until > now}
        kept = {client: _recent(times, now) for client, times in skipped.items()}
        self.skipped = {client: times for client, times in kept.items() if times}

    def of(self, client: str) -> list[str]:
        """The images that a client has, in the order in which it got them."""
        own = [(lease.since, image) for image, lease in self.held.items() if lease.client == client]
        return [image for _, image in sorted(own)]

    def take(self, image: str, client: str, name: str, seconds: float) -> Lease:
        """The lease of an image that nobody else has.

        Raises:
            ValueError: another client has it.
        """
        other = self.held.get(image)
        if other is not None and other.client != client:
            raise ValueError(f"image must be free, {image!r} is leased to {other.name}")
        self.held[image] = Lease(client, name, self.now, self.now + seconds)
        return self.held[image]

    def give_back(self, images: Collection[str]) -> None:
        """Ends the leases of images that have one."""
        for image in images:
            self.held.pop(image, None)

    def skip(self, image: str, client: str) -> None:
        """Ends a client's lease; it gets the image again only when there is no other."""
        self.held.pop(image, None)
        self.skipped.setdefault(client, {})[image] = self.now


class Leases:
    """The table in a file.

    Args:
        folder: of the file; its lock lies beside it.
        seconds: that a lease lasts.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: str | os.PathLike, seconds: float, clock: Callable[[], float] = time.time):
        self.path, self.seconds, self._clock = Path(folder) / "leases.json", seconds, clock

    @contextlib.contextmanager
    def changing(self) -> Iterator[LeaseTable]:
        """The table as it is now; what is changed is on the disk when the block has ended well, else nothing is.

        Raises:
            filelock.Timeout: others held it for too long.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            table = self._read()
            before = _as_json(table)
            yield table
            after = _as_json(table)
            if after != before:
                with atomic_path(self.path) as temporary:
                    temporary.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")

    def now(self) -> LeaseTable:
        """The table as it is, to look at."""
        return self._read()

    def _read(self) -> LeaseTable:
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            held = {image: Lease(**lease) for image, lease in values["held"].items()}
            skipped = {client: dict(times) for client, times in values["skipped"].items()}
        except FileNotFoundError:
            held, skipped = {}, {}
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # not ours, or edited by hand
            logger.error("leases %s cannot be read, every scan counts as free: %s", self.path, error)
            held, skipped = {}, {}
        return LeaseTable(self._clock(), held, skipped)


def _as_json(table: LeaseTable) -> dict:
    skipped = {client: dict(times) for client, times in table.skipped.items()}
    return {"held": {image: asdict(lease) for image, lease in table.held.items()}, "skipped": skipped}


def _recent(times: dict[str, float], now: float) -> dict[str, float]:
    return {image: then for image, then in times.items() if now - then < SKIPPED_SECONDS}
