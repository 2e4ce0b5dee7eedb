"""Whether the server can do its work, and how much of the machine it has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import psutil
import torch

from ctsam3d.labelapp.infer import ClickEngine
from ctsam3d.labelapp.monitor import Labels

_LEAST_DISK = 100 * 2**20  # bytes; a label map and its record need far less, a scan more


class Health:
    """Of one server.

    Args:
        engine: its clicks.
        folder: that labels are saved in.
    """

    def __init__(self, engine: ClickEngine, folder: str | os.PathLike):
        self._engine, self._folder = engine, folder

    def version(self) -> str:
        """Of the weights; empty as long as none are loaded."""
        return self._engine.usage().version

    def problems(self) -> list[str]:
        """What keeps the server from its work, in words; empty where nothing does."""
        found = []
        usage = self._engine.usage()
        if usage.problem:
            found.append(f"weights cannot be loaded: {usage.problem}")
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            found.append("the studies folder cannot be read and written")
        elif shutil.disk_usage(self._folder).free < _LEAST_DISK:
            found.append("the disk of the studies folder is full")
        return found

    def gauges(self) -> Mapping[str, Mapping[Labels, float]]:
        """Sizes as they are now, for the monitor."""
        usage, process = self._engine.usage(), psutil.Process()
        values: dict[str, dict[Labels, float]] = {
            "ctsam3d_click_sessions": {(): usage.sessions},
            "ctsam3d_cache_bytes": {
                (("cache", "images"),): usage.image_bytes,
                (("cache", "sessions"),): usage.session_bytes,
            },
            "ctsam3d_resident_bytes": {(): process.memory_info().rss},
            "ctsam3d_model_info": {(("version", usage.version or "none"),): 1},
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # looking must not take a place on the GPU
            devices = range(torch.cuda.device_count())
            values["ctsam3d_gpu_bytes"] = {
                (("device", str(n)), ("kind", kind)): value
                for n in devices
                for kind, value in (
                    ("allocated", torch.cuda.memory_allocated(n)),
                    ("reserved", torch.cuda.memory_reserved(n)),
                    ("free", torch.cuda.mem_get_info(n)[0]),
                )
            }
        return values
