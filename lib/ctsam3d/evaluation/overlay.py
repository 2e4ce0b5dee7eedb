"""Three slices through a click with mask and clicks drawn, as a radiologist is used to seeing them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from ctsam3d.data.files import atomic_path
from ctsam3d.volume import Click, Volume, check_click_ijk

SOFT_TISSUE_HU = (-160.0, 240.0)
MASK_COLOUR, POSITIVE_COLOUR, NEGATIVE_COLOUR = "#00b4ff", "#00e000", "#ff2020"
TARGET_COLOUR = "#ff9cf5"
DPI = 110

# On the display an index grows to the patient's Left, to Posterior and Inferior: columns to the right, rows down.
_DISPLAY_AXES, _LOW_ENDS, _HIGH_ENDS = "LPI", "RAS", "LPI"
_PANELS = {"axial": 2, "coronal": 1, "sagittal": 0}  # the display axis that a slice stands on


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice as it is shown: rows down, columns to the right.

    Attributes:
        hu, mask: (rows, columns).
        spacing_mm: of rows and of columns.
        ends: letters of the left, right, upper and lower edge, of the patient axes closest to the slice's.
        clicks: (row, column, positive, on), `on` for clicks in this very slice.
        target: (rows, columns), what the mask should be; None where that is not known.
    """

    name: str
    hu: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float]
    ends: tuple[str, str, str, str]
    clicks: tuple[tuple[int, int, bool, bool], ...]
    target: np.ndarray | None = None

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        return tuple(n * s for n, s in zip(self.hu.shape, self.spacing_mm))


def make_panels(
    volume: Volume, mask_ijk: np.ndarray, clicks: Sequence[Click], at_ijk, target_ijk: np.ndarray | None = None
) -> list[Panel]:
    """The axial, coronal and sagittal slice through a voxel: patient's right at the left, anterior up, superior up.

    A sagittal slice has anterior at the left. An oblique scan is shown along its own axes, each taken for the patient
    axis that it is closest to; nothing is resampled.

    Raises:
        TypeError, ValueError: `at_ijk` is no voxel of the scan, or the mask or the target has another shape.
    """
    at_ijk = check_click_ijk(at_ijk, volume.shape_ijk, "at_ijk")
    for name, array_ijk in (("mask_ijk", mask_ijk), ("target_ijk", target_ijk)):
        if array_ijk is not None and np.shape(array_ijk) != volume.shape_ijk:
            raise ValueError(f"{name} must have the scan's shape {volume.shape_ijk}, got {np.shape(array_ijk)}")
    turn = ornt_transform(io_orientation(volume.affine_ras_mm), axcodes2ornt(_DISPLAY_AXES))
    hu, mask = apply_orientation(volume.array_ijk, turn), apply_orientation(mask_ijk, turn)
    target = None if target_ijk is None else apply_orientation(target_ijk, turn)
    at = _turned(at_ijk, turn, volume.shape_ijk)
    points = [(_turned(click.ijk, turn, volume.shape_ijk), click.positive) for click in clicks]
    spacing_mm = [0.0, 0.0, 0.0]
    for axis_ijk, (axis, _) in enumerate(turn):
        spacing_mm[int(axis)] = volume.spacing_ijk_mm[axis_ijk]
    panels = []
    for name, across in _PANELS.items():
        column, row = (axis for axis in range(3) if axis != across)
        panels.append(
            Panel(
                name,
                np.take(hu, at[across], axis=across).T,
                np.take(mask, at[across], axis=across).T > 0,
                (spacing_mm[row], spacing_mm[column]),
                (_LOW_ENDS[column], _HIGH_ENDS[column], _LOW_ENDS[row], _HIGH_ENDS[row]),
                tuple((p[row], p[column], positive, p[across] == at[across]) for p, positive in points),
                None if target is None else np.take(target, at[across], axis=across).T > 0,
            )
        )
    return panels


