"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_UMASK = os.umask(0)  # read once: reading means setting, which other threads that make files would see
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends well and vanishes when it does not.

    The temporary name ends like `path`, for writers that choose the format by the extension. The content is on the
    disk (fsync) before the rename, so that a crash leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix="-" + path.name)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        make_ordinary(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_ordinary(path: str | os.PathLike) -> None:
    """Gives a file of `tempfile`, which are private, the rights that an ordinary new file has."""
    os.chmod(path, 0o666 & ~_UMASK)


def clear_temporary(folder: str | os.PathLike) -> None:
    """Removes what killed processes left half-written under a folder that nobody else writes to now."""
    for pattern in (".writing-*", ".tmp*"):  # ours, and those that safetensors writes before it renames them
        for path in Path(folder).rglob(pattern):
            path.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike) -> None:
    """Names that were made, changed or removed in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_signature(path: str | os.PathLike) -> tuple[int, int, int] | None:
    """What differs when a file was replaced or written to: inode, size and time; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def append_json(path: str | os.PathLike, rows: Iterable[Mapping]) -> None:
    """Appends objects to a file, each a line of JSON, in one write that no other process can come into.

    A line that a killed process has torn is ended first: it is lost, what comes after it is not.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if not lines:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, b"\n" + lines if torn else lines)
    finally:
        os.close(handle)


def read_json_lines(path: str | os.PathLike) -> Iterator[dict]:
    """The objects of such a file, the oldest first; torn lines are left out. Nothing where there is no file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return
