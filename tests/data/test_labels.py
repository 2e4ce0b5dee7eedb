"""The label table against the groups that the TotalSeg++ paper counts, its colours and its codes for DICOM."""

import itertools

import numpy as np
import pytest
from pydicom.sr._concepts_dict import concepts

import ctsam3d.data
from ctsam3d.data.label_codes import CODES, LEFT, RIGHT, STRUCTURE, TISSUE, TRUNK, Code
from ctsam3d.data.label_colours import COLOURS
from ctsam3d.data.labels import GROUPS, NAMES, TISSUES, V1_FROM_V2, VALUE_OF, our_name


def values(*ranges):
    return [value for start, stop in ranges for value in range(start, stop + 1)]


def names_of(*ranges):
    return {NAMES[value - 1] for value in values(*ranges)}


def test_there_are_107_different_names_and_values_are_their_ranks():
    assert len(NAMES) == len(set(NAMES)) == 107
    assert NAMES[0] == "spleen"
    assert VALUE_OF["spleen"] == 1
    assert all(NAMES[value - 1] == name for name, value in VALUE_OF.items())
    assert sorted(VALUE_OF.values()) == list(range(1, 108))


def test_landmark_values_of_totalsegmentator_v1():
    landmarks = {
        "kidney_right": 2, "kidney_left": 3, "liver": 5, "aorta": 7, "pancreas": 10, "lung_upper_lobe_left": 13,
        "lung_lower_lobe_right": 17, "vertebrae_L5": 18, "vertebrae_L1": 22, "vertebrae_T12": 23, "vertebrae_T1": 34,
        "vertebrae_C7": 35, "vertebrae_C1": 41, "esophagus": 42, "heart_myocardium": 44, "pulmonary_artery": 49,
        "brain": 50, "iliac_artery_left": 51, "iliac_vena_right": 54, "small_bowel": 55, "colon": 57,
        "rib_left_1": 58, "rib_left_12": 69, "rib_right_1": 70, "rib_right_12": 81, "humerus_left": 82,
        "clavicula_right": 87, "femur_left": 88, "hip_right": 91, "sacrum": 92, "face": 93,
        "gluteus_maximus_left": 94, "autochthon_left": 100, "iliopsoas_right": 103, "urinary_bladder": 104,
        "skeletal_muscle": 105, "visceral_fat": 106, "subcutaneous_fat": 107,
    }  # fmt: skip
    assert {name: VALUE_OF[name] for name in landmarks} == landmarks


# ---- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "ranges"),
    [
        ("head", [(50, 50), (93, 93)]),
        ("excretory organs", [(2, 3), (55, 55), (57, 57), (104, 104)]),
        ("cardiovascular vessels", [(7, 9), (49, 49), (51, 54)]),
        ("main chest organs", [(13, 17), (42, 48)]),
        ("main abdomen organs", [(1, 1), (4, 6), (10, 12), (56, 56)]),
        ("vertebrae", [(18, 41)]),
        ("ribs", [(58, 81)]),
        ("other bones", [(82, 92)]),
        ("muscles", [(94, 103)]),
        ("skeletal muscle", [(105, 105)]),
        ("visceral fat", [(106, 106)]),
        ("subcutaneous fat", [(107, 107)]),
    ],
)
def test_groups_have_the_papers_label_numbers(group, ranges):
    assert [VALUE_OF[name] for name in GROUPS[group]] == values(*ranges)


def test_each_name_is_in_one_group():
    assert len(GROUPS) == 12
    assert sorted(itertools.chain(*GROUPS.values())) == sorted(NAMES)
    assert TISSUES == ("skeletal_muscle", "visceral_fat", "subcutaneous_fat")


