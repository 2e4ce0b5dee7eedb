"""Scores that decide whether weights are served: simulated clicks on the session that serves, bounded in cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ctsam3d.data.io import Case
from ctsam3d.data.phantom_sets import PhantomSpec
from ctsam3d.evaluation.simulate import Result, simulate, user_rng
from ctsam3d.segmenter import Segmenter

CLICKS = (1, 3, 5)
MIN_VOXELS = 200  # of the model grid; a smaller structure's DSC hangs on single voxels
MAX_STRUCTURES = 4  # of a case
SEEDS = 2  # users who click each structure


def _spec(seed: int, region: str, *structures: str) -> PhantomSpec:
    return PhantomSpec(seed, region, (1.5, 1.5, 2.0), structures)


# What must not be forgotten: structures of different kinds and sizes, on seeds that no training draws from.
REFERENCE = (
    _spec(
        *(9000, "abdomen", "liver", "spleen", "kidney_right", "pancreas", "vertebrae_L2"),
        *("stomach", "inferior_vena_cava", "gallbladder"),
    ),
    _spec(
        *(9001, "chest", "heart_ventricle_left", "aorta", "lung_upper_lobe_left", "rib_left_5"),
        *("trachea", "scapula_right", "vertebrae_T8"),
    ),
    _spec(
        *(9002, "pelvis", "urinary_bladder", "gluteus_medius_left", "iliac_artery_left"),
        *("femur_right", "sacrum", "iliopsoas_left", "colon"),
    ),
)


@dataclass(frozen=True)
class Scores:
    """Mean DSC over structures and users after each number of clicks.

    Attributes:
        clicks, dsc: of one length, by increasing number of clicks.
        cases: that had a structure to click.
        runs: structures times users.
    """

    clicks: tuple[int, ...]
    dsc: tuple[float, ...]
    cases: int
    runs: int

    @property
    def mean(self) -> float:
        """The score of the gate: the mean over structures and numbers of clicks."""
        return fmean(self.dsc)

    @property
    def by_clicks(self) -> dict[str, float]:
        """For reports: DSC by number of clicks."""
        return {str(number): round(dsc, 4) for number, dsc in zip(self.clicks, self.dsc)}


def validate(
    segmenter: Segmenter,
    cases: Iterable[Case],
    clicks: Sequence[int] = CLICKS,
    seeds: int = SEEDS,
    max_structures: int = MAX_STRUCTURES,
    min_voxels: int = MIN_VOXELS,
) -> Scores | None:
    """Let simulated users click through some structures of each case, the same ones for any weights.

    The sessions do not expand, which would take many times as long; P is measured by `proposal_score`.

    Args:
        cases: taken one by one, so that one at a time is in memory.
        seeds: users per structure, with the seeds 0 to `seeds` - 1.
        max_structures: of a case; drawn by its name where it has more.
        min_voxels: structures with fewer voxels at the model's spacing are left out.

    Returns:
        None where no structure of any case is large enough.

    Raises:
        ValueError: a label map that cannot be read.
    """
    results: list[Result] = []
    for case in cases:
        for structure, target_ijk in _chosen(case, segmenter.info.spacing_mm, max_structures, min_voxels):
            for seed in range(seeds):
                session = segmenter.session(case.volume, expand=False)
                results += simulate(session, target_ijk, case.name, structure, seed, clicks)
    return summarise(results) if results else None


def summarise(results: Sequence[Result]) -> Scores:
    """The means of the results of many users, at least one, by number of clicks."""
    counts = sorted({result.clicks for result in results})
    dsc = {number: [result.dsc for result in results if result.clicks == number] for number in counts}
    means = tuple(fmean(dsc[number]) for number in counts)
    return Scores(tuple(counts), means, len({result.case for result in results}), len(dsc[counts[0]]))


def _chosen(case: Case, spacing_mm: float, limit: int, min_voxels: int) -> Iterator[tuple[str, np.ndarray]]:
    """Up to `limit` structures of a case that are large enough, with their masks (I, J, K)."""
    voxel_mm3 = abs(float(np.linalg.det(case.volume.affine_ras_mm[:3, :3])))
    found = 0
    for index in user_rng(0, case.name, "structures").permutation(len(case.names)):
        mask_ijk = case.mask(case.names[index])
        if np.count_nonzero(mask_ijk) * voxel_mm3 / spacing_mm**3 >= min_voxels:
            yield case.names[index], mask_ijk
            found += 1
            if found == limit:
                return
