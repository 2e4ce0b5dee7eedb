"""What a report of an evaluation says, section by section."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from ctsam3d.evaluation import paper, report_tables
from ctsam3d.evaluation.report_cost import NetworkCost
from ctsam3d.evaluation.report_document import Block, Bullets, Document, KeyFigures, Picture, Section, Table
from ctsam3d.evaluation.report_groups import is_tumour
from ctsam3d.evaluation.report_run import USERS, RunInfo, Skipped
from ctsam3d.evaluation.report_tables import case_text, clicks_text, number, span
from ctsam3d.evaluation.statistics import auc, noc, patient_means

_MOST_NAMES = 30  # of cases, in a line


def make_document(
    frame: pd.DataFrame,
    skipped: Sequence[Skipped],
    run: RunInfo,
    groups: Mapping[str, tuple[str, ...]],
    cost: NetworkCost | None,
    pictures: Mapping[tuple[str, str], str],
) -> Document:
    """The report. Of the figures it names clicks.png, groups.png, structures_dsc.png and structures_nsd.png.

    Args:
        frame: results, see `check_results`.
        cost: of the network, where its weights could be read.
        pictures: files with the last mask of the first seed, by case and structure; may be empty.
    """
    names, published = report_tables.score_names(frame, run.tolerance_mm), run.published
    sections = [
        Section("In short", (_key_figures(frame, names), *_warning(frame, run))),
        Section("What was run", (Bullets(_head(frame, skipped, run)),)),
        Section("Organs", (report_tables.organ_table(frame, names, run.trained_on, published), *_organ_notes(run))),
        Section(
            "Clicks",
            (
                report_tables.click_table(frame, names, run.trained_on, published),
                *(f"{method} (paper): {source}." for method, source in _sources(published)),
                Picture("clicks.png", "Scores against clicks: mean over structures, its 95 % interval, and by group"),
            ),
        ),
        *_tumours(frame, names, run),
        Section(
            "Groups",
            (
                Picture("groups.png", "Scores by group, a dot a structure and case; boxes are quartiles"),
                report_tables.group_table(frame, names, groups),
            ),
        ),
        Section("Structures", _structures(frame, names)),
        *_examples(frame, pictures, run),
        Section("Failures", _failures(frame, run)),
        Section("Network, time and memory", _network(frame, run, cost)),
        Section("Beside the paper", _paper(run, published)),
        Section("Cases", (report_tables.case_table(frame, run.trained_on),)),
        *_skipped(skipped, run),
    ]
    title = "Evaluation with simulated clicks"
    return Document(f"{title}: {paper.TITLES[run.dataset]}" if run.dataset else title, tuple(sections))


def _key_figures(frame: pd.DataFrame, names: Mapping[str, str]) -> KeyFigures:
    clicks, first = report_tables.headline_clicks(frame), int(frame["clicks"].min())
    items = []
    for score, name in names.items():
        means = report_tables.structure_means(frame, score)[clicks]
        low_high = report_tables.bounds(frame[frame["clicks"] == clicks], score)[clicks]
        of = f"mean of {means.notna().sum()} structures in {frame['case'].nunique()} cases"
        of += f"; 95 % {text}" if (text := span(low_high)) != "–" else ""
        items.append((f"{name} after {clicks_text(clicks)}", number(means.mean()), of))
    if first != clicks:
        means = report_tables.structure_means(frame, "dsc")[first]
        items.append((f"DSC after {clicks_text(first)}", number(means.mean()), f"mean of {len(means)} structures"))
    for target in report_tables.TARGETS:
        needed = noc(frame, target)
        of = f"clicks to DSC {target:g}; {needed['failed'].sum()} of {len(needed)} runs never got there"
        items.append((f"NoC@{100 * target:.0f}", f"{needed['clicks'].mean():.1f}", of))
    area = patient_means(auc(frame), "auc").mean().mean()
    items.append(("AUC of clicks 1–5", number(area), "DSC, normalised; mean over structures"))
    made = frame.loc[frame["seconds"] > 0, "seconds"]
    if len(made):
        p50, p95 = made.quantile([0.5, 0.95])
        items.append(("Seconds a click", f"{p50:.2f}", f"median of {len(made)}; 95 % took at most {p95:.2f}"))
    return KeyFigures(tuple(items))


def _warning(frame: pd.DataFrame, run: RunInfo) -> tuple[str, ...]:
    cases = set(frame["case"])
    seen = sum(case in run.trained_on for case in cases)
    if not seen:
        return ()
    apart = ""
    if seen < len(cases):
        others, clicks = frame[~frame["case"].isin(run.trained_on)], report_tables.headline_clicks(frame)
        dsc = number(report_tables.structure_means(others, "dsc")[clicks].mean())
        apart = f"; the table of clicks tells them apart. Without them DSC is **{dsc}** after {clicks_text(clicks)}"
    return (f"**{seen} of {len(cases)} cases were trained on**, which flatters these figures{apart}.",)


def _head(frame: pd.DataFrame, skipped: Sequence[Skipped], run: RunInfo) -> tuple[str, ...]:
    runs = len(frame[["case", "structure", "seed"]].drop_duplicates())
    cases = [case_text(name, run.trained_on) for name in run.cases]
    patients, small = len(set(frame["patient"])), sum(one.voxels > 0 for one in skipped)
    lines = [
        f"weights: `{run.weights}`, version `{run.version}`, SHA-256 `{run.sha256}`",
        f"trained on: {_listed(_rare_first(run.trained_on)) or 'not said in the weights'}",
        *([f"data set: {paper.TITLES[run.dataset]}"] if run.dataset else []),
        f"cases: {_listed(cases)}",
        *([f"patients: {patients}"] if patients < frame["case"].nunique() else []),
        f"seeds: {', '.join(map(str, run.seeds))}",
        f"structures: {frame['structure'].nunique()}; runs (case, structure, seed): {runs}",
        *([f"left out as too small: {small} structures of cases, listed under Skipped"] if small else []),
        f"user: {USERS.get(run.user, run.user)}",
        f"scores: on the scan's own grid; NSD at a tolerance of {run.tolerance_mm:g} mm",
        "empty masks: one that stays empty scores 0; a structure that a case does not have is not clicked and does not "
        "count, so that no two empty masks meet",
        "means: over seeds, then a patient's cases, then patients, then structures; intervals: 95 %, by a bootstrap "
        "over patients",
        f"device: {run.device}",
        f"a click {'spreads from patch to patch' if run.expand else 'segments its own patch alone'}",
    ]
    return (*lines, f"command: `{run.command}`") if run.command else tuple(lines)


def _rare_first(names: Sequence[str]) -> list[str]:
    """Names of a long series (phantom_1, phantom_2, …) last, so that what is cut off is more of the same."""
    series = [re.sub(r"\d+", "", name) for name in names]
    sizes = Counter(series)
    return [name for _, name in sorted(zip(series, names), key=lambda pair: sizes[pair[0]])]


def _listed(names: Sequence[str]) -> str:
    left = len(names) - _MOST_NAMES
    return ", ".join([*names[:_MOST_NAMES], *([f"and {left} others"] if left > 0 else [])])


def _organ_notes(run: RunInfo) -> tuple[str, ...]:
    notes = [
        "NoC@85 and NoC@90: clicks until a DSC of 0.85 and 0.9, of those numbers that were scored; a run that never "
        "got there failed, and counts with its last click."
    ]
    if run.user != "deepest":
        notes.append("The paper's user clicks the deepest point of the error; this one does not.")
    return tuple(notes)


def _sources(published: Sequence[paper.Published]) -> list[tuple[str, str]]:
    """Method and source of the paper's means, each once."""
    return list(dict.fromkeys((row.method, row.source) for row in published if row.clicks and not row.structure))