def test_groups_hold_what_their_titles_say():
    assert set(GROUPS["head"]) == {"brain", "face"}
    excretory = {"kidney_right", "kidney_left", "small_bowel", "colon", "urinary_bladder"}
    assert set(GROUPS["excretory organs"]) == excretory
    vessels = GROUPS["cardiovascular vessels"]
    assert all(any(word in name for word in ("aorta", "vena", "vein", "artery")) for name in vessels)
    chest = GROUPS["main chest organs"]
    assert all(name.startswith(("lung_", "heart_", "esophagus", "trachea")) for name in chest)
    abdomen = {"spleen", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right", "adrenal_gland_left"}
    assert set(GROUPS["main abdomen organs"]) == abdomen | {"duodenum"}
    assert all(name.startswith("vertebrae_") for name in names_of((18, 41)))
    assert all(name.startswith("rib_") for name in names_of((58, 81)))
    bones = ("humerus", "scapula", "clavicula", "femur", "hip", "sacrum")
    assert all(name.startswith(bones) for name in GROUPS["other bones"])
    assert all(name.startswith(("gluteus", "autochthon", "iliopsoas")) for name in GROUPS["muscles"])


# ---- names of later versions ---------------------------------------------------------------------------------------

# The classes of TotalSegmentator v2's task "total" that v1 does not have, from its list of 117.
NEW_IN_V2 = (
    "thyroid_gland", "prostate", "kidney_cyst_left", "kidney_cyst_right", "vertebrae_S1", "heart", "pulmonary_vein",
    "brachiocephalic_trunk", "subclavian_artery_right", "subclavian_artery_left", "common_carotid_artery_right",
    "common_carotid_artery_left", "brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left",
    "superior_vena_cava", "spinal_cord", "skull", "sternum", "costal_cartilages",
)  # fmt: skip
NOT_IN_V2 = (
    "heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right", "heart_ventricle_right",
    "pulmonary_artery", "face",
)  # fmt: skip


def test_version_2_names_map_to_ours_or_to_nothing():
    assert all(ours is None or ours in VALUE_OF for ours in V1_FROM_V2.values())
    assert not set(V1_FROM_V2) & set(NAMES)
    assert set(NEW_IN_V2) | {"torso_fat", "intermuscular_fat", "vertebrae_L6"} == set(V1_FROM_V2)
    assert len(set(NAMES[:104]) - set(NOT_IN_V2)) + len(NEW_IN_V2) == 117


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("spleen", "spleen"),
        ("vertebrae_S1", "sacrum"),
        ("torso_fat", "visceral_fat"),
        ("heart_atrium_left", "heart_atrium_left"),
        ("heart", None),
        ("pulmonary_vein", None),
        ("brachiocephalic_trunk", None),
        ("atrial_appendage_left", None),
        ("kidney_cyst_left", None),
        ("vertebrae_L6", None),
        ("tumour", None),
    ],
)
def test_our_name(name, ours):
    assert our_name(name) == ours


# ---- colours -------------------------------------------------------------------------------------------------------


def cielab(colour):
    """CIE L*a*b* of sRGB under D65; a difference of 2.3 is just noticeable."""
    part = np.array(colour) / 255
    linear = np.where(part > 0.04045, ((part + 0.055) / 1.055) ** 2.4, part / 12.92)
    rgb_to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = rgb_to_xyz @ linear / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_a_colour_each_that_can_be_told_from_every_other():
    assert tuple(COLOURS) == NAMES
    assert all(isinstance(part, int) and 0 <= part <= 255 for colour in COLOURS.values() for part in colour)
    points = np.array([cielab(COLOURS[name]) for name in NAMES])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 1000 * np.eye(107)
    assert apart.min() > 2.3
    neighbours = apart[np.arange(106), np.arange(1, 107)]
    assert neighbours.min() > 4 * 2.3


def test_colours_mean_something_and_stay():
    assert (COLOURS["aorta"], COLOURS["liver"], COLOURS["subcutaneous_fat"]) == (
        (225, 40, 40), (150, 70, 45), (255, 240, 165)
    )  # fmt: skip
    for name in NAMES:
        red, green, blue = COLOURS[name]
        if name in ("aorta", "iliac_artery_left"):
            assert red > 2 * max(green, blue)
        if "vena" in name or "vein" in name:
            assert blue == max(red, green, blue)
        if name in GROUPS["muscles"]:
            assert red == max(red, green, blue)
        if name.endswith("_right") and name.replace("right", "left") in COLOURS and name.split("_")[0] != "lung":
            assert sum(COLOURS[name]) < sum(COLOURS[name.replace("right", "left")])


