"""The 107 structures of TotalSeg++: names and label values.

Values 1-104 are the classes of TotalSegmentator v1 in its own order (Wasserthal et al., Radiology: AI 2023); 105-107
are the tissue classes that TotalSeg++ adds. Value 0 is background.
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

V1_FROM_V2: dict[str, str | None] = {
    "torso_fat": "visceral_fat",
    # v2 labels that no single v1 class covers: v1 divides the heart and has none of the others.
    "heart": None,
    "vertebrae_S1": None,
    "pulmonary_vein": None,
    "spinal_cord": None,
    "skull": None,
    "sternum": None,
    "costal_cartilages": None,
    "thyroid_gland": None,
    "prostate": None,
    "kidney_cyst_left": None,
    "kidney_cyst_right": None,
    "superior_vena_cava": None,
}
"""Where TotalSegmentator v2 (and its tissue task) departs from `NAMES`: its name to ours, or None without counterpart.

A v2 name that is neither here nor in `NAMES` has no counterpart either.
"""
