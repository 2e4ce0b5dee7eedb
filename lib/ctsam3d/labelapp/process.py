"""The server's own process: where it listens, how it ends, its temporary files, and its log.

MONAI Label hands the application to uvicorn, which asks for the app before it listens; so what belongs to the process
is put right when the app is made.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import logging.handlers
import os
import shutil
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio.to_thread
import uvicorn
from filelock import FileLock, Timeout
from monailabel.main import Main
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import background_executors
from starlette.concurrency import run_in_threadpool

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
_LOCAL_NAMES = (LOCAL, "localhost", "::1")
_THREADS = 200  # requests at a time; a click that waits for its turn holds one
_LAST_SECONDS = 60  # for the requests that run when the server is told to end
_SCRATCH = "ctsam3d-server-"
_TASKS = ("train", "scoring", "batch_infer")


class _Arguments(Main):
    """The arguments of ``start_server``; no host where none was given."""

    def args_start_server(self, parser):
        super().args_start_server(parser)
        parser.set_defaults(host=None)


def told(arguments: list[str]) -> Namespace:
    """What a command line of MONAI Label says; its `host` is None where it names none.

    Raises:
        ValueError: several worker processes.
    """
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            found, _ = _Arguments().args_parser().parse_known_args(arguments)
    except SystemExit:
        found = Namespace()  # not a command line of MONAI Label
    values = {"host": None, "workers": None, "log_config": None, **vars(found)}
    if (values["workers"] or 1) > 1:
        raise ValueError(f"--workers must be 1, got {values['workers']}: sessions live in the memory of one process")
    return Namespace(**values)


def own_process(close: Callable[[], None], tokens: bool) -> None:
    """Settles everything in this process, which is about to serve.

    Args:
        close: called once when no request is left.
        tokens: whether requests need one.

    Raises:
        RuntimeError: no host was given, and what will listen is not known.
    """
    server, arguments = _uvicorn(), told(sys.argv[1:])
    if arguments.host is None:
        if server is None:
            raise RuntimeError("--host must be given, as the server that will listen is none that this app knows")
        server.config.host = LOCAL
    elif not tokens and arguments.host not in _LOCAL_NAMES:
        logger.warning("anybody who reaches %s may read and change everything: use --conf token_file", arguments.host)
    Scratch().use()
    share_log_file(map(logging.getLogger, ["", *(f"task_{task}" for task in _TASKS)]))
    with contextlib.suppress(RuntimeError):  # there is no event loop
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    if server is not None:
        if arguments.log_config is None and isinstance(server.config.log_config, str):
            Path(server.config.log_config).unlink(missing_ok=True)  # MONAI Label leaves one at every start
        if server.config.timeout_graceful_shutdown is None:
            server.config.timeout_graceful_shutdown = _LAST_SECONDS
        _close_after(server, close)


def _uvicorn() -> uvicorn.Server | None:
    """The server that runs in this process: it has taken over the signals that end it."""
    found = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return found if isinstance(found, uvicorn.Server) else None


def _close_after(server: uvicorn.Server, close: Callable[[], None]) -> None:
    """After the last reply: tasks are stopped, and what they have kept lets them go on; then the rest is closed."""
    shut_down = server.shutdown

    async def shutdown(sockets=None) -> None:
        await shut_down(sockets=sockets)
        for step in (_stop_tasks, close):
            try:
                await run_in_threadpool(step)
            except Exception:
                logger.exception("closing the server: a step failed")
        Scratch.clear_own()

    server.shutdown = shutdown


def _stop_tasks() -> None:
    for executor in background_executors.values():
        executor.shutdown(wait=False, cancel_futures=True)  # those that wait for their turn
    for task in _TASKS:
        AsyncTask.stop(task)


# ---- temporary files -----------------------------------------------------------------------------------------------


class Scratch:
    """A folder for all temporary files of this process, which goes with it; those of dead servers go first."""

    _own: tuple[Path, FileLock] | None = None

    def use(self) -> None:
        """From now on `tempfile`, and processes that are started, work there."""
        if Scratch._own is not None:
            return
        root = Path(tempfile.gettempdir())
        for folder in root.glob(f"{_SCRATCH}*"):
            lock = FileLock(folder / ".lock")
            with contextlib.suppress(OSError, Timeout):  # another user's, or in use
                lock.acquire(timeout=0)
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
        Scratch._own = folder, lock
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        atexit.register(Scratch.clear_own)

    @staticmethod
    def clear_own() -> None:
        """Removes the folder."""
        if Scratch._own is not None:
            shutil.rmtree(Scratch._own[0], ignore_errors=True)


# ---- the log -------------------------------------------------------------------------------------------------------


class _Format(logging.Formatter):
    """As MONAI Label's, but a task's own lines, which say when and where themselves, stay as they are."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name.startswith("task_") else super().format(record)


def share_log_file(logs: Iterable[logging.Logger]) -> None:
    """One handler for each log file: two that rotate the same file would cut each other's lines off."""
    shared: dict[str, logging.handlers.RotatingFileHandler] = {}
    for log in logs:
        for handler in list(log.handlers):
            if isinstance(handler, logging.handlers.RotatingFileHandler):
                kept = shared.setdefault(handler.baseFilename, handler)
                if kept is not handler:
                    log.removeHandler(handler)
                    log.addHandler(kept)
                    handler.close()
    for handler in shared.values():
        if handler.formatter is not None:
            handler.setFormatter(_Format(handler.formatter._fmt))
