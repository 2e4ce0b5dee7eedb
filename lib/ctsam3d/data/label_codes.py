"""Codes of the 107 structures for DICOM SEG: category, type and its modifier, and anatomic region where one is needed.

All are SNOMED CT and stand in TotalSegmentator's own table (totalsegmentator_snomed_mapping.csv), against which each
number was checked; meanings are those of DICOM where the table misspells them. Two say less than the name does:

* ``hip_left`` and ``hip_right`` are hip bones, the code is that of the hip as a region, as in the table;
* ``visceral_fat`` is coded as fat of the trunk, as the table does with ``torso_fat``: no code of its own could be
  verified.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctsam3d.data.labels import NAMES


@dataclass(frozen=True)
class Code:
    """An item of a DICOM code sequence."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class SegmentCodes:
    """What DICOM SEG says of a segment.

    Attributes:
        category: SegmentedPropertyCategoryCodeSequence.
        type: SegmentedPropertyTypeCodeSequence.
        modifier: SegmentedPropertyTypeModifierCodeSequence: the side, or None.
        region: AnatomicRegionSequence, or None.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None


STRUCTURE = Code("123037004", "Anatomical Structure")
TISSUE = Code("85756007", "Tissue")
LEFT = Code("7771000", "Left")
RIGHT = Code("24028007", "Right")
TRUNK = Code("22943007", "Trunk")

_TYPES = {
    "spleen": ("78961009", "Spleen"),
    "kidney": ("64033007", "Kidney"),
    "gallbladder": ("28231008", "Gallbladder"),
    "liver": ("10200004", "Liver"),
    "stomach": ("69695003", "Stomach"),
    "aorta": ("15825003", "Aorta"),
    "inferior_vena_cava": ("64131007", "Inferior vena cava"),
    "portal_vein_and_splenic_vein": ("110765007", "Portal vein and splenic vein"),
    "pancreas": ("15776009", "Pancreas"),
    "adrenal_gland": ("23451007", "Adrenal gland"),
    "lung_upper_lobe": ("45653009", "Upper lobe of lung"),
    "lung_lower_lobe": ("90572001", "Lower lobe of lung"),
    "vertebrae_L5": ("49668003", "L5 vertebra"),
    "vertebrae_L4": ("11994002", "L4 vertebra"),
    "vertebrae_L3": ("36470004", "L3 vertebra"),
    "vertebrae_L2": ("14293000", "L2 vertebra"),
    "vertebrae_L1": ("66794005", "L1 vertebra"),
    "vertebrae_T12": ("23215003", "T12 vertebra"),
    "vertebrae_T11": ("12989004", "T11 vertebra"),
    "vertebrae_T10": ("7610001", "T10 vertebra"),
    "vertebrae_T9": ("82687006", "T9 vertebra"),
    "vertebrae_T8": ("11068009", "T8 vertebra"),
    "vertebrae_T7": ("62487009", "T7 vertebra"),
    "vertebrae_T6": ("45296009", "T6 vertebra"),
    "vertebrae_T5": ("56401006", "T5 vertebra"),
    "vertebrae_T4": ("73071006", "T4 vertebra"),
    "vertebrae_T3": ("1626008", "T3 vertebra"),
    "vertebrae_T2": ("53733008", "T2 vertebra"),
    "vertebrae_T1": ("64864005", "T1 vertebra"),
    "vertebrae_C7": ("87391001", "C7 vertebra"),
    "vertebrae_C6": ("36054005", "C6 vertebra"),
    "vertebrae_C5": ("36978003", "C5 vertebra"),
    "vertebrae_C4": ("5329002", "C4 vertebra"),
    "vertebrae_C3": ("113205007", "C3 vertebra"),
    "vertebrae_C2": ("39976000", "C2 vertebra"),
    "vertebrae_C1": ("14806007", "C1 vertebra"),
    "esophagus": ("32849002", "Esophagus"),
    "trachea": ("44567001", "Trachea"),
    "heart_myocardium": ("74281007", "Myocardium"),
    "pulmonary_artery": ("81040000", "Pulmonary artery"),
    "brain": ("12738006", "Brain"),
    "iliac_artery": ("73634005", "Common iliac artery"),
    "iliac_vena": ("46027005", "Common iliac vein"),
    "small_bowel": ("30315005", "Small intestine"),
    "duodenum": ("38848004", "Duodenum"),
    "colon": ("71854001", "Colon"),
    "rib_1": ("48535007", "First rib"),
    "rib_2": ("78247007", "Second rib"),
    "rib_3": ("25888004", "Third rib"),
    "rib_4": ("25523003", "Fourth rib"),
    "rib_5": ("15339008", "Fifth rib"),
    "rib_6": ("59558009", "Sixth rib"),
    "rib_7": ("24915002", "Seventh rib"),
    "rib_8": ("5953002", "Eighth rib"),
    "rib_9": ("22565002", "Ninth rib"),
    "rib_10": ("77644006", "Tenth rib"),
    "rib_11": ("58830002", "Eleventh rib"),
    "rib_12": ("43993008", "Twelfth rib"),
    "humerus": ("85050009", "Humerus"),
    "scapula": ("79601000", "Scapula"),
    "clavicula": ("51299004", "Clavicle"),
    "femur": ("71341001", "Femur"),
    "hip": ("29836001", "Hip"),
    "sacrum": ("54735007", "Sacrum"),
    "face": ("89545001", "Face"),
    "gluteus_maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus_medius": ("78333006", "Gluteus medius muscle"),
    "gluteus_minimus": ("75297007", "Gluteus minimus muscle"),
    "autochthon": ("244849004", "Deep muscle of back"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "urinary_bladder": ("89837001", "Urinary bladder"),
    "skeletal_muscle": ("127954009", "Skeletal muscle"),
}
_ONE_SIDED = {  # the type says the side
    "heart_atrium_left": ("82471001", "Left atrium"),
    "heart_atrium_right": ("73829009", "Right atrium"),
    "heart_ventricle_left": ("87878005", "Left ventricle of heart"),
    "heart_ventricle_right": ("53085002", "Right ventricle of heart"),
    "lung_middle_lobe_right": ("72481006", "Middle lobe of right lung"),
}
_SIDES = {"left": LEFT, "right": RIGHT}


def _codes(name: str) -> SegmentCodes:
    if name == "visceral_fat":
        return SegmentCodes(TISSUE, Code("55603005", "Fat"), region=TRUNK)
    if name == "subcutaneous_fat":
        return SegmentCodes(TISSUE, Code("67769002", "Subcutaneous fatty tissue"))
    if name in _ONE_SIDED:
        return SegmentCodes(STRUCTURE, Code(*_ONE_SIDED[name]))
    words = name.split("_")
    side = next((word for word in words if word in _SIDES), None)
    stem = "_".join(word for word in words if word != side)
    return SegmentCodes(STRUCTURE, Code(*_TYPES[stem]), _SIDES.get(side))


CODES: dict[str, SegmentCodes] = {name: _codes(name) for name in NAMES}
"""Codes of each of the 107."""
