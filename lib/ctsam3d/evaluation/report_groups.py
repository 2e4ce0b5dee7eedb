"""Structures in the order of the labels, and in the paper's groups (supplementary Table 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctsam3d.data.labels import GROUPS, NAMES, VALUE_OF

OTHERS, TUMOURS = "other structures", "tumours"
_TUMOUR_WORDS = ("tumour", "tumor", "lesion", "cancer", "carcinoma", "metasta", "neoplasm")


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
