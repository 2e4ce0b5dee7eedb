"""The tables of a report, from the frame of results.csv; the paper's figures beside ours where it has them.

A frame has a row per run (case, structure, seed) and number of clicks. Seeds are averaged first, then a patient's
cases, then the patients who have a structure, then the structures, so that neither a common structure nor a patient
with many counts more. Intervals are those of these means: 95 %, by a bootstrap over patients.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ctsam3d.evaluation import paper
from ctsam3d.evaluation.report_cost import NetworkCost
from ctsam3d.evaluation.report_document import Table
from ctsam3d.evaluation.report_groups import grouped, in_order
from ctsam3d.evaluation.statistics import auc, costs, interval, noc, patient_means
from ctsam3d.segmenter import click_passes

TARGETS = (0.85, 0.9)  # of NoC
MAX_FAILURES = 40  # listed
_HEADLINE_CLICKS = 5
_RUN = ["case", "structure", "seed"]
_NO_INTERVAL = (math.nan, math.nan)


def headline_clicks(frame: pd.DataFrame) -> int:
    """The number of clicks that tables and figures with one number show: 5, else the largest that was scored."""
    counts = set(frame["clicks"])
    return _HEADLINE_CLICKS if _HEADLINE_CLICKS in counts else int(max(counts))


def score_names(frame: pd.DataFrame, tolerance_mm: float) -> dict[str, str]:
    """What the frame's scores are called, by column; NSD at 2 mm only where it is there and not the first one."""
    names = {"dsc": "DSC", "nsd": f"NSD at {tolerance_mm:g} mm"}
    if "nsd_2mm" in frame and frame["nsd_2mm"].notna().any() and tolerance_mm != 2:
        names["nsd_2mm"] = "NSD at 2 mm"
    return names


