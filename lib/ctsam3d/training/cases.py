"""Training volumes from folders of cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ctsam3d.data.io import read_case
from ctsam3d.model.build import SPACING_MM
from ctsam3d.training.patches import TrainingVolume, training_volume

log = logging.getLogger(__name__)


def load_sources(folders: Sequence[Path], spacing_mm: float = SPACING_MM) -> list[list[TrainingVolume]]:
    """A group of volumes for each folder, which is a case itself or holds cases.

    Raises:
        ValueError: a folder without a case, or a case that cannot be used.
    """
    return [_load_group(Path(folder), spacing_mm) for folder in folders]


def _load_group(folder: Path, spacing_mm: float) -> list[TrainingVolume]:
    if not folder.is_dir():
        raise ValueError(f"data must be folders, got {folder}")
    cases = [folder] if _is_case(folder) else sorted(f for f in folder.iterdir() if f.is_dir() and _is_case(f))
    if not cases:
        raise ValueError(f"data {folder} must be a case or hold cases (ct.nii.gz with its labels), it holds none")
    volumes = [training_volume(read_case(case), spacing_mm) for case in cases]
    log.info("%s: %d volumes", folder, len(volumes))
    return volumes


def _is_case(folder: Path) -> bool:
    return (folder / "seg.nii.gz").is_file() or (folder / "segmentations").is_dir()
