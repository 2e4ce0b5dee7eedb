"""The figures of a report, from the frame of results.csv: boxes by group, scores against clicks, bars by structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from ctsam3d.evaluation import paper
from ctsam3d.evaluation.report_groups import grouped
from ctsam3d.evaluation.report_tables import (
    bounds,
    case_means,
    clicks_text,
    headline_clicks,
    structure_bounds,
    structure_means,
)

COLOUR, PALE, ACCENT = "#0064b4", "#9dc3e6", "#d9480f"
_GROUP_COLOURS = (*colormaps["Dark2"].colors, *colormaps["Set1"].colors)
DPI = 140
_ONE_COLUMN = 40  # structures; more bars stand in two columns
_WIDTH = 8.0  # inches; text of 9 points is then still read on a phone, where the page scrolls wide figures


def group_boxes(frame: pd.DataFrame, names: Mapping[str, str], groups: Mapping[str, tuple[str, ...]]) -> Figure:
    """The paper's Fig. 3: the spread of scores over structures and cases, by group.

    Boxes from quartile to quartile, whiskers to the furthest value within 1.5 times that, every value as a dot.

    Args:
        names: the scores to show, a panel each, with their names.
    """
    clicks, members = headline_clicks(frame), grouped(frame["structure"], groups)
    figure = Figure(figsize=(_WIDTH, 1.1 + 0.42 * len(members)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    rng = np.random.default_rng(0)  # only spreads the dots
    for ax, (score, name) in zip(axes, names.items()):
        means = case_means(frame, score)[clicks]
        values = [means.loc[structures].dropna().to_numpy() for structures in members.values()]
        places = np.arange(len(values))
        ax.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": PALE, "edgecolor": COLOUR},
            medianprops={"color": ACCENT, "linewidth": 2},
            whiskerprops={"color": COLOUR},
            capprops={"color": COLOUR},
        )
        for place, group in zip(places, values):
            spread = place + rng.uniform(-0.18, 0.18, len(group))
            ax.plot(group, spread, ".", color="0.25", markersize=3, alpha=min(0.7, 30 / max(len(group), 1)))
        ax.set(xlim=(-0.02, 1.02), title=f"{name} after {clicks_text(clicks)}")
        ax.set_yticks(places, [f"{group} ({len(v)})" for group, v in zip(members, values)])
        _grid(ax, "x")
    axes[0].invert_yaxis()
    return figure


def click_curves(
    frame: pd.DataFrame,
    names: Mapping[str, str],
    groups: Mapping[str, tuple[str, ...]],
    published: Sequence[paper.Published] = (),
) -> Figure:
    """The paper's Fig. 4: scores against clicks; the mean over structures with its 95 % interval, and each group.

    Args:
        published: the paper's means on the same data, shown as stars.
    """
    members = grouped(frame["structure"], groups)
    figure = Figure(figsize=(_WIDTH, 4.6 + 0.2 * math.ceil(len(members) / 3)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, (score, name) in zip(axes, names.items()):
        means, intervals = structure_means(frame, score), bounds(frame, score)
        low, high = np.array([intervals[n] for n in means]).T
        ax.fill_between(means.columns, low, high, color="0.5", alpha=0.25, linewidth=0)
        ax.plot(means.columns, means.mean(), color="0.1", marker="o", linewidth=3, label="mean over structures")
        for colour, (group, structures) in zip(cycle(_GROUP_COLOURS), members.items() if len(members) > 1 else ()):
            ax.plot(means.columns, means.loc[structures].mean(), color=colour, marker=".", linewidth=1.2, label=group)
        _stars(ax, score, published)
        ax.set(ylim=(-0.02, 1.02), xticks=means.columns, xlabel="clicks", title=name)
        _grid(ax, "both")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return figure


def _stars(ax, score: str, published: Sequence[paper.Published]) -> None:
    found = [p for p in published if not p.structure and p.clicks and p.score(score) is not None]
    for index, method in enumerate(dict.fromkeys(p.method for p in found)):
        own = [p for p in found if p.method == method]
        colour = ACCENT if method == paper.METHOD else f"{0.3 + 0.2 * index:.1f}"
        values = [p.score(score) for p in own]
        ax.plot([p.clicks for p in own], values, "*", color=colour, markersize=13, label=f"{method}, paper")


def structure_bars(frame: pd.DataFrame, score: str, name: str, groups: Mapping[str, tuple[str, ...]]) -> Figure:
    """The paper's supplementary Fig. 4 and 5: a bar per structure, with its 95 % interval.

    A tick marks the score after the smallest number of clicks.
    """
    clicks, first = headline_clicks(frame), int(frame["clicks"].min())
    means, intervals = structure_means(frame, score), structure_bounds(frame, score, clicks)
    columns = _columns(grouped(means.index, groups))
    lowest = max(max(places.values()) for places in columns)
    figure = Figure(figsize=(_WIDTH + 2 * (len(columns) - 1), 1.2 + 0.2 * lowest), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, places in zip(axes, columns):
        order, at = list(places), list(places.values())
        bars = {"height": 0.75, "color": PALE, "edgecolor": COLOUR, "linewidth": 0.6}
        ax.barh(at, means.loc[order, clicks], label=f"after {clicks_text(clicks)}", **bars)
        low, high = np.array([intervals[structure] for structure in order]).T
        ax.hlines(at, low, high, color=COLOUR, linewidth=1.6)
        if first != clicks:
            tick = {"color": ACCENT, "markersize": 8, "markeredgewidth": 2, "label": f"after {clicks_text(first)}"}
            ax.plot(means.loc[order, first], at, "|", **tick)
        ax.set_yticks(at, order, fontsize=8)
        ax.set(xlim=(0, 1.02), ylim=(lowest + 0.8, -0.8), xlabel=name)
        _grid(ax, "x")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    return figure


def _columns(members: Mapping[str, Sequence[str]]) -> list[dict[str, float]]:
    """Places of structures from the top, with a gap between groups; in two columns where they are many."""
    total, taken = sum(map(len, members.values())), 0
    columns: list[dict[str, float]] = [{}]
    place = 0.0
    for structures in members.values():
        if total > _ONE_COLUMN and len(columns) == 1 and taken >= total / 2:
            columns.append({})
            place = 0.0
        columns[-1] |= {structure: place + index for index, structure in enumerate(structures)}
        place += len(structures) + 0.8
        taken += len(structures)
    return columns


def _grid(ax, axis: str) -> None:
    ax.grid(axis=axis, alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.title.set_fontsize(10)
