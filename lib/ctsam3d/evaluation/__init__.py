"""A simulated user clicks through cases on the session that serves; results, figures and a report come out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctsam3d.clicks import USERS, check_user
from ctsam3d.data.datasets import (
    KINDS,
    SPLITS,
    TUMOURS,
    CaseFiles,
    DataSet,
    find_dataset,
    read_case_list,
    read_patients,
)
from ctsam3d.evaluation.region_growing import NAME as REGION_GROWING
from ctsam3d.evaluation.region_growing import RegionGrower
from ctsam3d.evaluation.report import RunInfo, Skipped, results_frame, write_report
from ctsam3d.evaluation.report_sections import examples
from ctsam3d.evaluation.runs import Gathered, Parts, Run, Settings, dealt, process_group, together
from ctsam3d.evaluation.simulate import (
    CLICK_COUNTS,
    TOLERANCE_MM,
    TUMOUR_CLICK_COUNTS,
    Result,
    check_click_counts,
    simulate,
)
from ctsam3d.segmenter import Segmenter, load
from ctsam3d.training import processes

__all__ = [
    "CLICK_COUNTS",
    "KINDS",
    "MIN_VOXELS",
    "SPLITS",
    "TOLERANCE_MM",
    "USERS",
    "Result",
    "RunInfo",
    "Skipped",
    "evaluate",
    "find_cases",
    "simulate",
    "write_report",
]

MIN_VOXELS = 500


def evaluate(
    data: str | os.PathLike,
    out: str | os.PathLike,
    weights: str | os.PathLike = "default",
    cases: Sequence[str] | None = None,
    structures: Sequence[str] | None = None,
    clicks: Sequence[int] | None = None,
    seeds: int = 3,
    min_voxels: int = MIN_VOXELS,
    tolerance_mm: float = TOLERANCE_MM,
    device: str = "cpu",
    overlays: bool = False,
    expand: bool = True,
    command: str = "",
    dataset: str = "auto",
    case_list: str | os.PathLike | None = None,
    split: str | None = None,
    user: str = USERS[0],
    patients: str | os.PathLike | None = None,
) -> Path | None:
    """Evaluate weights on a data set and write the report into `out`: results.csv, report.md and what belongs to it.

    The results of each structure are kept under `out`/parts: a run that was stopped goes on where it was when the
    same command is given again. Under torchrun the cases are dealt over the processes, which share `out`, and the
    first of them writes the report once all are done.

    Args:
        data: folder of a data set, see `find_dataset`.
        weights: packaged name or a .safetensors file; "region-growing" for a baseline without any.
        cases, structures: names; default all of the split, and all that the data set is there for.
        clicks: the numbers of clicks after which to score; default 1, 3, 5, 7, 9, and 10 for tumours.
        seeds: how many users click each structure, with the seeds 0 to `seeds` - 1.
        min_voxels: structures with fewer voxels at the model's spacing are left out and listed.
        tolerance_mm: of NSD; NSD at 2 mm is there in any case.
        device: "cpu" or "cuda"; under torchrun every process takes a GPU of its own.
        overlays: write `out`/overlays/<case>_<structure>.png of every structure, not of the best, the median and the
            worst alone: the last mask of seed 0, through its first click.
        expand: whether a click spreads to the patches around its own, as far as the structure goes.
        command: for the report.
        dataset: kind of the data set, "auto" or one of `KINDS`.
        case_list: text file with the names of the cases, in the place of `cases`.
        split: "train", "val", "test" or "all", see `DataSet.chosen`; not beside names of cases.
        user: who clicks, one of `USERS`, see `user_click`.
        patients: CSV file with the columns case and patient, for intervals over patients; the patients of cases that
            it leaves out are those that the data set names, else the cases themselves.

    Returns:
        Path of the report; None in the processes that do not write it.

    Raises:
        FileNotFoundError, ValueError: data, weights or a number that cannot be used, or nothing to evaluate.
    """
    for name, value, least in (("seeds", seeds, 1), ("min_voxels", min_voxels, 1), ("tolerance_mm", tolerance_mm, 0)):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    check_user(user)
    counts = check_click_counts(clicks) if clicks is not None else None
    patient_of = read_patients(patients) if patients is not None else {}
    found = find_dataset(data, dataset)
    chosen = found.chosen(_names(cases, case_list, split), split)
    counts = counts or (TUMOUR_CLICK_COUNTS if found.kind in TUMOURS else CLICK_COUNTS)
    with process_group(device) as device:
        segmenter = RegionGrower() if weights == REGION_GROWING else load(weights, device)
        settings = Settings.of(segmenter, counts, seeds, tolerance_mm, user, expand)
        run = Run(Parts(Path(out) / "parts", settings), structures or found.structures, min_voxels, overlays)
        failed = together(run.do(segmenter, dealt(chosen)))
        if processes.rank() > 0:
            return None
        if failed:
            reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(failed.items()))
            raise ValueError(f"cases must be usable, the others are done and kept in {out}; {reasons}")
        gathered = run.gather(chosen)
        info = _run_info(found, weights, segmenter, run, chosen, gathered, command, patient_of)
        pictures = _pictures(run, segmenter, chosen, gathered, overlays)
        return write_report(out, gathered.results, gathered.skipped, info, pictures=pictures)


def find_cases(data: str | os.PathLike, names: Sequence[str] | None = None) -> list[Path]:
    """The case folders in a folder, or those with the given names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a name that is no case of it, or no case at all.
    """
    return [Path(data) / case.name for case in find_dataset(data, "cases").chosen(names)]


def _names(cases: Sequence[str] | None, case_list, split: str | None) -> Sequence[str] | None:
    ways = {"cases": cases, "case_list": case_list, "split": split}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"cases must be chosen in one way, got {' and '.join(given)}")
    return read_case_list(case_list) if case_list is not None else cases


def _pictures(
    run: Run, segmenter: Segmenter, chosen: Sequence[CaseFiles], gathered: Gathered, every: bool
) -> dict[tuple[str, str], Path]:
    """Of every structure of a case that was clicked, or of the `examples` alone."""
    if not gathered.results:
        return {}
    files = {case.name: case for case in chosen}
    clicked = dict.fromkeys((result.case, result.structure) for result in gathered.results)
    keys = clicked if every else examples(results_frame(gathered.results))
    return {(case, structure): run.picture(segmenter, files[case], structure) for case, structure in keys}


def _run_info(
    found: DataSet,
    weights: str | os.PathLike,
    segmenter: Segmenter,
    run: Run,
    chosen: Sequence[CaseFiles],
    gathered: Gathered,
    command: str,
    patient_of: Mapping[str, str],
) -> RunInfo:
    info, settings = segmenter.info, run.parts.settings
    patients = {case.name: patient_of.get(case.name, case.patient) for case in chosen}
    return RunInfo(
        weights=os.fspath(weights),
        version=info.version,
        sha256=info.sha256,
        trained_on=tuple(map(str, info.notes.get("data", ()))),
        cases=tuple(case.name for case in chosen),
        seeds=settings.seeds,
        min_voxels=run.min_voxels,
        spacing_mm=info.spacing_mm,
        tolerance_mm=settings.tolerance_mm,
        device=f"{segmenter.device} ({settings.precision})",
        command=command,
        expand=settings.expand,
        dataset="" if found.kind == "cases" else found.kind,
        user=settings.user,
        memory_mb=gathered.memory_mb or None,
        patients={case: patient for case, patient in patients.items() if patient != case},
    )
