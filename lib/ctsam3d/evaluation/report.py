"""Results on disk: results.csv, figures, and a report of what was run and what came out, as Markdown and as a page."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ctsam3d.data.files import atomic_path
from ctsam3d.evaluation import report_figures, report_tables
from ctsam3d.evaluation.report_cost import cost_of_weights
from ctsam3d.evaluation.report_document import Document, to_markdown
from ctsam3d.evaluation.report_groups import GROUPS
from ctsam3d.evaluation.report_html import to_html
from ctsam3d.evaluation.report_run import RunInfo, Skipped, check_results, read_results
from ctsam3d.evaluation.report_sections import make_document
from ctsam3d.evaluation.simulate import Result

__all__ = ["COLUMNS", "RunInfo", "Skipped", "read_results", "results_frame", "write_document", "write_report"]

COLUMNS = (*(field.name for field in dataclasses.fields(Result)), "patient", "trained_on")
PICTURES = "overlays"  # folder of the pictures of masks, in that of the report


def write_report(
    folder: str | os.PathLike,
    results: Sequence[Result] | pd.DataFrame,
    skipped: Sequence[Skipped],
    run: RunInfo,
    groups: Mapping[str, tuple[str, ...]] = GROUPS,
    pictures: Mapping[tuple[str, str], Path] | None = None,
) -> Path:
    """Write results.csv, report.json, figures, report.md and report.html into `folder`; report.md is returned.

    Each file is written whole or not at all.

    Args:
        results: rows, or a frame with their fields as columns.
        groups: names of structures by group.
        pictures: PNG of the mask by case and structure, where there is one; copied to
            `folder`/overlays/<case>_<structure>.png. Of the `examples` they are shown.

    Raises:
        ValueError: no results, or a frame that `check_results` refuses.
    """
    if not len(results):
        why = f"{len(skipped)} were skipped: absent, or fewer than {run.min_voxels} voxels of {run.spacing_mm:g} mm"
        raise ValueError(f"results must hold at least one structure, got none; {why}")
    folder, frame = Path(folder), results_frame(results, run.patients)
    frame = frame.assign(trained_on=frame["case"].isin(run.trained_on))
    with atomic_path(folder / "results.csv") as path:
        frame.to_csv(path, index=False, float_format="%.6f")
    _write_text(folder / "report.json", json.dumps({"run": dataclasses.asdict(run)}, indent=1) + "\n")
    shown = {key: _copied(path, folder, "_".join(key)) for key, path in (pictures or {}).items()}
    cost = cost_of_weights(run.weights, run.sha256)
    document = make_document(frame, skipped, run, groups, cost, shown)
    return write_document(folder, "report", document, _figures(frame, run, groups))


def write_document(folder: Path, name: str, document: Document, figures: Mapping[str, Figure]) -> Path:
    """Write `figures` and then the document as `name`.html and `name`.md, which is returned.

    Args:
        figures: by their file in `folder`; other pictures of the document are there already.
    """
    for file, figure in figures.items():
        with atomic_path(folder / file) as path:
            figure.savefig(path, dpi=report_figures.DPI)
    images = {picture.file: (folder / picture.file).read_bytes() for picture in document.pictures}
    _write_text(folder / f"{name}.html", to_html(document, images))
    _write_text(folder / f"{name}.md", to_markdown(document))
    return folder / f"{name}.md"


def results_frame(results: Sequence[Result] | pd.DataFrame, patients: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table of results.csv, a row a result; arguments and errors as of `check_results`."""
    if not isinstance(results, pd.DataFrame):
        results = pd.DataFrame([dataclasses.asdict(r) for r in results])
    return check_results(results, patients=patients)


def _copied(picture: Path, folder: Path, name: str) -> str:
    """A picture's path from `folder`, into which it is copied."""
    target = folder / PICTURES / f"{name}.png".replace("/", "-")
    with atomic_path(target) as path:
        shutil.copyfile(picture, path)
    return f"{PICTURES}/{target.name}"


def _write_text(file: Path, text: str) -> None:
    with atomic_path(file) as path:
        path.write_text(text, encoding="utf-8")


def _figures(frame: pd.DataFrame, run: RunInfo, groups: Mapping[str, tuple[str, ...]]) -> dict[str, Figure]:
    """By the name of the file."""
    names = report_tables.score_names(frame, run.tolerance_mm)
    two = {score: names[score] for score in ("dsc", "nsd")}
    return {
        "clicks.png": report_figures.click_curves(frame, two, groups, run.published),
        "groups.png": report_figures.group_boxes(frame, two, groups),
        **{f"structures_{s}.png": report_figures.structure_bars(frame, s, name, groups) for s, name in two.items()},
    }
