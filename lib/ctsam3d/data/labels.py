"""The 107 structures of TotalSeg++: names, label values, the paper's groups, and the names of later TotalSegmentators.

Values 1-104 are the classes of TotalSegmentator v1 in its own order (Wasserthal et al., Radiology: AI 2023); 105-107
are the tissue classes that TotalSeg++ adds. Value 0 is background. Colours are in `label_colours`, codes for DICOM in
`label_codes`.
"""

from __future__ import annotations

_ABDOMEN = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta", "inferior_vena_cava",
    "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
)  # fmt: skip
_LUNGS = (
    "lung_upper_lobe_left", "lung_lower_lobe_left",
    "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right",
)  # fmt: skip
_VERTEBRAE = tuple(
    f"vertebrae_{group}{number}" for group, count in (("L", 5), ("T", 12), ("C", 7)) for number in range(count, 0, -1)
)
_CHEST = (
    "esophagus", "trachea", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right",
    "heart_ventricle_right", "pulmonary_artery",
)  # fmt: skip
_BRAIN_TO_COLON = (
    "brain", "iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right",
    "small_bowel", "duodenum", "colon",
)  # fmt: skip
_RIBS = tuple(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13))


def _pairs(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{side}" for stem in stems for side in ("left", "right"))


NAMES: tuple[str, ...] = (
    *_ABDOMEN,
    *_LUNGS,
    *_VERTEBRAE,
    *_CHEST,
    *_BRAIN_TO_COLON,
    *_RIBS,
    *_pairs("humerus", "scapula", "clavicula", "femur", "hip"),
    "sacrum",
    "face",
    *_pairs("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas"),
    "urinary_bladder",
    "skeletal_muscle",
    "visceral_fat",
    "subcutaneous_fat",
)
"""Name of label value `v` at index `v - 1`."""

VALUE_OF: dict[str, int] = {name: value for value, name in enumerate(NAMES, start=1)}
"""Label value, 1 to 107, of each name."""

TISSUES: tuple[str, ...] = NAMES[104:]
"""The three that are added to TotalSegmentator's: they fill what no organ, bone, vessel or named muscle takes."""


def _between(*ranges: tuple[int, int]) -> tuple[str, ...]:
    return tuple(NAMES[value - 1] for first, last in ranges for value in range(first, last + 1))


GROUPS: dict[str, tuple[str, ...]] = {
    "head": _between((50, 50), (93, 93)),
    "excretory organs": _between((2, 3), (55, 55), (57, 57), (104, 104)),
    "cardiovascular vessels": _between((7, 9), (49, 49), (51, 54)),
    "main chest organs": _between((13, 17), (42, 48)),
    "main abdomen organs": _between((1, 1), (4, 6), (10, 12), (56, 56)),
    "vertebrae": _between((18, 41)),
    "ribs": _between((58, 81)),
    "other bones": _between((82, 92)),
    "muscles": _between((94, 103)),
    "skeletal muscle": _between((105, 105)),
    "visceral fat": _between((106, 106)),
    "subcutaneous fat": _between((107, 107)),
}
"""Names of each group that the paper reports (supplementary Table 3), each of the 107 in exactly one."""

V1_FROM_V2: dict[str, str | None] = {
    "torso_fat": "visceral_fat",  # of the task tissue_types
    "vertebrae_S1": "sacrum",  # v1's sacrum is whole, v2 cuts its first vertebra out of it, v3 puts it back
    # The heart is one label, without v1's chambers and myocardium; they are a task of their own, with v1's names.
    "heart": None,
    "atrial_appendage_left": None,
    "pulmonary_vein": None,  # not v1's pulmonary_artery, which v2 has no longer
    "brachiocephalic_trunk": None,
    "subclavian_artery_right": None,
    "subclavian_artery_left": None,
    "common_carotid_artery_right": None,
    "common_carotid_artery_left": None,
    "brachiocephalic_vein_left": None,
    "brachiocephalic_vein_right": None,
    "superior_vena_cava": None,
    "thyroid_gland": None,
    "prostate": None,
    "kidney_cyst_left": None,  # not the kidney: whether v1's masks hold the cysts is nowhere said
    "kidney_cyst_right": None,
    "spinal_cord": None,
    "skull": None,
    "sternum": None,
    "costal_cartilages": None,
    "vertebrae_L6": None,  # of v3
    "intermuscular_fat": None,  # of the task tissue_4_types
}
"""Where TotalSegmentator v2 and v3 depart from `NAMES`: their name to ours, or None where there is no counterpart.

Complete for the tasks ``total`` and ``tissue_types``. The other way round, v2 and v3 have no heart_myocardium,
heart_atrium_*, heart_ventricle_*, pulmonary_artery and face. Source: TotalSegmentator's map_to_binary.py (total_v1,
total, tissue_types, tissue_4_types) and improvements_in_v3.md; for the sacrum its issue 249.
"""


def our_name(name: str) -> str | None:
    """The one of the 107 that a name of TotalSegmentator v1, v2 or v3 stands for; None where there is none."""
    return name if name in VALUE_OF else V1_FROM_V2.get(name)
