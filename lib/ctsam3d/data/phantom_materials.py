"""Tissues of a phantom and their Hounsfield units in each contrast phase."""

from __future__ import annotations

import enum

import numpy as np

PHASES = ("native", "arterial", "venous", "excretory")


class Material(enum.IntEnum):
    """What a voxel is made of; several materials share one label, as cortex and medulla of a kidney do."""

    AIR = 0
    SKIN = enum.auto()
    FAT_SUBCUTANEOUS = enum.auto()
    FAT_VISCERAL = enum.auto()
    MUSCLE = enum.auto()
    BONE_CORTICAL = enum.auto()
    BONE_SPONGY = enum.auto()
    CARTILAGE = enum.auto()
    DISC = enum.auto()
    CORD = enum.auto()
    LUNG = enum.auto()
    LUNG_VESSEL = enum.auto()
    AIRWAY = enum.auto()
    AORTA = enum.auto()
    ILIAC_VEIN = enum.auto()
    CAVA = enum.auto()
    PORTAL = enum.auto()
    MYOCARDIUM = enum.auto()
    BLOOD_LEFT = enum.auto()
    BLOOD_RIGHT = enum.auto()
    LIVER = enum.auto()
    LESION = enum.auto()
    SPLEEN = enum.auto()
    PANCREAS = enum.auto()
    ADRENAL = enum.auto()
    BILE = enum.auto()
    KIDNEY_CORTEX = enum.auto()
    KIDNEY_MEDULLA = enum.auto()
    URINE_UPPER = enum.auto()
    URINE = enum.auto()
    URINE_DENSE = enum.auto()
    WALL = enum.auto()
    GAS = enum.auto()
    GASTRIC_FLUID = enum.auto()
    BOWEL_FLUID = enum.auto()
    STOOL = enum.auto()
    SOFT = enum.auto()
    TABLE_SHELL = enum.auto()
    TABLE_FOAM = enum.auto()


# HU per phase (native, arterial, venous, excretory), coarse texture in HU, fine texture in HU.
_TISSUE = {
    Material.AIR: ((-1000, -1000, -1000, -1000), 0, 0),
    Material.SKIN: ((20, 20, 25, 25), 0, 8),
    Material.FAT_SUBCUTANEOUS: ((-105, -105, -104, -104), 4, 4),
    Material.FAT_VISCERAL: ((-98, -98, -96, -96), 7, 10),
    Material.MUSCLE: ((50, 54, 62, 60), 7, 9),
    Material.BONE_CORTICAL: ((820, 825, 830, 830), 70, 90),
    Material.BONE_SPONGY: ((190, 195, 205, 205), 30, 45),
    Material.CARTILAGE: ((110, 110, 115, 115), 20, 25),
    Material.DISC: ((75, 75, 80, 80), 6, 6),
    Material.CORD: ((28, 30, 32, 32), 4, 4),
    Material.LUNG: ((-850, -848, -845, -845), 22, 30),
    Material.LUNG_VESSEL: ((20, 170, 90, 70), 10, 10),
    Material.AIRWAY: ((-985, -985, -985, -985), 0, 0),
    Material.AORTA: ((40, 320, 150, 122), 2, 2),
    Material.ILIAC_VEIN: ((40, 60, 120, 118), 4, 3),
    Material.CAVA: ((40, 80, 138, 118), 6, 3),
    Material.PORTAL: ((40, 110, 165, 122), 3, 3),
    Material.MYOCARDIUM: ((45, 110, 108, 92), 5, 4),
    Material.BLOOD_LEFT: ((40, 315, 150, 122), 4, 3),
    Material.BLOOD_RIGHT: ((40, 240, 145, 118), 12, 4),
    Material.LIVER: ((55, 70, 110, 95), 3, 4),
    Material.LESION: ((25, 35, 45, 45), 4, 4),
    Material.SPLEEN: ((48, 115, 120, 100), 3, 4),
    Material.PANCREAS: ((40, 102, 95, 70), 6, 10),
    Material.ADRENAL: ((28, 65, 62, 45), 3, 4),
    Material.BILE: ((8, 8, 10, 12), 1, 2),
    Material.KIDNEY_CORTEX: ((32, 190, 182, 140), 4, 4),
    Material.KIDNEY_MEDULLA: ((29, 80, 165, 150), 5, 5),
    Material.URINE_UPPER: ((5, 5, 12, 380), 4, 4),
    Material.URINE: ((5, 5, 6, 60), 1, 2),
    Material.URINE_DENSE: ((6, 6, 8, 330), 6, 4),
    Material.WALL: ((38, 85, 84, 70), 5, 5),
    Material.GAS: ((-900, -900, -900, -900), 10, 5),
    Material.GASTRIC_FLUID: ((12, 12, 14, 14), 5, 6),
    Material.BOWEL_FLUID: ((18, 18, 20, 20), 7, 8),
    Material.STOOL: ((10, 10, 12, 12), 80, 40),
    Material.SOFT: ((42, 60, 75, 70), 5, 5),
    Material.TABLE_SHELL: ((-250, -250, -250, -250), 0, 10),
    Material.TABLE_FOAM: ((-940, -940, -940, -940), 0, 3),
}


def tissue_tables(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean HU, coarse texture and fine texture (standard deviations in HU) of each `Material`, float32.

    A phase is drawn, then every tissue departs a little from the book. Oral contrast, a fatty liver and weak bones,
    each in some patients, decide which organs look like their neighbours.
    """
    phase = rng.choice(len(PHASES), p=(0.3, 0.2, 0.4, 0.1))
    mean = np.array([_TISSUE[m][0][phase] for m in Material], np.float32)
    coarse, fine = (np.array([_TISSUE[m][k] for m in Material], np.float32) for k in (1, 2))
    solid = mean > -500
    mean += solid * rng.normal(0, 1, len(mean)) * (2.5 + 0.05 * np.abs(mean))
    mean[Material.LUNG] += rng.normal(0, 20)
    mean[Material.AORTA] = mean[Material.BLOOD_LEFT]  # one bloodstream
    bone = rng.uniform(0.75, 1.2)
    mean[[Material.BONE_CORTICAL, Material.BONE_SPONGY]] *= bone
    if rng.random() < 0.2:
        mean[Material.LIVER] -= rng.uniform(10, 40)
    if rng.random() < 0.25:
        mean[Material.BOWEL_FLUID] = rng.uniform(120, 350)
    if rng.random() < 0.2:
        mean[Material.GASTRIC_FLUID] = rng.uniform(60, 300)
    return mean, coarse, fine
