"""The label table against the groups that the TotalSeg++ paper counts."""

import ctsam3d.data
from ctsam3d.data.labels import NAMES, V1_FROM_V2, VALUE_OF


def names_of(*ranges):
    return {NAMES[value - 1] for start, stop in ranges for value in range(start, stop + 1)}


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


def test_groups_hold_what_their_titles_say():
    assert names_of((50, 50), (93, 93)) == {"brain", "face"}
    excretory = {"kidney_right", "kidney_left", "small_bowel", "colon", "urinary_bladder"}
    assert names_of((2, 3), (55, 55), (57, 57), (104, 104)) == excretory
    vessels = names_of((7, 9), (49, 49), (51, 54))
    assert all(any(word in name for word in ("aorta", "vena", "vein", "artery")) for name in vessels)
    chest = names_of((13, 17), (42, 48))
    assert all(name.startswith(("lung_", "heart_", "esophagus", "trachea")) for name in chest)
    abdomen = {"spleen", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right", "adrenal_gland_left"}
    assert names_of((1, 1), (4, 6), (10, 12), (56, 56)) == abdomen | {"duodenum"}
    assert all(name.startswith("vertebrae_") for name in names_of((18, 41)))
    assert all(name.startswith("rib_") for name in names_of((58, 81)))
    bones = ("humerus", "scapula", "clavicula", "femur", "hip", "sacrum")
    assert all(name.startswith(bones) for name in names_of((82, 92)))
    assert all(name.startswith(("gluteus", "autochthon", "iliopsoas")) for name in names_of((94, 103)))


def test_version_2_names_map_to_ours_or_to_nothing():
    assert V1_FROM_V2["vertebrae_S1"] is None
    assert all(ours is None or ours in VALUE_OF for ours in V1_FROM_V2.values())
    assert not set(V1_FROM_V2) & set(NAMES)


def test_labels_are_reachable_from_the_package():
    assert ctsam3d.data.labels.NAMES is NAMES