def draw_overlay(
    path: str | os.PathLike,
    volume: Volume,
    mask_ijk: np.ndarray,
    clicks: Sequence[Click],
    at_ijk,
    title: str = "",
    target_ijk: np.ndarray | None = None,
) -> Path:
    """Write a PNG of the three slices through a voxel; atomically.

    Soft-tissue window, mask in blue, positive clicks as green +, negative ones as red x; clicks in other slices are
    small and pale. What the mask should be is a dashed pink line.

    Args:
        mask_ijk: (I, J, K), foreground above 0.
        at_ijk: voxel index in the file's own array order.
        target_ijk: (I, J, K), what the mask should be, where that is known.

    Raises:
        TypeError, ValueError: see `make_panels`; or `path` does not end with .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end with .png, got {path}")
    panels = make_panels(volume, mask_ijk, clicks, at_ijk, target_ijk)
    width_mm, height_mm = sum(p.size_mm[1] for p in panels), max(p.size_mm[0] for p in panels)
    width_inches = 14.0
    figure = Figure(
        figsize=(width_inches, float(np.clip(width_inches * height_mm / width_mm, 2.5, 12.0)) + 0.8),
        facecolor="black",
        layout="constrained",
    )
    axes = figure.subplots(1, len(panels), width_ratios=[p.size_mm[1] for p in panels], squeeze=False)[0]
    for ax, panel in zip(axes, panels):
        _draw_panel(ax, panel)
    at = ", ".join(str(int(v)) for v in at_ijk)
    figure.suptitle(f"{title} · voxel ({at})" if title else f"voxel ({at})", color="white", fontsize=12)
    if target_ijk is not None:
        figure.supxlabel("blue: mask · dashed pink: reference", color="0.8", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return path


def _draw_panel(ax, panel: Panel) -> None:
    low, high = SOFT_TISSUE_HU
    shown = {"aspect": panel.spacing_mm[0] / panel.spacing_mm[1], "interpolation": "nearest"}
    ax.imshow(panel.hu, cmap="gray", vmin=low, vmax=high, **shown)
    ax.imshow(np.ma.masked_equal(panel.mask, False), cmap=ListedColormap([MASK_COLOUR]), alpha=0.3, **shown)
    _outline(ax, panel.mask, MASK_COLOUR, linewidths=1.2)
    if panel.target is not None:
        _outline(ax, panel.target, TARGET_COLOUR, linewidths=1.2, linestyles="dashed")
    for row, column, positive, on in sorted(panel.clicks, key=lambda click: click[3]):  # those in the slice on top
        ax.plot(
            column,
            row,
            marker="+" if positive else "x",
            color=POSITIVE_COLOUR if positive else NEGATIVE_COLOUR,
            markersize=13 if on else 7,
            markeredgewidth=2.2 if on else 1.2,
            alpha=1.0 if on else 0.5,
            linestyle="none",
        )
    ax.set_xlim(-0.5, panel.hu.shape[1] - 0.5)
    ax.set_ylim(panel.hu.shape[0] - 0.5, -0.5)
    ax.set_title(panel.name, color="white", fontsize=11, pad=18)
    ax.set_axis_off()
    # Outside the slice: left, right, above, below.
    places = (((0, 0.5), (-8, 0)), ((1, 0.5), (8, 0)), ((0.5, 1), (0, 8)), ((0.5, 0), (0, -8)))
    for letter, (edge, points) in zip(panel.ends, places):
        ax.annotate(
            letter,
            edge,
            points,
            "axes fraction",
            "offset points",
            ha="center",
            va="center",
            color="#ffd75e",
            fontsize=11,
        )


def _outline(ax, mask: np.ndarray, colour: str, **style) -> None:
    if not mask.any() or min(mask.shape) < 2:
        return
    rows, columns = mask.shape
    edged = np.pad(mask.astype(float), 1)  # closed where the mask ends at the border of the scan
    ax.contour(np.arange(-1, columns + 1), np.arange(-1, rows + 1), edged, levels=[0.5], colors=colour, **style)


def _turned(index_ijk, turn: np.ndarray, shape_ijk: tuple[int, int, int]) -> tuple[int, int, int]:
    """A voxel index of the file on the display's axes."""
    out = [0, 0, 0]
    for value, n, (axis, direction) in zip(index_ijk, shape_ijk, turn):
        out[int(axis)] = int(value) if direction > 0 else n - 1 - int(value)
    return tuple(out)
