"""A colour for each of the 107: arteries red, veins blue, airways cyan, bones pale, muscles red-brown, fat yellow.

The colours are fixed by name, so that a structure looks the same in every picture, client and version. Of a pair the
right one is darker; along spine and ribs three shades alternate, so that neighbours can be told apart.
"""

from __future__ import annotations

import colorsys

from ctsam3d.data.labels import GROUPS, NAMES

Colour = tuple[int, int, int]

_SINGLE: dict[str, Colour] = {
    "spleen": (139, 84, 140),
    "gallbladder": (120, 160, 60),
    "liver": (150, 70, 45),
    "stomach": (235, 140, 150),
    "aorta": (225, 40, 40),
    "inferior_vena_cava": (30, 80, 200),
    "portal_vein_and_splenic_vein": (70, 150, 225),
    "pancreas": (250, 180, 100),
    "lung_upper_lobe_left": (150, 215, 240),
    "lung_lower_lobe_left": (100, 180, 215),
    "lung_upper_lobe_right": (125, 200, 200),
    "lung_middle_lobe_right": (175, 230, 220),
    "lung_lower_lobe_right": (80, 155, 165),
    "esophagus": (200, 130, 170),
    "trachea": (0, 190, 210),
    "heart_myocardium": (165, 30, 60),
    "heart_atrium_left": (240, 90, 110),
    "heart_ventricle_left": (205, 60, 95),
    "heart_atrium_right": (135, 90, 190),
    "heart_ventricle_right": (105, 60, 150),
    "pulmonary_artery": (60, 110, 235),
    "brain": (245, 190, 195),
    "small_bowel": (205, 165, 60),
    "duodenum": (235, 130, 50),
    "colon": (165, 120, 40),
    "sacrum": (225, 215, 205),
    "face": (255, 190, 145),
    "urinary_bladder": (240, 230, 60),
    "skeletal_muscle": (175, 60, 60),
    "visceral_fat": (230, 195, 95),
    "subcutaneous_fat": (255, 240, 165),
}
_LEFT_OF_PAIR: dict[str, Colour] = {
    "kidney": (200, 110, 60),
    "adrenal_gland": (20, 205, 150),
    "iliac_artery": (250, 95, 75),
    "iliac_vena": (95, 130, 250),
    "humerus": (225, 225, 185),
    "scapula": (205, 220, 165),
    "clavicula": (185, 210, 185),
    "femur": (235, 210, 185),
    "hip": (215, 190, 205),
    "gluteus_maximus": (195, 95, 75),
    "gluteus_medius": (215, 120, 105),
    "gluteus_minimus": (175, 100, 45),
    "autochthon": (165, 80, 100),
    "iliopsoas": (220, 85, 150),
}
_RIGHT = 0.78  # of the brightness of the left one


def _series(names: tuple[str, ...], hues: tuple[float, float], shades: tuple[tuple[float, float], ...]):
    """Colours along a row of neighbours: the hue goes from one end to the other in turns of 1, shades alternate.

    Args:
        shades: (saturation, brightness) each.
    """
    out = {}
    for place, name in enumerate(names):
        hue = hues[0] + (hues[1] - hues[0]) * place / (len(names) - 1)
        rgb = colorsys.hsv_to_rgb(hue, *shades[place % len(shades)])
        out[name] = tuple(round(255 * part) for part in rgb)
    return out


def _pairs() -> dict[str, Colour]:
    left = {f"{stem}_left": colour for stem, colour in _LEFT_OF_PAIR.items()}
    right = {f"{stem}_right": tuple(round(_RIGHT * c) for c in colour) for stem, colour in _LEFT_OF_PAIR.items()}
    return left | right


_ALL = {
    **_SINGLE,
    **_pairs(),
    **_series(GROUPS["vertebrae"], (0.0, 0.18), ((0.3, 1.0), (0.42, 0.88), (0.58, 0.7))),
    **_series(GROUPS["ribs"][:12], (0.25, 0.46), ((0.2, 0.98), (0.45, 0.9), (0.62, 0.75))),
    **_series(GROUPS["ribs"][12:], (0.2, 0.44), ((0.35, 0.78), (0.5, 0.6), (0.65, 0.45))),
}
COLOURS: dict[str, Colour] = {name: _ALL[name] for name in NAMES}
"""Red, green and blue, 0 to 255, of each of the 107."""
