"""Figures that the CT-SAM3D paper published, each with where it stands, to be shown beside ours.

Paper: Guo et al., "Towards a Comprehensive, Efficient and Promptable Anatomic Structure Segmentation Model using 3D
Whole-body CT Scans", arXiv 2403.15063v2 (2024). Only figures whose source was seen are here; `NOT_FOUND` names the
tables whose figures are not. Who has the paper at hand adds rows to `SCORES`, and every report shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TITLES = {
    "": "",
    "totalseg": "TotalSeg++",
    "flare22": "FLARE22",
    "btcv": "BTCV",
    "msd_pancreas": "MSD Pancreas",
    "msd_colon": "MSD Colon",
}
"""How the paper calls the data sets that `RunInfo.dataset` may name."""

METHOD = "CT-SAM3D"
TOLERANCE_MM = 5.0  # of the paper's NSD (supplementary Table 1)


@dataclass(frozen=True)
class Published:
    """One figure of the paper.

    Attributes:
        dataset: a key of `TITLES`.
        clicks: None for a method that takes none.
        dsc, nsd: from 0 to 1; None where the paper gives none.
        source: the table or text where it stands.
        structure: "" for the mean over structures.
    """

    dataset: str
    method: str
    clicks: int | None
    dsc: float | None
    nsd: float | None
    source: str
    structure: str = ""

    def score(self, name: str) -> float | None:
        """`dsc` or `nsd` by its name; None for a score that the paper does not use."""
        return {"dsc": self.dsc, "nsd": self.nsd}.get(name)


@dataclass(frozen=True)
class PublishedCost:
    """What one patch of 64 voxels a side costs in a network of the paper.

    Attributes:
        parameters, multiply_adds: None where not found.
    """

    network: str
    parameters: float | None
    multiply_adds: float | None
    source: str


_FLARE22 = "text on FLARE22, arXiv v2, from a public note that cites it; its table was not seen"
SCORES: tuple[Published, ...] = (
    Published("flare22", METHOD, 5, 0.884, 0.958, _FLARE22),
    Published("flare22", "MedSAM", 5, 0.722, 0.682, _FLARE22),
)

_COST = "supplementary Table 4, from the project's reference figures of the published network"
COSTS: tuple[PublishedCost, ...] = (
    PublishedCost("S", 72.5e6, 124.4e9, _COST),
    PublishedCost("P", 4.8e6, 1.3e9, _COST),
)

NOT_FOUND: tuple[str, ...] = (
    "Table 1: figures by organ",
    "Table 2: figures after each number of clicks, but those after 5 clicks on FLARE22",
    "Table 3: tumours",
    "supplementary Table 2: automatic methods",
    "supplementary Table 4: latency and memory",
    "figures behind Fig. 3, Fig. 4 and supplementary Fig. 4 and 5",
)
"""What was looked for in public sources and not found, so that no report shows it."""


def of_dataset(dataset: str, scores: Sequence[Published] = SCORES) -> tuple[Published, ...]:
    """The paper's figures on a data set; none where the data set is not the paper's.

    Raises:
        ValueError: a data set that `TITLES` does not have.
    """
    if dataset not in TITLES:
        raise ValueError(f"dataset must be one of {', '.join(map(repr, TITLES))}, got {dataset!r}")
    return tuple(row for row in scores if dataset and row.dataset == dataset)
