"""What makes a phantom rich: masses, branching vessels, muscles one by one, implants, and a label for all that is left.

Painted after the ordinary structures, from streams of their own, so that the same seed without it stays what it was.
Coordinates as in `phantom_canvas`, in reference mm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cc3d
import numpy as np

from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantom_canvas import Canvas, capsule, ellipsoid, smooth_path, tube
from ctsam3d.data.phantom_frame import SIDES
from ctsam3d.data.phantom_materials import Material as M
from ctsam3d.data.random_shapes import capsules, nearest, quadric, tree

MOST_LABELS, LEAST_VOXELS = 250, 50
METAL_HU = (2500.0, 3071.0)

_MASSES = {  # what may hold a mass: the material that it grows in, and the chance among the others
    "liver": (M.LIVER, 5), "spleen": (M.SPLEEN, 1), "kidney": (M.KIDNEY_CORTEX, 3), "pancreas": (M.PANCREAS, 2),
    "lung": (M.LUNG, 4), "muscle": (M.MUSCLE, 3), "bone": (M.BONE_SPONGY, 2), "visceral": (M.FAT_VISCERAL, 4),
    "subcutaneous": (M.FAT_SUBCUTANEOUS, 1), "wall": (M.WALL, 2), "adrenal": (M.ADRENAL, 1), "gland": (M.SOFT, 1),
}  # fmt: skip

_LEFT_OVER = {  # what no class holds, by its material, and whether its parts are labelled apart
    M.SKIN: ("skin", False), M.DISC: ("disc", True), M.CORD: ("spinal_canal", False), M.CARTILAGE: ("cartilage", True),
    M.SOFT: ("soft_tissue", True), M.URINE_UPPER: ("ureter", True), M.BLOOD_RIGHT: ("superior_vena_cava", False),
    M.AORTA: ("mesenteric_artery", True), M.BONE_CORTICAL: ("sternum", False), M.BONE_SPONGY: ("sternum", False),
    M.AIRWAY: ("bronchus", True), M.FAT_VISCERAL: ("renal_sinus", True), M.WALL: ("gallbladder_wall", False),
}  # fmt: skip


_UPPER_VESSELS = {
    "brachiocephalic_trunk": (M.AORTA, [(4, 14, 458, 6.5), (12, 12, 490, 6), (20, 8, 520, 5), (40, 4, 540, 4.5)]),
    "common_carotid_artery_left": (M.AORTA, [(-8, 4, 464, 4.5), (-14, 4, 500, 4), (-18, 4, 545, 4)]),
    "subclavian_artery_left": (
        M.AORTA,
        [(-14, -8, 462, 5), (-24, -12, 500, 5), (-50, -8, 525, 4.5), (-100, 0, 520, 4)],
    ),
    "brachiocephalic_vein_left": (
        M.BLOOD_RIGHT,
        [(22, 22, 470, 7), (-4, 28, 482, 7), (-26, 24, 500, 6.5), (-60, 18, 520, 6)],
    ),
    "brachiocephalic_vein_right": (M.BLOOD_RIGHT, [(24, 18, 480, 7), (30, 18, 505, 6.5), (60, 14, 522, 6)]),
    "azygos_vein": (M.CAVA, [(8, -22, 300, 3.5), (9, -24, 380, 4), (10, -20, 440, 4.5), (20, 2, 448, 4.5)]),
}  # x, y, z and radius in mm


@dataclass
class Palette:
    """HU and texture of every material, those of a phantom first, and names of every label value, ours first.

    Attributes:
        muscles: further materials that are muscle.
        marrow: the material in the shafts of long bones.
    """

    table: list[tuple[float, float, float]]
    names: list[str] = field(default_factory=lambda: list(NAMES))
    muscles: list[int] = field(default_factory=list)
    marrow: int = M.BONE_SPONGY

    def material(self, mean_hu: float, coarse_hu: float = 4.0, fine_hu: float = 5.0) -> int:
        self.table.append((float(mean_hu), float(coarse_hu), float(fine_hu)))
        return len(self.table) - 1

    def label(self, name: str) -> int | None:
        """Value of a label, a new one where there is none of that name; None where all values are taken."""
        if name in self.names:
            return self.names.index(name) + 1
        if len(self.names) >= MOST_LABELS:
            return None
        self.names.append(name)
        return len(self.names)


# ---- muscles -----------------------------------------------------------------------------------------------------


def split_muscles(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """The muscle of the walls as single flat muscles with thin fat between them, in half of the phantoms."""
    if rng.random() < 0.5:
        return
    flat = np.flatnonzero(canvas.labels == VALUE_OF["skeletal_muscle"])
    if len(flat) < 1000:
        return
    positions = np.stack([p.ravel()[flat] for p in canvas.position])
    quadrics = []
    for _ in range(int(rng.integers(14, 34))):
        centre = positions[:, rng.integers(len(flat))].astype(float)
        outwards = np.array([centre[0], centre[1], 0.0]) / (np.hypot(centre[0], centre[1]) + 1e-6)
        axes = np.stack([outwards, np.cross((0, 0, 1.0), outwards), (0, 0, 1.0)], axis=1)
        radii = np.array([10, 38, 95]) * np.exp(rng.normal(0, 0.25, 3))
        quadrics.append(quadric(axes, radii, centre))
    index, gap = nearest(positions, np.array(quadrics))
    values = np.array([palette.label(f"muscle_{n}") or 0 for n in range(1, len(quadrics) + 1)], np.uint8)
    canvas.labels.ravel()[flat] = values[index]
    base = palette.table[M.MUSCLE]
    own = [palette.material(base[0] + rng.normal(0, 6), *base[1:]) for _ in quadrics]
    palette.muscles.extend(own)
    canvas.materials.ravel()[flat] = np.array(own, np.uint8)[index]
    planes = flat[gap < rng.uniform(0.04, 0.12) + 0.03 * canvas.fine.ravel()[flat]]
    canvas.materials.ravel()[planes] = M.FAT_SUBCUTANEOUS
    canvas.labels.ravel()[planes] = 0


# ---- vessels -----------------------------------------------------------------------------------------------------


def paint_vessels(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """Vessels that the ordinary phantom lacks, where the tissue around them is one that they run through."""
    _paint_liver_vessels(canvas, palette, rng)
    _paint_renal_vessels(canvas, palette, rng)
    soft = (M.FAT_VISCERAL, M.MUSCLE, M.SOFT, M.PANCREAS)
    for name, material, start, heading, radius, most in (
        ("superior_mesenteric_artery", M.AORTA, (-5, 4, 226), (4, 30, -60), 3.6, 16),
        ("superior_mesenteric_vein", M.PORTAL, (18, 12, 228), (-4, 24, -60), 5.0, 14),
        ("inferior_mesenteric_artery", M.AORTA, (-6, 0, 160), (-40, 4, -40), 2.2, 6),
    ):
        around = tree(rng, start, heading, radius, (-90, -20, 60), (90, 110, 235), most)
        _paint_tree(canvas, around, palette.label(name), material, soft)
    splenic = [(-6, 2, 240, 3.0), (-26, 8, 250, 2.8), (-44, -6, 256, 2.6), (-62, -14, 268, 2.5), (-86, -26, 272, 2.2)]
    points = np.array(splenic, float) + np.column_stack([rng.normal(0, 5, (5, 3)), np.zeros(5)])
    canvas.paint(tube(smooth_path(points, 5)[0]), palette.label("splenic_artery"), M.AORTA, soft)
    for side, sign in SIDES:
        for kind, material, shift, radius in (("artery", M.AORTA, 0, 3.4), ("vena", M.ILIAC_VEIN, -8, 4.4)):
            inner = tree(rng, (sign * 42, -12 + shift, 78), (sign * 8, -22, -40), radius,
                         (-90, -80, -50), (90, 20, 80), 9)  # fmt: skip
            name = palette.label(f"internal_iliac_{kind}_{side}")
            _paint_tree(canvas, inner, name, material, (M.FAT_VISCERAL, M.MUSCLE, M.FAT_SUBCUTANEOUS))
    _paint_upper_vessels(canvas, palette, rng)


def _paint_tree(canvas: Canvas, branches, label: int | None, material: int, over) -> None:
    for path in branches[::-1]:
        canvas.paint(capsules(path), label, material, over)


def _paint_liver_vessels(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """Portal and hepatic veins; they keep the liver's label, or have one of their own."""
    apart = rng.random() < 0.4
    box = (-80, -90, 190), (140, 90, 360)
    for name, material, hub, aims in (
        ("portal_branches", M.PORTAL, (32, 0, 262), ((40, 8, 20), (50, -30, -20), (-40, 40, 25))),
        ("hepatic_veins", M.CAVA, (27, -18, 322), ((50, -20, -40), (30, 40, -40), (-30, 40, -25))),
    ):
        label = palette.label(name) if apart else None
        for aim in aims:
            branches = tree(rng, hub, np.add(aim, rng.normal(0, 8, 3)), rng.uniform(3.2, 5.5), *box, 12)
            _paint_tree(canvas, branches, label, material, (M.LIVER,))


