"""Phantoms that are made once and kept on disk: what retraining replays, and what its result is measured on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ctsam3d.data.io import Case, read_case
from ctsam3d.data.phantoms import make_phantom, write_phantom_case


@dataclass(frozen=True)
class PhantomSpec:
    """A phantom and which of its structures count; all of them where `structures` is empty."""

    seed: int
    region: str = "trunk"
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    structures: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the case, and of its folder."""
        return f"phantom_{self.seed}_{self.region}"


def phantom_case(folder: str | os.PathLike, spec: PhantomSpec) -> Case:
    """The case in ``folder/<name>``, which is made where it is not there yet, or not whole.

    Raises:
        ValueError: the phantom has none of the structures.
    """
    target = Path(folder) / spec.name
    try:
        case = _checked(read_case(target), spec)
    except (FileNotFoundError, ValueError):
        write_phantom_case(target, make_phantom(spec.seed, spec.spacing_mm, spec.region))
        case = _checked(read_case(target), spec)
    return case


def _checked(case: Case, spec: PhantomSpec) -> Case:
    """The case with the structures that count, its labels read once."""
    wanted = [name for name in spec.structures or case.names if name in case.structures]
    if not wanted:
        raise ValueError(f"structures of {spec.name} must be among {list(case.names)}, got {list(spec.structures)}")
    case.mask(wanted[0])
    return Case(spec.name, case.volume, MappingProxyType({name: case.structures[name] for name in wanted}))
