"""Structures in the order of the labels, and in the paper's groups (supplementary Table 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctsam3d.data.labels import NAMES, VALUE_OF

# TO BE REMOVED AT THE MERGE, together with `_fallback`: data/labels.py gets GROUPS there. What stays is
#     from ctsam3d.data.labels import GROUPS, NAMES, VALUE_OF
try:
    from ctsam3d.data.labels import GROUPS
except ImportError:
    GROUPS = None

OTHERS, TUMOURS = "other structures", "tumours"
_TUMOUR_WORDS = ("tumour", "tumor", "lesion", "cancer", "carcinoma", "metasta", "neoplasm")


def _fallback() -> dict[str, tuple[str, ...]]:
    numbers = {
        "head": (50, 93),
        "excretory organs": (2, 3, 55, 57, 104),
        "cardiovascular vessels": (*range(7, 10), 49, *range(51, 55)),
        "main chest organs": (*range(13, 18), *range(42, 49)),
        "main abdomen organs": (1, *range(4, 7), *range(10, 13), 56),
        "vertebrae": tuple(range(18, 42)),
        "ribs": tuple(range(58, 82)),
        "other bones": tuple(range(82, 93)),
        "muscles": tuple(range(94, 104)),
        **{NAMES[value - 1].replace("_", " "): (value,) for value in (105, 106, 107)},
    }
    return {group: tuple(NAMES[value - 1] for value in values) for group, values in numbers.items()}


GROUPS = GROUPS or _fallback()


def in_order(structures: Iterable[str]) -> list[str]:
    """Each structure once: those of the 107 by their label, then the others as they come."""
    return sorted(dict.fromkeys(structures), key=lambda name: VALUE_OF.get(name, len(NAMES) + 1))


def is_tumour(structure: str) -> bool:
    """Whether a name says that a structure is one."""
    return any(word in structure.lower() for word in _TUMOUR_WORDS)


def grouped(structures: Iterable[str], groups: Mapping[str, tuple[str, ...]] = GROUPS) -> dict[str, list[str]]:
    """The structures by group, groups that have none left out; tumours and what is in no group come last."""
    group_of = {name: group for group, names in groups.items() for name in names}
    out: dict[str, list[str]] = {group: [] for group in (*groups, TUMOURS, OTHERS)}
    for name in in_order(structures):
        out[group_of.get(name, TUMOURS if is_tumour(name) else OTHERS)].append(name)
    return {group: names for group, names in out.items() if names}
