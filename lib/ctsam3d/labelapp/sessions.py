"""Images and sessions between two clicks: each image read once per content, each session found by whose it is.

Both stores are bounded, and forget what was not used for the longest time. Whoever holds something that was forgotten
keeps it; asking again makes it anew. A session made anew runs the clicks of a list as a new client's would: the
positive ones, then the negative ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ctsam3d.session import Session
from ctsam3d.volume import Volume

_ATTEMPTS = 3
_SIGNATURES = 4096


@dataclass(frozen=True)
class Image:
    """A scan and the SHA-256 of its file: equal content is the same image, wherever it lies and whatever its name."""

    content: str
    volume: Volume


class ImageCache:
    """Images by content, up to `max_bytes` of voxels; the newest is always kept.

    A path is read again when its resolved name, size, inode or one of its time stamps has changed, so that a file that
    was replaced under its old name is never answered with the old image.
    """

    def __init__(self, read: Callable[[str], Volume], max_bytes: int = 2 * 2**30):
        self._read = read
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._reading = tuple(threading.Lock() for _ in range(16))  # by path: two clients wait only for the same file
        self._contents: OrderedDict[tuple, str] = OrderedDict()  # signature of a path to content
        self._images: OrderedDict[str, Image] = OrderedDict()

    def get(self, path: str | os.PathLike) -> Image:
        """The image at `path`, a file or a folder of DICOM slices.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: not a scan, or a file that changes while it is read.
        """
        if not os.path.exists(path):
            raise FileNotFoundError(f"path {path} does not exist")
        with self._reading[hash(os.path.realpath(path)) % len(self._reading)]:
            for _ in range(_ATTEMPTS):
                signature = _signature(path)
                image = self._known(signature) or self._load(path)
                if _signature(path) == signature:
                    self._keep(signature, image)
                    return image
        raise ValueError(f"path {path} must not change while it is read, it changed {_ATTEMPTS} times")

    @property
    def nbytes(self) -> int:
        """Of the voxels that are kept."""
        with self._lock:
            return sum(kept.volume.array_ijk.nbytes for kept in self._images.values())

    def _known(self, signature: tuple) -> Image | None:
        with self._lock:
            return self._images.get(self._contents.get(signature, ""))

    def _load(self, path: str | os.PathLike) -> Image:
        content = content_of(path)
        with self._lock:
            image = self._images.get(content)
        return image or Image(content, self._read(path))

    def _keep(self, signature: tuple, image: Image) -> None:
        with self._lock:
            self._contents[signature] = image.content
            self._contents.move_to_end(signature)
            self._images[image.content] = image
            self._images.move_to_end(image.content)
            while len(self._contents) > _SIGNATURES:
                self._contents.popitem(last=False)
            used = sum(kept.volume.array_ijk.nbytes for kept in self._images.values())
            while used > self._max_bytes and len(self._images) > 1:
                used -= self._images.popitem(last=False)[1].volume.array_ijk.nbytes


class SessionKey(NamedTuple):
    """Whose session it is."""

    content: str
    structure: str
    client: str
    expand: bool


@dataclass
class HeldSession:
    """A session between clicks; whoever works on `session` holds `lock`.

    Attributes:
        version: of the weights.
        expanding: whether the one who held `lock` last left an expansion that goes on in the background.
        requests: that have the session or wait for it; the store counts them.
        log_id: what the log of efforts calls it.
    """

    session: Session
    image: Image
    version: str
    expanding: bool = False
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    log_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


class SessionStore:
    """Sessions by key, up to `max_sessions` and about `max_bytes` of sessions and their images.

    Those of the newest request are always kept.
    """

    def __init__(self, max_sessions: int = 64, max_bytes: int = 4 * 2**30):
        self._max_sessions = max_sessions
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[SessionKey, HeldSession] = OrderedDict()
        self._newest: frozenset[SessionKey] = frozenset()  # of the request that was served last

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Of the sessions, without their images."""
        with self._lock:
            return sum(held.session.nbytes for held in self._held.values())

    def holds(self, keys: Iterable[SessionKey]) -> bool:
        """Whether every one of the sessions is there, at this moment."""
        with self._lock:
            return all(key in self._held for key in keys)

    @contextlib.contextmanager
    def locked(self, keys: Iterable[SessionKey], make: Callable[[], HeldSession]) -> Iterator[list[HeldSession]]:
        """The sessions of `keys`, made where missing, and locked: always in one order, so that none can deadlock."""
        keys = list(keys)
        with contextlib.ExitStack() as stack:
            found = {}
            for key in sorted(keys):
                found[key] = self._get(key, make)
                stack.callback(self._leave, found[key])
                stack.enter_context(found[key].lock)
            try:
                yield [found[key] for key in keys]
            finally:
                with self._lock:
                    self._newest = frozenset(keys)
                    self._trim(keep=self._newest)

    @contextlib.contextmanager
    def between_requests(self, key: SessionKey, own: HeldSession) -> Iterator[bool]:
        """A session locked for work that no request waits for, if it can be had at once.

        False, and not locked, where a request has the session or waits for it, or where it was forgotten.
        """
        with self._lock:
            free = self._held.get(key) is own and own.requests == 0 and own.lock.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                own.lock.release()
                with self._lock:  # it may have grown, but what a request works on, or did last, does not go for that
                    in_use = {other for other, held in self._held.items() if held.requests}
                    self._trim(keep=self._newest | in_use)

    def _get(self, key: SessionKey, make: Callable[[], HeldSession]) -> HeldSession:
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
            self._held.move_to_end(key)
            self._held[key].requests += 1
            return self._held[key]

    def _leave(self, own: HeldSession) -> None:
        with self._lock:
            own.requests -= 1

    def _trim(self, keep: Collection[SessionKey]) -> None:
        """Forgets what was asked for the longest ago, down to the limits; the caller holds the lock."""
        for key in [key for key in self._held if key not in keep]:
            if len(self._held) <= self._max_sessions and self._used() <= self._max_bytes:
                break
            del self._held[key]

    def _used(self) -> int:
        images = {held.image.content: held.image.volume.array_ijk.nbytes for held in self._held.values()}
        return sum(images.values()) + sum(held.session.nbytes for held in self._held.values())


def _signature(path: str | os.PathLike) -> tuple:
    """What changes when a file is replaced or written to; of a folder, for each of its files."""
    root = Path(path).resolve()
    files = sorted(entry for entry in root.iterdir() if entry.is_file()) if root.is_dir() else [root]
    stats = [(file.name, file.stat()) for file in files]
    return (str(root), *((name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats))


def content_of(path: str | os.PathLike) -> str:
    """Of a file, or of names and contents of the files in a folder."""
    root = Path(path).resolve()
    if not root.is_dir():
        return _file_sha256(root)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_file())
    return hashlib.sha256("".join(f"{name}\0{_file_sha256(root / name)}\n" for name in names).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