def _paint_renal_vessels(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    for side, sign in SIDES:
        for kind, material, source, radius in (
            ("vein", M.CAVA, (18, -8, 206), 4.2),
            ("artery", M.AORTA, (-6, -6, 212), 2.6),
        ):
            stop = (sign * 50, -34, 208 if side == "right" else 216)
            middle = (np.add(source, stop) / 2) + rng.normal(0, 3, 3)
            path = np.array([(*source, radius), (*middle, radius), (*stop, 0.85 * radius)])
            label = palette.label(f"renal_{kind}_{side}")
            over = (M.FAT_VISCERAL, M.MUSCLE, M.URINE_UPPER)
            canvas.paint(tube(smooth_path(path, 5)[0]), label, material, over)


def _paint_upper_vessels(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """The great vessels above the arch, and the pulmonary veins."""
    over = (M.FAT_VISCERAL, M.MUSCLE, M.SOFT, M.FAT_SUBCUTANEOUS)
    for name, (material, points) in _UPPER_VESSELS.items():
        path = np.array(points, float)
        path[:, :3] += rng.normal(0, 2, 3)
        canvas.paint(tube(smooth_path(path, 7)[0]), palette.label(name), material, over)
    label = palette.label("pulmonary_vein")
    for _, sign in SIDES:
        for height, end in ((400, 425), (384, 360)):
            heading = (sign * 50, rng.normal(0, 10), end - height)
            branches = tree(rng, (sign * 22 - 4, -14, height), heading, 5.5, (-110, -80, 300), (110, 80, 500), 7)
            _paint_tree(canvas, branches, label, M.BLOOD_LEFT, (M.LUNG, M.FAT_VISCERAL, M.LUNG_VESSEL, M.SOFT))


# ---- masses and implants -------------------------------------------------------------------------------------------


def paint_masses(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """Lesions of organs, muscle, bone, lung and fat, each with a label of its own."""
    kinds = {name: (material,) for name, (material, _) in _MASSES.items()}
    kinds["muscle"] += tuple(palette.muscles)
    places = {name: np.flatnonzero(np.isin(canvas.materials, own)) for name, own in kinds.items()}
    chances = np.array([chance * (len(places[name]) > 200) for name, (_, chance) in _MASSES.items()], float)
    if not chances.any():
        return
    for number in range(1, int(rng.integers(3, 13)) + 1):
        name = list(_MASSES)[rng.choice(len(chances), p=chances / chances.sum())]
        voxel = np.unravel_index(rng.choice(places[name]), canvas.labels.shape)
        centre = np.array([p[voxel] for p in canvas.position], float)
        most_mm = {"adrenal": 14, "wall": 14, "lung": 18, "muscle": 55}.get(name, 34)
        size_mm = float(np.exp(rng.uniform(np.log(4), np.log(most_mm))))
        hu = _mass_hu(palette.table[canvas.materials[voxel]][0], rng)
        label = palette.label(f"{name}_lesion_{number}")
        over = kinds[name] if rng.random() < 0.5 else _soft(palette)
        lobes = [centre + rng.normal(0, 0.5, 3) * size_mm * (n > 0) for n in range(rng.choice((1, 1, 2, 4)))]
        shapes = [ellipsoid(lobe, size_mm * np.exp(rng.normal(0, 0.25, 3)), *rng.uniform(0, 3, 2)) for lobe in lobes]
        rough = (rng.normal(0, 0.1) * size_mm, rng.normal(0, 0.05) * size_mm)
        mass = palette.material(hu, rng.uniform(1, 9), rng.uniform(2, 10))
        canvas.paint(shapes, label, mass, over, rough)
        if size_mm > 11 and rng.random() < 0.35:
            core = palette.material(hu + rng.choice((-40, -25, 30, 200)), 5, 8)
            canvas.paint(ellipsoid(centre, np.full(3, 0.45 * size_mm)), None, core, (mass,), rough)


def _mass_hu(around_hu: float, rng: np.random.Generator) -> float:
    if around_hu < -40 or around_hu > 150:  # in lung and fat soft tissue; in bone and bright blood too, or denser
        return rng.uniform(0, 90) if around_hu < 150 or rng.random() < 0.6 else rng.uniform(350, 900)
    return around_hu + rng.choice((-1, -1, 1)) * rng.uniform(12, 65)


def _soft(palette: Palette) -> tuple[int, ...]:
    """Materials that a mass grows into: neither bone nor air nor table, nor what came after the organs."""
    hard = (M.AIR, M.SKIN, M.BONE_CORTICAL, M.GAS, M.TABLE_SHELL, M.TABLE_FOAM, M.AIRWAY)
    return tuple(m for m in range(len(palette.table)) if m not in hard)


def paint_implants(canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
    """Metal in a quarter of the phantoms: a hip, screws in the spine, clips."""
    if rng.random() > 0.25:
        return
    metal = palette.material(rng.uniform(*METAL_HU), 0, 0)
    kind = rng.choice(("hip", "screws", "clips"))
    if kind == "hip":
        side, sign = SIDES[rng.integers(2)]
        parts = [
            ellipsoid((sign * 89, 0, 0), np.full(3, 17.0)),
            capsule((sign * 92, -1, -2), (sign * 120, -8, -26), 8, 9),
        ]
        parts.append(capsule((sign * 120, -8, -26), (sign * 118, 0, -165), 9, 6))
        canvas.paint(parts, palette.label(f"hip_implant_{side}"), metal)
    elif kind == "screws":
        for z in (116, 148, 178):
            for _, sign in SIDES:
                screw = capsule((sign * 17, -82, z), (sign * 8, -34, z), 3.2, 2.6)
                canvas.paint(screw, palette.label("screws"), metal)
                canvas.paint(capsule((sign * 18, -84, 110), (sign * 18, -84, 184), 3, 3), palette.label("rod"), metal)
    else:
        fat = np.flatnonzero(canvas.materials == M.FAT_VISCERAL)
        for voxel in rng.choice(fat, min(len(fat), 5)):
            centre = np.array([p.ravel()[voxel] for p in canvas.position], float)
            canvas.paint(capsule(centre, centre + rng.normal(0, 4, 3), 1.6, 1.6), None, metal)


# ---- what is left --------------------------------------------------------------------------------------------------


def label_the_rest(canvas: Canvas, palette: Palette) -> None:
    """A label for what is painted but belongs to no class, where it is large enough; parts apart where they are."""
    for material, (name, apart) in _LEFT_OVER.items():
        mask = (canvas.labels == 0) & (canvas.materials == material)
        parts = cc3d.dust(mask, threshold=LEAST_VOXELS, connectivity=26)
        if not parts.any():
            continue
        if not apart:
            canvas.labels[parts] = palette.label(name) or 0
            continue
        numbers = cc3d.connected_components(parts, connectivity=26)
        sizes = np.bincount(numbers.ravel())
        for number, value in enumerate(np.argsort(-sizes[1:], kind="stable")[:24] + 1, start=1):
            canvas.labels[numbers == value] = palette.label(f"{name}_{number}") or 0