def case_means(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean over seeds: a row per (structure, case), a column per number of clicks."""
    means = frame.groupby(["structure", "case", "clicks"], sort=False)[score].mean()
    return means.unstack("clicks").sort_index(axis=1)


def structure_means(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean over patients: a row per structure, in the order of the labels, a column per number of clicks."""
    means = {clicks: patient_means(rows, score).mean() for clicks, rows in frame.groupby("clicks")}
    return pd.DataFrame(means).rename_axis(columns="clicks").reindex(in_order(frame["structure"]))


def bounds(frame: pd.DataFrame, score: str) -> dict[int, tuple[float, float]]:
    """The 95 % interval of the mean over structures after each number of clicks; NaN with fewer than two patients."""
    found = {int(clicks): interval(rows, score) for clicks, rows in frame.groupby("clicks")}
    return {clicks: (one.low, one.high) for clicks, one in found.items()}


def structure_bounds(frame: pd.DataFrame, score: str, clicks: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval of the mean of each structure."""
    rows = frame[frame["clicks"] == clicks]
    return {structure: bounds(own, score)[clicks] for structure, own in rows.groupby("structure")}


def by_case(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean over a case's structures: a row per case, a column per number of clicks."""
    return case_means(frame, score).groupby(level="case").mean().reindex(frame["case"].unique())


def number(value: float | None, digits: int = 3) -> str:
    """A figure of a table; a dash for none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def span(low_high: tuple[float, float], digits: int = 3) -> str:
    """An interval; a dash where there is none."""
    low, high = low_high
    return "–" if not math.isfinite(low) else f"{low:.{digits}f} to {high:.{digits}f}"


def case_text(case: str, trained_on: Collection[str]) -> str:
    """The name of a case, with a mark where it was trained on."""
    return f"{case} (trained on)" if case in trained_on else case


def clicks_text(count: int) -> str:
    return f"{count} click{'s' * (count > 1)}"


def organ_table(
    frame: pd.DataFrame,
    names: Mapping[str, str],
    trained_on: Collection[str],
    published: Sequence[paper.Published] = (),
) -> Table:
    """The paper's Table 1: each structure after `headline_clicks`, with what it took to get to DSC 0.85 and 0.9.

    Args:
        names: see `score_names`.
        trained_on: names of cases.
        published: the paper's figures on this data set.
    """
    clicks = headline_clicks(frame)
    scores = {score: structure_means(frame, score)[clicks] for score in names}
    dsc = case_means(frame, "dsc")[clicks]
    needed = {target: noc(frame, target) for target in TARGETS}
    areas = patient_means(auc(frame), "auc").mean()
    intervals = structure_bounds(frame, "dsc", clicks)
    theirs = {p.structure: p for p in published if p.structure and p.clicks == clicks and p.method == paper.METHOD}
    rows = []
    for structure in scores["dsc"].index:
        cases = list(dsc[structure].index)
        seen = sum(case in trained_on for case in cases)
        cells = [structure, f"{len(cases)} ({seen} trained on)" if seen else str(len(cases))]
        cells += [number(scores["dsc"][structure]), span(intervals[structure])]
        cells += [number(scores[score][structure]) for score in names if score != "dsc"]
        cells += [_noc_cell(table[table["structure"] == structure]) for table in needed.values()]
        cells += [number(areas[structure])]
        if theirs:
            row = theirs.get(structure)
            cells += [number(row and row.score("dsc")), number(row and row.score("nsd"))]
        rows.append(tuple(cells))
    header = ["structure", "cases", "DSC", "95 % interval", *(name for key, name in names.items() if key != "dsc")]
    header += [*(f"NoC@{100 * target:.0f}" for target in TARGETS), "AUC of clicks 1–5"]
    header += ["DSC, paper", "NSD, paper"] if theirs else []
    return Table(tuple(header), tuple(rows), f"After {clicks_text(clicks)}.")


def _noc_cell(needed: pd.DataFrame) -> str:
    failed = int(needed["failed"].sum())
    return f"{needed['clicks'].mean():.1f}" + (f" ({failed} of {len(needed)} failed)" if failed else "")


def click_table(
    frame: pd.DataFrame,
    names: Mapping[str, str],
    trained_on: Collection[str],
    published: Sequence[paper.Published] = (),
) -> Table:
    """The paper's Table 2: each score after each number of clicks, also apart for cases that were trained on."""
    counts = sorted(frame["clicks"].unique())
    seen = frame["case"].isin(trained_on)
    parts = {"": frame}
    if seen.any() and not seen.all():
        parts |= {", cases not trained on": frame[~seen], ", cases trained on": frame[seen]}
    rows = []
    for score, name in names.items():
        for suffix, part in parts.items():
            means, intervals = structure_means(part, score).mean(), bounds(part, score)
            rows.append((f"**{name}**{suffix}", *(f"**{number(means.get(n))}**" for n in counts)))
            if any(math.isfinite(low) for low, _ in intervals.values()):
                rows.append((f"95 % interval{suffix}", *(span(intervals.get(n, _NO_INTERVAL)) for n in counts)))
    rows += _published_rows(published, counts, names)
    return Table(("", *map(clicks_text, counts)), tuple(rows), "Mean over structures.")


def _published_rows(published: Sequence[paper.Published], counts: Sequence[int], names: Mapping[str, str]) -> list:
    rows = []
    for score in ("dsc", "nsd"):
        found: dict[str, dict[int, float]] = {}
        for row in published:
            if not row.structure and row.clicks in counts and row.score(score) is not None:
                found.setdefault(row.method, {})[row.clicks] = row.score(score)
        for method, values in found.items():
            rows.append((f"{names[score]}, {method} (paper)", *(number(values.get(n)) for n in counts)))
    return rows


def automatic_table(published: Sequence[paper.Published]) -> Table | None:
    """The paper's supplementary Table 2: methods that take no clicks; None where it is not here."""
    rows = tuple(
        (f"{p.method}{': ' + p.structure if p.structure else ''} ({p.source})", number(p.dsc), number(p.nsd))
        for p in published
        if p.clicks is None
    )
    return Table(("", "DSC", "NSD"), rows) if rows else None


def score_table(frame: pd.DataFrame, score: str, name: str) -> Table:
    """One score of each structure after each number of clicks, and the mean over structures."""
    means = structure_means(frame, score)
    rows = [(structure, *map(number, means.loc[structure])) for structure in means.index]
    rows.append(("**mean over structures**", *(f"**{number(value)}**" for value in means.mean())))
    return Table(("structure", *map(clicks_text, means.columns)), tuple(rows), name)


def group_table(frame: pd.DataFrame, names: Mapping[str, str], groups: Mapping[str, tuple[str, ...]]) -> Table:
    """The figures behind the boxplots: median and quartiles over (structure, case), by group."""
    clicks = headline_clicks(frame)
    values = {score: case_means(frame, score)[clicks] for score in names}
    rows = []
    for group, members in grouped(frame["structure"], groups).items():
        cells = [group, str(len(members)), str(len(values["dsc"].loc[members]))]
        for score in names:
            low, middle, high = values[score].loc[members].quantile([0.25, 0.5, 0.75])
            cells.append("–" if math.isnan(middle) else f"{middle:.3f} ({low:.3f} to {high:.3f})")
        rows.append(tuple(cells))
    header = ("group", "structures", "structure × case", *(f"{name}, median (quartiles)" for name in names.values()))
    return Table(header, tuple(rows), f"After {clicks_text(clicks)}.")


def case_table(frame: pd.DataFrame, trained_on: Collection[str]) -> Table:
    """DSC of each case, the mean over its structures, after each number of clicks."""
    means, counts = by_case(frame, "dsc"), frame.groupby("case", sort=False)["structure"].nunique()
    rows = []
    for case in means.index:
        rows.append((case_text(case, trained_on), str(counts[case]), *map(number, means.loc[case])))
    return Table(("case", "structures", *map(clicks_text, means.columns)), tuple(rows), "DSC, mean over structures.")


def failure_table(
    frame: pd.DataFrame, target: float, trained_on: Collection[str] = (), most: int = MAX_FAILURES
) -> tuple[Table, int]:
    """The runs that never reached a DSC, the worst first, and how many there are.

    Args:
        trained_on: names of cases.
        most: rows of the table.
    """
    found = noc(frame, target)
    found = found[found["failed"]]
    ends = frame.sort_values("clicks", kind="stable").groupby(_RUN, sort=False)["dsc"].agg(["last", "max"])
    listed = found.join(ends, on=_RUN).sort_values(["last", *_RUN], kind="stable").head(most)
    rows = tuple(
        (case_text(r.case, trained_on), r.structure, str(r.seed), str(r.clicks), number(r.last), number(r.max))
        for r in listed.itertuples()
    )
    return Table(("case", "structure", "seed", "clicks", "DSC at the end", "best DSC on the way"), rows), len(found)


def time_table(frame: pd.DataFrame) -> Table:
    """Seconds of first and later clicks that were made, and the patches of the masks after them."""
    rows = []
    for name, cost in costs(frame).iterrows():
        seconds = (f"{cost[f'seconds_p{p}']:.2f}" for p in (50, 95))
        patches = (f"{cost[f'patches_p{p}']:.0f}" for p in (50, 95))
        rows.append((name, *seconds, *patches, f"{cost['count']:.0f}"))
    return Table(("", "seconds, p50", "seconds, p95", "patches, p50", "patches, p95", "clicks"), tuple(rows))


def cost_table(cost: NetworkCost | None, memory_mb: float | None) -> Table:
    """The paper's supplementary Table 4: parameters and multiply-adds of one patch, and memory.

    Args:
        cost: None where the weights could not be read any more.
        memory_mb: of the run, where it is known.
    """
    theirs = {row.network: row for row in paper.COSTS}

    def row(what: str, own: int | None, unit: float, published: float | None = None) -> tuple[str, str, str]:
        return what, _scaled(own, unit), _scaled(published, unit)

    s_parameters = cost and cost.encoder_parameters + cost.decoder_parameters
    rows = (
        row("S: parameters, millions", s_parameters, 1e6, theirs["S"].parameters),
        row("P: parameters, millions", cost and cost.proposer_parameters, 1e6, theirs["P"].parameters),
        row("S: multiply-adds of a patch, 10⁹", cost and cost.encode + cost.decode, 1e9, theirs["S"].multiply_adds),
        row("of that the encoder, once a patch", cost and cost.encode, 1e9),
        row("of that the decoder, each pass of a click", cost and cost.decode, 1e9),
        row("P: multiply-adds of a neighbour, 10⁹", cost and cost.propose, 1e9, theirs["P"].multiply_adds),
        ("passes of the decoder a click", str(click_passes(cost.feedback)) if cost else "–", "–"),
        ("most memory of the run, MB", number(memory_mb, 0), "–"),
    )
    preset = "" if cost is None else " (no preset)" if cost.preset == "own" else f" ({cost.preset})"
    return Table(("", f"ours{preset}", f"{paper.METHOD} in the paper"), rows)


def _scaled(value: float | None, unit: float) -> str:
    if value is None:
        return "–"
    return f"{value / unit:.1f}" if value >= unit else f"{value / unit:.2g}"