def _tumours(frame: pd.DataFrame, names: Mapping[str, str], run: RunInfo) -> tuple[Section, ...]:
    tumours = frame[frame["structure"].map(is_tumour)]
    if tumours.empty:
        return ()
    each = (report_tables.score_table(tumours, score, name) for score, name in names.items())
    return (Section("Tumours", (report_tables.click_table(tumours, names, run.trained_on), *each)),)


def _structures(frame: pd.DataFrame, names: Mapping[str, str]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    clicks, first = report_tables.headline_clicks(frame), int(frame["clicks"].min())
    for score in ("dsc", "nsd"):
        text = f"{names[score]} by structure after {clicks_text(clicks)}, with 95 % intervals"
        text += f"; the tick is after {clicks_text(first)}" if first != clicks else ""
        blocks.append(Picture(f"structures_{score}.png", text))
    return (*blocks, *(report_tables.score_table(frame, score, name) for score, name in names.items()))


def examples(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The best, the median and the worst (case, structure) by the first user's DSC after the last click, each once.

    Returns:
        What they are: "Best", "Median", "Worst", or several of these where they are one.
    """
    drawn = frame[frame["seed"] == frame.groupby(["case", "structure"])["seed"].transform("min")]
    ends = drawn.sort_values("clicks", kind="stable").groupby(["case", "structure"], sort=True)["dsc"].last()
    order = list(ends.sort_values(kind="stable").index)
    places: dict[tuple[str, str], str] = {}
    for place, key in (("Best", order[-1]), ("Median", order[(len(order) - 1) // 2]), ("Worst", order[0])):
        places[key] = f"{places[key]} and {place.lower()}" if key in places else place
    return places


def _examples(frame: pd.DataFrame, pictures: Mapping[tuple[str, str], str], run: RunInfo) -> tuple[Section, ...]:
    """Those of the `examples` that there is a picture of."""
    shown = []
    for key, place in examples(frame).items():
        if key in pictures:
            own = frame[(frame["case"] == key[0]) & (frame["structure"] == key[1])]
            last = own[own["seed"] == own["seed"].min()].sort_values("clicks").iloc[-1]
            text = f"{place}: {key[1]} of {case_text(key[0], run.trained_on)}, "
            text += f"DSC {number(last['dsc'])} after {clicks_text(last['clicks'])}"
            shown.append(Picture(pictures[key], text, chart=False))
    if not shown:
        return ()
    of = frame[["case", "structure"]].drop_duplicates()
    return (Section("Best, median and worst", (f"By DSC, of {len(of)} structures of cases; first user.", *shown)),)


def _failures(frame: pd.DataFrame, run: RunInfo) -> tuple[Block, ...]:
    blocks: list[Block] = []
    target = report_tables.TARGETS[0]
    table, count = report_tables.failure_table(frame, target, run.trained_on)
    if not count:
        return (f"Every run reached a DSC of {target:g}.",)
    blocks.append(f"{count} runs never reached a DSC of {target:g}.")
    if count > len(table.rows):
        blocks.append(f"The {len(table.rows)} worst of them; results.csv has all.")
    return (*blocks, table)


def _network(frame: pd.DataFrame, run: RunInfo, cost: NetworkCost | None) -> tuple[Block, ...]:
    blocks: list[Block] = [report_tables.cost_table(cost, run.memory_mb)]
    if cost is None:
        blocks.append("Parameters and multiply-adds are left out: the weights of the run could not be read any more.")
    else:
        blocks.append(
            "Multiply-adds are those of all layers as they stand; on a CPU a session leaves out what no prompt reaches."
        )
    blocks.append(f"The paper's figures: {paper.COSTS[0].source}.")
    if run.memory_mb is not None:
        blocks.append("Memory is that of the GPU where one was used, else of the whole process, PyTorch with it.")
    blocks.append(f"Time on {run.device}; only clicks after which the mask was scored are counted.")
    return (*blocks, report_tables.time_table(frame))


def _paper(run: RunInfo, published: Sequence[paper.Published]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if run.dataset and not published:
        blocks.append(f"No figure of the paper on {paper.TITLES[run.dataset]} was found.")
    if not run.dataset:
        blocks.append("These data are not the paper's, so none of its scores stands beside ours.")
    if published and run.tolerance_mm != paper.TOLERANCE_MM:
        blocks.append(f"The paper's NSD is at {paper.TOLERANCE_MM:g} mm and left out beside ours.")
    if (automatic := report_tables.automatic_table(published)) is not None:
        blocks.append(automatic)
    return (*blocks, "Looked for in public sources, not found, and so left out:", Bullets(paper.NOT_FOUND))


def _skipped(skipped: Sequence[Skipped], run: RunInfo) -> tuple[Section, ...]:
    if not skipped:
        return ()
    table = Table(("case", "structure", "voxels"), tuple((s.case, s.structure, str(s.voxels)) for s in skipped))
    return (Section("Skipped", (f"Fewer than {run.min_voxels} voxels of {run.spacing_mm:g} mm.", table)),)