# ---- codes ---------------------------------------------------------------------------------------------------------


def test_each_structure_has_codes_of_its_own():
    assert tuple(CODES) == NAMES
    assert len({(codes.type, codes.modifier, codes.region) for codes in CODES.values()}) == 107
    assert len({codes.type.value for codes in CODES.values()}) == len({codes.type for codes in CODES.values()})
    for codes in CODES.values():
        assert codes.category in (STRUCTURE, TISSUE)
        assert codes.type.value.isdigit() and 6 <= len(codes.type.value) <= 18 and codes.type.scheme == "SCT"
        assert len(codes.type.meaning) <= 64  # DICOM's LO


def verhoeff(digits):
    """The check of the last digit of every SNOMED CT identifier, 0 where it holds (Verhoeff 1969)."""
    permutation = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    while len(permutation) < 8:
        permutation.append([permutation[-1][p] for p in permutation[1]])
    check = 0
    for place, digit in enumerate(reversed(digits)):
        other = permutation[place % 8][int(digit)]
        if check < 5:
            check = (check + other) % 5 if other < 5 else 5 + (check + other) % 5
        else:
            check = 5 + (check - 5 - other) % 5 if other < 5 else (check - other) % 5
    return check


def all_codes():
    parts = (getattr(codes, part) for codes in CODES.values() for part in ("category", "type", "modifier", "region"))
    return sorted({code for code in parts if code}, key=lambda code: code.value)


@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.meaning)
def test_codes_are_whole_snomed_identifiers(code):
    assert verhoeff(code.value) == 0
    assert verhoeff(code.value[:-1] + str((int(code.value[-1]) + 1) % 10)) != 0


def test_codes_that_dicom_lists_have_its_meanings():
    """PS3.16 as pydicom carries it: about half of our codes, some under a longer name."""
    meanings = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, *_) in entries.items():
            meanings.setdefault(value, []).append(meaning.lower())
    listed = [code for code in all_codes() if code.value in meanings]
    assert len(listed) >= 35
    for code in listed:
        words = code.meaning.lower().replace("urinary bladder", "bladder").replace("of heart", "").strip()
        assert any(words in meaning for meaning in meanings[code.value]), (code, meanings[code.value])


@pytest.mark.parametrize(
    ("name", "category", "value", "meaning", "modifier"),
    [
        ("kidney_left", STRUCTURE, "64033007", "Kidney", LEFT),
        ("adrenal_gland_right", STRUCTURE, "23451007", "Adrenal gland", RIGHT),
        ("lung_lower_lobe_right", STRUCTURE, "90572001", "Lower lobe of lung", RIGHT),
        ("lung_middle_lobe_right", STRUCTURE, "72481006", "Middle lobe of right lung", None),
        ("heart_atrium_left", STRUCTURE, "82471001", "Left atrium", None),
        ("rib_left_7", STRUCTURE, "24915002", "Seventh rib", LEFT),
        ("rib_right_12", STRUCTURE, "43993008", "Twelfth rib", RIGHT),
        ("vertebrae_T10", STRUCTURE, "7610001", "T10 vertebra", None),
        ("autochthon_left", STRUCTURE, "244849004", "Deep muscle of back", LEFT),
        ("skeletal_muscle", STRUCTURE, "127954009", "Skeletal muscle", None),
        ("subcutaneous_fat", TISSUE, "67769002", "Subcutaneous fatty tissue", None),
        ("visceral_fat", TISSUE, "55603005", "Fat", None),
    ],
)
def test_codes_of_some(name, category, value, meaning, modifier):
    codes = CODES[name]
    assert (codes.category, codes.type, codes.modifier) == (category, Code(value, meaning), modifier)
    assert codes.region == (TRUNK if name == "visceral_fat" else None)


def test_labels_are_reachable_from_the_package():
    assert ctsam3d.data.labels.NAMES is NAMES
