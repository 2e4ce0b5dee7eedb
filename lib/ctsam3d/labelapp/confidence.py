"""How sure the model is of a mask, and the voxel where it is least so: the next place to look."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ctsam3d.acquisition import predicted_quality
from ctsam3d.session import Session
from ctsam3d.volume import Box

AROUND_VOXELS = 3  # of the model grid: single voxels at a border are always unsure, a wide band is not
CLICKED_VOXELS = 5  # around a click, where somebody has looked already
UNSURE = (0.2, 0.8)  # probabilities in between


def confidence(session: Session) -> dict:
    """The summary for a reply.

    Returns:
        ``quality`` (predicted DSC, see `acquisition.predicted_quality`), ``unsure`` (share of the mask and of what may
        belong to it, probability from 0.2, whose probability is below 0.8), and ``least_sure``: the voxel [i, j, k] of
        the scan with the widest unsure surroundings, away from clicks, its probability, and what a click there would
        have to be for the mask to change; None where nothing is unsure.
    """
    box_zyx = Box((0, 0, 0), (0, 0, 0))
    for patch in session.state.patches:
        box_zyx = box_zyx.union(patch.box_zyx)
    if box_zyx.empty:
        return {"quality": None, "unsure": None, "least_sure": None}
    probability = session.probability_zyx(box_zyx)
    likely = probability >= UNSURE[0]
    unsure = likely & (probability < UNSURE[1])
    share = np.count_nonzero(unsure) / max(1, np.count_nonzero(likely))
    return {
        "quality": round(predicted_quality(probability), 4),
        "unsure": round(share, 4),
        "least_sure": _least_sure(session, probability, box_zyx),
    }


def least_sure_zyx(probability: np.ndarray, clicked_zyx) -> tuple[int, int, int] | None:
    """The voxel of an array (D, H, W) around which the mean of 4 p (1 - p) is largest; None where it is 0 throughout.

    Args:
        clicked_zyx: voxels; within `CLICKED_VOXELS` of one, nothing is taken.
    """
    doubt = ndimage.uniform_filter(4 * probability * (1 - probability), 2 * AROUND_VOXELS + 1, mode="nearest")
    doubt = doubt.astype(np.float64)
    for click in clicked_zyx:
        doubt[tuple(slice(max(0, v - CLICKED_VOXELS), max(0, v + CLICKED_VOXELS + 1)) for v in click)] = 0
    place = int(doubt.argmax())
    if doubt.flat[place] <= 1e-6:
        return None
    return tuple(int(v) for v in np.unravel_index(place, doubt.shape))


def _least_sure(session: Session, probability: np.ndarray, box_zyx: Box) -> dict | None:
    clicked = [session.grid.voxel_zyx(click.ijk) for click in session.clicks]
    place = least_sure_zyx(probability, [tuple(v - a for v, a in zip(voxel, box_zyx.start)) for voxel in clicked])
    if place is None:
        return None
    voxel = np.add(place, box_zyx.start)
    ijk = session.grid.ijk_from_zyx[:3, :3] @ voxel + session.grid.ijk_from_zyx[:3, 3]
    inside = [int(min(max(round(v), 0), n - 1)) for v, n in zip(ijk, session.volume.shape_ijk)]
    value = float(probability[place])
    return {"ijk": inside, "probability": round(value, 4), "click": "negative" if value > 0.5 else "positive"}
