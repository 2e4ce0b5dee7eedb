"""One PNG a case for quick looking: axial, coronal and sagittal slices, bare and with all labels in colour."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ctsam3d.data.body import turned, turned_spacing, zyx_from_ijk
from ctsam3d.data.files import atomic_path
from ctsam3d.data.labels import VALUE_OF
from ctsam3d.volume import Volume

SOFT_TISSUE_HU = (-160.0, 240.0)
TISSUE_COLOURS = {"skeletal_muscle": "#c83232", "visceral_fat": "#ffd228", "subcutaneous_fat": "#3c8cff"}
_OPACITY, _DPI, _WIDTH_INCHES = 0.5, 100, 14.0


def label_colours() -> ListedColormap:
    """256 colours: none for 0, those of `TISSUE_COLOURS`, and twenty that take turns for every other label.

    Not those of `ctsam3d.data.label_colours`, among which bowel looks like fat, and muscles like muscle.
    """
    turns = colormaps["tab20b"]
    colours = [(0.0, 0.0, 0.0, 0.0), *(turns((7 * value) % 20) for value in range(1, 256))]
    for name, colour in TISSUE_COLOURS.items():
        colours[VALUE_OF[name]] = to_rgba(colour)
    return ListedColormap(colours)


def draw_qa_sheet(
    path: str | os.PathLike, volume: Volume, labels_ijk: np.ndarray, body_ijk: np.ndarray, title: str
) -> Path:
    """Writes three slices through the middle of the body as a PNG; atomically.

    Patient's right is at the left of axial and coronal slices, anterior at the left of sagittal ones; an oblique scan
    is shown along its own axes. The outline is the body region's.

    Args:
        labels_ijk: (I, J, K) uint8 with the tissues as 105, 106, 107.
        body_ijk: (I, J, K) bool.

    Raises:
        ValueError: an array has another shape than the scan.
    """
    for name, array in (("labels_ijk", labels_ijk), ("body_ijk", body_ijk)):
        if array.shape != volume.shape_ijk:
            raise ValueError(f"{name} must have the scan's shape {volume.shape_ijk}, got {array.shape}")
    turn = zyx_from_ijk(volume.affine_ras_mm)
    arrays = [turned(array, turn) for array in (volume.array_ijk, labels_ijk, body_ijk)]
    spacing_mm = turned_spacing(volume.spacing_ijk_mm, turn)
    at = _middle(arrays[2])
    sizes_mm = [s * n for s, n in zip(spacing_mm, arrays[0].shape)]
    widths, heights = (sizes_mm[2], sizes_mm[2], sizes_mm[1]), (sizes_mm[1], sizes_mm[0], sizes_mm[0])
    height_inches = float(np.clip(2 * _WIDTH_INCHES * max(heights) / sum(widths), 4.0, 18.0)) + 1.2
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), facecolor="black", layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=widths, squeeze=False)
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        planes = [_plane(array, axis, at[axis]) for array in arrays]
        row, column = (a for a in range(3) if a != axis)
        aspect = spacing_mm[row] / spacing_mm[column]
        axes[0, axis].set_title(name, color="white", fontsize=11)
        for ax, labelled in zip(axes[:, axis], (False, True)):
            _draw(ax, planes, aspect, labelled)
    figure.suptitle(title, color="white", fontsize=12)
    patches = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in TISSUE_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, facecolor="black", labelcolor="white")
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    return Path(path)


def _middle(body_zyx: np.ndarray) -> tuple[int, ...]:
    """Index of the middle of the body: half of it lies before, half after, along each axis."""
    if not body_zyx.any():
        return tuple(n // 2 for n in body_zyx.shape)
    sums = (np.cumsum(body_zyx.sum(axis=tuple(b for b in range(3) if b != a))) for a in range(3))
    return tuple(int(np.searchsorted(total, total[-1] / 2)) for total in sums)


def _plane(array_zyx: np.ndarray, axis: int, index: int) -> np.ndarray:
    plane = np.take(array_zyx, index, axis=axis)
    return plane if axis == 0 else plane[::-1]  # superior is up


def _draw(ax, planes, aspect: float, labelled: bool) -> None:
    hu, labels, body = planes
    low, high = SOFT_TISSUE_HU
    shown = {"aspect": aspect, "interpolation": "nearest"}
    ax.imshow(hu, cmap="gray", vmin=low, vmax=high, **shown)
    if labelled:
        ax.imshow(labels, cmap=label_colours(), vmin=0, vmax=255, alpha=_OPACITY * (labels > 0), **shown)
        if body.any() and min(body.shape) > 1:
            ax.contour(np.asarray(body, float), levels=[0.5], colors="white", linewidths=0.6)
    ax.set_axis_off()
