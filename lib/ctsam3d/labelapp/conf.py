"""The app's ``--conf`` settings, checked when the server starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ctsam3d.checkpoint import packaged_path
from ctsam3d.data.labels import NAMES
from ctsam3d.labelapp.requests import check_labels
from ctsam3d.segmenter import check_precision

MAX_MB = 2000  # of a request, and of the voxels of a scan: 512 x 512 x 3,800 of int16
LEASE_MINUTES = 240  # half a working day
EXPAND_SECONDS = 1.0  # a click is answered within about a second; what takes longer goes on after the reply


@dataclass(frozen=True)
class Conf:
    """Settings of the app.

    Attributes:
        weights: ``--conf weights PATH``: the name of packaged ones ("default"), or a .safetensors file. What training
            has published is served in their place: anything for "default", only their descendants for others.
        device: ``--conf device cpu|cuda``; default: a GPU where PyTorch finds one.
        labels: ``--conf labels a,b,c``: of the model ``ctsam3d``; default: the 107 of TotalSeg++.
        expand_seconds: ``--conf expand_seconds S``: how long the masks of one request may expand into neighbouring
            patches before it is answered; default: `EXPAND_SECONDS`.
        token_file: ``--conf token_file PATH``: see `access.Tokens`; default: none, and everybody may do anything.
        max_upload_bytes: ``--conf max_upload_mb N``: of a request.
        max_scan_bytes: ``--conf max_scan_mb N``: that the voxels of a scan or label map may take.
        lease_seconds: ``--conf lease_minutes M``: for which a scan that was handed out is nobody else's.
        precision: ``--conf precision P``: see `Segmenter`.
    """

    weights: str
    device: str
    labels: tuple[str, ...]
    expand_seconds: float = EXPAND_SECONDS
    token_file: str = ""
    max_upload_bytes: int = MAX_MB * 10**6
    max_scan_bytes: int = MAX_MB * 10**6
    lease_seconds: float = LEASE_MINUTES * 60.0
    precision: str = "auto"


def read_conf(conf: Mapping[str, str] | None) -> Conf:
    """The checked settings; keys of MONAI Label itself are left alone.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: unknown device, labels that are empty, repeated or reserved, no seconds from 0, no megabytes from 1,
            unknown precision.
    """
    conf = conf or {}
    labels = check_labels(conf["labels"].split(",")) if "labels" in conf else NAMES
    seconds = _number("expand_seconds", conf.get("expand_seconds", str(EXPAND_SECONDS)), "seconds")
    return Conf(
        _weights(conf.get("weights", "default")),
        _device(conf.get("device", "")),
        labels,
        seconds,
        conf.get("token_file", ""),
        _megabytes("max_upload_mb", conf.get("max_upload_mb", str(MAX_MB))),
        _megabytes("max_scan_mb", conf.get("max_scan_mb", str(MAX_MB))),
        60 * _number("lease_minutes", conf.get("lease_minutes", str(LEASE_MINUTES)), "minutes"),
        _precision(conf.get("precision", "auto")),
    )


def _weights(weights: str) -> str:
    if weights.endswith(".safetensors"):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"--conf weights must be an existing .safetensors file, got {weights}")
    elif weights != "default":
        packaged_path(weights)
    return weights


def _device(device: str) -> str:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if not device:
        return found
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--conf device must be cpu or cuda, got {device!r}") from error
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--conf device must be cpu or cuda, got {device!r}")
    if kind == "cuda" and found != "cuda":
        raise ValueError(f"--conf device must be cpu, as PyTorch finds no GPU here, got {device!r}")
    return device


def _precision(precision: str) -> str:
    try:
        return check_precision(precision)
    except ValueError as error:
        raise ValueError(f"--conf {error}") from error


def _number(key: str, value: str, unit: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"--conf {key} must be a number of {unit}, 0 or more, got {value!r}")
    return number


def _megabytes(key: str, value: str) -> int:
    """In bytes."""
    if not (value.isascii() and value.isdecimal()) or len(value) > 9 or int(value) < 1:
        raise ValueError(f"--conf {key} must be a whole number of megabytes, 1 or more, got {value!r}")
    return int(value) * 10**6
