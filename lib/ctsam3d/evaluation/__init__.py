"""A simulated user clicks through cases on the session that serves; results, figures and a report come out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ctsam3d.data.io import Case, read_case
from ctsam3d.evaluation.overlay import draw_overlay
from ctsam3d.evaluation.report import RunInfo, Skipped, write_report
from ctsam3d.evaluation.simulate import CLICK_COUNTS, TOLERANCE_MM, Result, check_click_counts, simulate
from ctsam3d.segmenter import Segmenter, load

__all__ = ["Result", "RunInfo", "Skipped", "evaluate", "evaluate_case", "find_cases", "simulate", "write_report"]

MIN_VOXELS = 500


def evaluate(
    data: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike = "default",
    cases: Sequence[str] | None = None,
    structures: Sequence[str] | None = None,
    clicks: Sequence[int] = CLICK_COUNTS,
    seeds: int = 3,
    min_voxels: int = MIN_VOXELS,
    tolerance_mm: float = TOLERANCE_MM,
    device: str = "cpu",
    overlays: bool = False,
    expand: bool = True,
    command: str = "",
) -> Path:
    """Evaluate weights on folders of cases and write `out`/results.csv and `out`/report.md, which is returned.

    Args:
        data: folder of case folders (see `read_case`).
        cases, structures: names; default all.
        seeds: how many users click each structure, with the seeds 0 to `seeds` - 1.
        min_voxels: structures with fewer voxels at the model's spacing are left out and listed.
        tolerance_mm: of NSD.
        overlays: also write `out`/overlays/<case>_<structure>.png: the last mask of seed 0, through its first click.
        expand: whether a click spreads to the patches around its own, as far as the structure goes.
        command: for the report.

    Raises:
        FileNotFoundError, ValueError: data, weights or a number that cannot be used, or nothing to evaluate.
    """
    counts, folders = check_click_counts(clicks), find_cases(data, cases)
    for name, value, least in (("seeds", seeds, 1), ("min_voxels", min_voxels, 1), ("tolerance_mm", tolerance_mm, 0)):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    segmenter = load(weights, device)
    pictures = Path(out) / "overlays" if overlays else None
    results: list[Result] = []
    skipped: list[Skipped] = []
    for folder in folders:
        case = read_case(folder)
        wanted, left_out = _choose(case, structures, min_voxels, segmenter.info.spacing_mm)
        skipped += left_out
        runs = [(structure, range(seeds)) for structure in wanted]
        results += evaluate_case(segmenter, case, runs, counts, tolerance_mm, pictures, expand)
    info = segmenter.info
    run = RunInfo(
        weights=os.fspath(weights),
        version=info.version,
        sha256=info.sha256,
        trained_on=tuple(map(str, info.notes.get("data", ()))),
        cases=tuple(folder.name for folder in folders),
        seeds=tuple(range(seeds)),
        min_voxels=min_voxels,
        spacing_mm=info.spacing_mm,
        tolerance_mm=tolerance_mm,
        device=str(segmenter.device),
        expand=expand,
        command=command,
    )
    return write_report(out, results, skipped, run)


def evaluate_case(
    segmenter: Segmenter,
    case: Case,
    runs: Sequence[tuple[str, Sequence[int]]],
    clicks: Sequence[int] = CLICK_COUNTS,
    tolerance_mm: float = TOLERANCE_MM,
    pictures: Path | None = None,
    expand: bool = True,
) -> list[Result]:
    """The results of some structures of a case, each with its seeds; a progress bar goes along.

    Args:
        pictures: folder for an overlay of each structure after the clicks of its first seed.
        expand: whether a click spreads to the patches around its own.
    """
    results = []
    with tqdm(total=sum(len(seeds) for _, seeds in runs), desc=case.name, unit="run") as bar:
        for structure, seeds in runs:
            target_ijk = case.mask(structure)
            for seed in seeds:
                session = segmenter.session(case.volume, expand)
                results += simulate(session, target_ijk, case.name, structure, seed, clicks, tolerance_mm)
                if pictures is not None and seed == seeds[0]:
                    title = f"{case.name} · {structure} · {len(session.clicks)} clicks · DSC {results[-1].dsc:.3f}"
                    file = pictures / f"{case.name}_{structure}.png".replace("/", "-")
                    draw_overlay(file, case.volume, session.mask(), session.clicks, session.clicks[0].ijk, title)
                bar.set_postfix_str(f"{structure} DSC {results[-1].dsc:.3f}", refresh=False)
                bar.update()
    return results


def find_cases(data: str | os.PathLike, names: Sequence[str] | None = None) -> list[Path]:
    """The case folders in a folder, or those with the given names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a name that is no case of it, or no case at all.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"data must be an existing folder of cases, got {data}")
    found = {folder.name: folder for folder in _labelled_folders(data)}
    unknown = [name for name in names or () if name not in found]
    if unknown or not found:
        raise ValueError(f"cases must be among those of {data}, {sorted(found) or 'which has none'}, got {unknown}")
    return [found[name] for name in dict.fromkeys(names or found)]


def _labelled_folders(data: Path) -> Iterator[Path]:
    for folder in sorted(data.iterdir()):
        if (folder / "seg.nii.gz").is_file() or (folder / "segmentations").is_dir():
            yield folder


def _choose(
    case: Case, structures: Sequence[str] | None, min_voxels: int, spacing_mm: float
) -> tuple[list[str], list[Skipped]]:
    """The structures of a case that are asked for and large enough, and the others that are asked for."""
    voxel_mm3 = abs(float(np.linalg.det(case.volume.affine_ras_mm[:3, :3])))
    wanted, skipped = [], []
    for name in dict.fromkeys(structures or case.names):
        count = int(np.count_nonzero(case.mask(name))) if name in case.structures else 0
        voxels = count * voxel_mm3 / spacing_mm**3
        if count and voxels >= min_voxels:
            wanted.append(name)
        else:
            skipped.append(Skipped(case.name, name, int(voxels)))
    return wanted, skipped
