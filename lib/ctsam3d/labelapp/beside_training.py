"""A training on a running server while something else is measured there."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

from ctsam3d.evaluation.timing import Row
from ctsam3d.labelapp.names import FINAL

MODEL = "ctsam3d"
EPOCHS = 10_000  # it never ends by itself
_LOOK_SECONDS = 1.0
_BEGIN_SECONDS = 3600  # volumes are prepared and clicked through before the first step
_TIMEOUT_SECONDS = 600


@contextmanager
def training_beside(url: str, labels: Sequence[tuple[str, np.ndarray, Mapping[str, int]]]) -> Iterator[list[Row]]:
    """Saves final labels, trains on them, and lets the block run from the first step on; then stops the training.

    Args:
        labels: image, label map (I, J, K) and the value of each structure that may be in it.

    Yields:
        A list, which has the steps between which it ran when the block is left.

    Raises:
        RuntimeError: the training does not begin, or did not run all the while.
    """
    for image, labels_ijk, values in labels:
        _save(url, image, labels_ijk, values)
    _checked(requests.post(f"{url}/train/{MODEL}", json={"max_epochs": EPOCHS}, timeout=_TIMEOUT_SECONDS))
    try:
        begin, rows = _first_step(url), []
        yield rows
        end = _stats(url)
        if end.get("state") != "training":
            raise RuntimeError(f"the training did not run all the while: {_said(end)}")
        rows.append({"from step": begin["step"], "to step": end["step"]})
    finally:
        requests.delete(f"{url}/train/", timeout=_TIMEOUT_SECONDS)


def _save(url: str, image: str, labels_ijk: np.ndarray, values: Mapping[str, int]) -> None:
    """As Submit does it, on the grid that the server has of the image."""
    with tempfile.TemporaryDirectory(prefix="ctsam3d-label-") as folder:
        scan, path = Path(folder, "scan.nii.gz"), Path(folder, "label.nii.gz")
        scan.write_bytes(_checked(requests.get(f"{url}/datastore/image", {"image": image}, timeout=60)).content)
        nib.save(nib.Nifti1Image(labels_ijk.astype(np.uint8), nib.load(scan).affine), path)
        present = set(np.unique(labels_ijk).tolist())
        said = {"label_info": [{"name": name, "idx": value} for name, value in values.items() if value in present]}
        with open(path, "rb") as file:
            reply = requests.put(
                f"{url}/datastore/label",
                params={"image": image, "tag": FINAL},
                data={"params": json.dumps(said)},
                files={"label": ("label.nii.gz", file)},
                timeout=_TIMEOUT_SECONDS,
            )
        _checked(reply)


def _first_step(url: str) -> dict:
    end, stats = time.monotonic() + _BEGIN_SECONDS, {}
    while time.monotonic() < end:
        stats = _stats(url)
        if stats.get("state") == "training" and stats.get("step", 0) >= 1:
            return stats
        if stats.get("state") in ("failed", "done"):
            break
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"the training does not begin: {_said(stats)}")


def _stats(url: str) -> dict:
    return _checked(requests.get(f"{url}/info/", timeout=_TIMEOUT_SECONDS)).json()["train_stats"][MODEL]


def _said(stats: dict) -> str:
    return f"state {stats.get('state')!r}, {stats.get('error', 'no error')}"


def _checked(reply: requests.Response) -> requests.Response:
    if not reply.ok:
        raise RuntimeError(f"status {reply.status_code} from {reply.url}: {reply.text[:500]}")
    return reply
