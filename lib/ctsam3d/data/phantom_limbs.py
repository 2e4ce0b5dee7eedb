"""Limbs: thighs with the knees, lower legs, and an arm beside the chest, as rich phantoms.

Axes are x to the Right, y to Anterior, z to Superior in mm, as in `phantom_canvas`; z = 0 is a region's lower end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantom_canvas import Canvas, Shape, SmoothField, capsule, ellipsoid, smooth_path, tube
from ctsam3d.data.phantom_frame import SIDES
from ctsam3d.data.phantom_materials import Material as M
from ctsam3d.data.phantom_materials import tissue_tables
from ctsam3d.data.phantom_rich import Palette, paint_implants, paint_masses
from ctsam3d.data.random_shapes import capsules, nearest, quadric, tree

LIMB_REGIONS_MM = {"thighs": 400.0, "lower_legs": 380.0, "arm": 300.0}
"""Height of each region; a scan shows 150 mm of it at least."""


@dataclass(frozen=True)
class Limb:
    """The hull of a limb's muscles at the heights `z_mm`: centre and half axes, and what it is called.

    Attributes:
        hull: (n, 4): x, y, half width, half depth in mm.
        core: (x, y) of the bone from the centre, in half axes.
    """

    side: str
    sign: float
    z_mm: np.ndarray
    hull: np.ndarray
    core: tuple[float, float]

    def at(self, z):
        """x, y, half width and half depth at heights of any shape."""
        return tuple(np.interp(z, self.z_mm, column).astype(np.float32) for column in self.hull.T)

    def place(self, z: float, u: float, v: float) -> np.ndarray:
        """The point (3,) at `u`, `v` half axes from the centre at one height."""
        x, y, a, b = (float(value) for value in self.at(z))
        return np.array([x + u * a, y + v * b, z])


def paint_limbs(seed: int, spacing_mm, region: str) -> tuple[Canvas, Palette, list[np.ndarray]]:
    """A region of `LIMB_REGIONS_MM` with everything in it: canvas, palette, and world coordinates of the axes in mm."""
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence((seed, 2)).spawn(8)]
    canvas, world = _canvas(rngs[0], spacing_mm, region)
    palette = Palette([tuple(map(float, row)) for row in zip(*tissue_tables(rngs[1]))])
    palette.marrow = palette.material(rngs[1].uniform(-90, 40), 12, 15)
    limbs, fat_mm = _limbs(rngs[2], region), rngs[2].uniform(4, 32)
    if region == "arm":
        _paint_chest(canvas, palette, rngs[3], fat_mm)
    for limb in limbs:
        _paint_hull(canvas, palette, limb, fat_mm, rngs[4])
        _paint_bundles(canvas, palette, limb, fat_mm, rngs[5])
    for limb in limbs:
        _BONES[region](canvas, palette, limb, rngs[6])
    paint_masses(canvas, palette, rngs[7])
    if region == "thighs":
        paint_implants(canvas, palette, rngs[7])
    return canvas, palette, world


def _canvas(rng: np.random.Generator, spacing_mm, region: str) -> tuple[Canvas, list[np.ndarray]]:
    height = LIMB_REGIONS_MM[region]
    shown = rng.uniform(150, height)
    bottom = rng.uniform(0, height - shown)
    limits = {"thighs": (-215, 215), "lower_legs": (-190, 190), "arm": (-150, 150)}[region], (-130, 130)
    world = [np.arange(a, b, s) for (a, b), s in zip((*limits, (bottom, bottom + shown)), spacing_mm)]
    yaw, pitch = rng.normal(0, (0.1, 0.05))
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    rotation = turn @ tip
    pivot = np.array([0, 0, height / 2])
    warp = [SmoothField(rng, 62.0) for _ in range(3)]
    relief = SmoothField(rng, 24.0), SmoothField(rng, 9.0)
    return Canvas(tuple(world), rotation, pivot - rotation @ pivot, warp, rng.uniform(2, 5), relief), world


def _limbs(rng: np.random.Generator, region: str) -> list[Limb]:
    size = rng.uniform(0.85, 1.15)
    if region == "arm":
        z = np.array([0, 60, 150, 230, 300.0])
        hull = np.array([[78, 0, 36, 38], [76, 0, 42, 45], [72, 2, 46, 50], [62, 2, 54, 56], [45, 0, 58, 54]], float)
        hull[:, 2:] *= 0.9 * size
        return [Limb("right", 1.0, z, hull, (0.05, 0.0))]
    if region == "thighs":
        z, x = np.array([0, 60, 160, 280, 400.0]), np.array([78, 82, 90, 97, 100.0])
        wide, deep = np.array([48, 52, 66, 76, 80.0]) * size, np.array([50, 55, 68, 80, 84.0]) * size
        core = (0.1, 0.15)
    else:
        z, x = np.array([0, 90, 200, 280, 380.0]), np.array([70, 72, 75, 78, 80.0])
        wide, deep = np.array([28, 36, 50, 54, 50.0]) * size, np.array([30, 40, 54, 58, 52.0]) * size
        core = (-0.25, 0.4)
    y = rng.normal(0, 4) + np.zeros(5)
    return [
        Limb(side, sign, z, np.column_stack([sign * x, y + rng.normal(0, 3), wide, deep]), (sign * core[0], core[1]))
        for side, sign in SIDES
    ]


def _paint_hull(canvas: Canvas, palette: Palette, limb: Limb, fat_mm: float, rng: np.random.Generator) -> None:
    """Skin, fat, and the muscles as cells around the bone, long along z, with fat between them."""
    x, y, z = canvas.position
    cx, cy, a, b = limb.at(z)
    u, v = (x - cx) / a, (y - cy) / b
    depth = (np.sqrt(u * u + v * v) - 1) * np.minimum(a, b) + canvas.coarse
    fat = np.float32(fat_mm) * (1 + 0.12 * canvas.coarse)
    ours = (np.sign(x) == limb.sign) | (depth < 0)
    for inside, label, material in (
        ((depth < fat) & ours, 0, M.SKIN),
        ((depth < fat - 2.0) & ours, VALUE_OF["subcutaneous_fat"], M.FAT_SUBCUTANEOUS),
    ):
        inside &= canvas.materials != M.LUNG
        canvas.labels[inside], canvas.materials[inside] = label, material
    skin = (canvas.materials == M.SKIN) & (canvas.labels == 0)
    canvas.labels[skin] = palette.label("skin") or 0
    flat = np.flatnonzero(depth < 0)
    if not len(flat):
        return
    scale = np.float32(limb.hull[:, 2:].mean())
    positions = np.stack([u.ravel()[flat] * scale, v.ravel()[flat] * scale, z.ravel()[flat]])
    quadrics = _muscle_cells(rng, float(scale))
    index, gap = nearest(positions, quadrics)
    split = rng.random() < 0.75
    values = [palette.label(f"muscle_{limb.side}_{n}") or 0 if split else VALUE_OF["skeletal_muscle"]
              for n in range(len(quadrics))]  # fmt: skip
    mean, coarse, fine = palette.table[M.MUSCLE]
    own = [palette.material(mean + rng.normal(0, 7), coarse, fine) for _ in quadrics]
    palette.muscles.extend(own)
    canvas.labels.ravel()[flat] = np.array(values, np.uint8)[index]
    canvas.materials.ravel()[flat] = np.array(own, np.uint8)[index]
    planes = flat[gap < rng.uniform(0.02, 0.09) + 0.04 * canvas.fine.ravel()[flat]]
    canvas.materials.ravel()[planes] = M.FAT_SUBCUTANEOUS
    canvas.labels.ravel()[planes] = palette.label("intermuscular_fat") or 0


def _muscle_cells(rng: np.random.Generator, scale: float) -> np.ndarray:
    """An outer and an inner ring of muscles, in coordinates where the limb is a cylinder of radius `scale`."""
    quadrics = []
    for ring, count in ((0.75, rng.integers(6, 10)), (0.38, rng.integers(3, 6))):
        for angle in (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + rng.uniform(0, 6):
            radius = ring * scale * rng.uniform(0.85, 1.15)
            centre = (radius * np.cos(angle), radius * np.sin(angle), rng.uniform(50, 350))
            # The axis leans, so that muscles wind around the bone.
            lean = np.array([rng.normal(0, 0.08), rng.normal(0, 0.08), 1.0])
            lean /= np.linalg.norm(lean)
            side = np.cross(lean, (np.cos(angle), np.sin(angle), 0.0))
            side /= np.linalg.norm(side)
            axes = np.stack([np.cross(side, lean), side, lean], axis=1)
            radii = scale * np.array([0.3, 0.42, 3.2]) * np.exp(rng.normal(0, 0.2, 3))
            quadrics.append(quadric(axes, radii, centre))
    return np.array(quadrics)


def _paint_bundles(canvas: Canvas, palette: Palette, limb: Limb, fat_mm: float, rng: np.random.Generator) -> None:
    """Artery, veins and nerve in their fat between the muscles, branches, and veins under the skin."""
    heights = np.linspace(-20, 420, 9)
    inside = (M.MUSCLE, M.FAT_SUBCUTANEOUS, *palette.muscles)
    for number in range(int(rng.integers(1, 4))):
        angle, reach = rng.uniform(0, 6.28), rng.uniform(0.3, 0.6)
        wind = angle + rng.uniform(-0.6, 0.6) * np.linspace(0, 1, 9)
        centre = np.array([limb.place(z, reach * np.cos(w), reach * np.sin(w)) for z, w in zip(heights, wind)])
        sheath = smooth_path(np.column_stack([centre, np.full(9, rng.uniform(5, 9))]), 12)[0]
        canvas.paint(tube(sheath), palette.label("intermuscular_fat"), M.FAT_SUBCUTANEOUS, inside)
        for kind, material, radius in (("artery", M.AORTA, 2.6), ("vein", M.ILIAC_VEIN, 3.4), ("nerve", M.SOFT, 2.4)):
            size = radius * rng.uniform(0.7, 1.4)
            turn = rng.uniform(0, 6.28)
            path = np.column_stack([np.add(centre, [3.4 * np.cos(turn), 3.4 * np.sin(turn), 0]), np.full(9, size)])
            label = palette.label(f"{kind}_{limb.side}_{number + 1}")
            canvas.paint(tube(smooth_path(path, 8)[0]), label, material, inside)
            if kind != "nerve":
                start = path[rng.integers(2, 7)]
                heading = rng.normal(size=3) * (1, 1, 0.4) - (0, 0, 0.7)
                corner = np.array([90, 90, 200])
                branches = tree(rng, start[:3], heading, 0.7 * size, start[:3] - corner, start[:3] + corner, 5)
                for branch in branches[::-1]:
                    canvas.paint(capsules(branch), label, material, inside)
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, 6.28) + rng.uniform(-0.5, 0.5) * np.linspace(0, 1, 9)
        rim = [limb.place(z, np.cos(w), np.sin(w)) for z, w in zip(heights, angle)]
        out = 0.5 * fat_mm * np.column_stack([np.cos(angle), np.sin(angle), np.zeros(9)])
        vein = np.column_stack([np.array(rim) + out, np.full(9, rng.uniform(1.3, 2.8))])
        canvas.paint(tube(smooth_path(vein, 9)[0]), palette.label(f"superficial_vein_{limb.side}"), M.ILIAC_VEIN,
                     (M.FAT_SUBCUTANEOUS,))  # fmt: skip


# ---- bones -------------------------------------------------------------------------------------------------------


def _paint_long_bone(canvas, palette, label, path, cortex_mm, ends: list[Shape], rng) -> None:
    """A shaft along `path` (n, 4) with marrow in it, and thick ends of spongy bone."""
    rough = (0.4 * rng.choice((-1, 1)), 0.3)
    canvas.paint([*tube(path), *ends], label, M.BONE_CORTICAL, rough_mm=rough)
    canvas.paint(_inside_cortex(ends), label, M.BONE_SPONGY, (M.BONE_CORTICAL,), rough)
    canvas.paint(tube(path, cortex_mm), label, palette.marrow, (M.BONE_CORTICAL, M.BONE_SPONGY), rough)


def _inside_cortex(shapes: list[Shape], by_mm: float = 1.8) -> list[Shape]:
    """The same solids inside their cortex."""
    return [Shape(s.low_mm, s.high_mm, lambda x, y, z, s=s: s.distance(x, y, z) + np.float32(by_mm)) for s in shapes]


def _paint_thigh_bones(canvas: Canvas, palette: Palette, limb: Limb, rng: np.random.Generator) -> None:
    size, sign = rng.uniform(0.9, 1.1), limb.sign
    u, v = limb.core
    middle = [limb.place(z, u, v + 0.05 * np.sin(z / 60)) for z in (40, 110, 190, 280, 420)]
    path = smooth_path(np.column_stack([middle, size * np.array([19, 14, 13.5, 14.5, 18])]), 10)[0]
    knee = limb.place(14, 0, 0.05)
    condyles = [ellipsoid(np.add(knee, [d * 23 * size, -8, 0]), size * np.array([18, 29, 24])) for d in (-1, 1)]
    neck = capsule(np.add(knee, [0, 8, 6]), middle[0], 20 * size, 18 * size)
    plateau = [ellipsoid(np.add(knee, [0, -4, -44 * size]), size * np.array([41, 27, 24]))]
    gristle = [ellipsoid(np.add(knee, [d * 23 * size, -8, -1]), size * np.array([20.5, 31, 27])) for d in (-1, 1)]
    canvas.paint(gristle, palette.label("joint_cartilage"), M.SOFT)
    canvas.paint(plateau, palette.label(f"tibia_{limb.side}"), M.BONE_CORTICAL, rough_mm=(0.3, 0.3))
    canvas.paint(_inside_cortex(plateau), palette.label(f"tibia_{limb.side}"), M.BONE_SPONGY, (M.BONE_CORTICAL,))
    label = VALUE_OF[f"femur_{limb.side}"]
    _paint_long_bone(canvas, palette, label, path, rng.uniform(4, 7), [*condyles, neck], rng)
    patella = [ellipsoid(np.add(knee, [0, 34 * size, 12]), size * np.array([20, 9, 21]))]
    canvas.paint(patella, palette.label(f"patella_{limb.side}"), M.BONE_CORTICAL, rough_mm=(0.2 * sign, 0.3))
    canvas.paint(_inside_cortex(patella), palette.label(f"patella_{limb.side}"), M.BONE_SPONGY, (M.BONE_CORTICAL,))


def _paint_lower_bones(canvas: Canvas, palette: Palette, limb: Limb, rng: np.random.Generator) -> None:
    size, sign = rng.uniform(0.9, 1.1), limb.sign
    shaft = [limb.place(z, *limb.core) for z in (5, 80, 180, 270, 315)]
    path = smooth_path(np.column_stack([shaft, size * np.array([15, 11, 12.5, 14, 20])]), 10)[0]
    knee = limb.place(340, 0, 0.0)
    plateau = [ellipsoid(np.add(knee, [0, -2, -6]), size * np.array([39, 26, 20]))]
    plateau.append(capsule(np.add(knee, [0, 0, -16]), shaft[-1], 22 * size, 20 * size))
    canvas.paint([ellipsoid(np.add(knee, [0, -2, 18 * size]), size * np.array([40, 28, 12]))],
                 palette.label("joint_cartilage"), M.SOFT)  # fmt: skip
    tibia = palette.label(f"tibia_{limb.side}")
    _paint_long_bone(canvas, palette, tibia, path, rng.uniform(3.5, 6), plateau, rng)
    outer = [limb.place(z, 0.45 * sign, -0.05) for z in (-5, 90, 200, 290, 322)]
    path = smooth_path(np.column_stack([outer, size * np.array([9, 6, 6, 6.5, 10])]), 8)[0]
    head = [ellipsoid(outer[-1], size * np.full(3, 11.0))]
    _paint_long_bone(canvas, palette, palette.label(f"fibula_{limb.side}"), path, rng.uniform(2, 3.5), head, rng)
    femur = [ellipsoid(np.add(knee, [d * 22 * size, -6, 42 * size]), size * np.array([17, 27, 22])) for d in (-1, 1)]
    canvas.paint(femur, VALUE_OF[f"femur_{limb.side}"], M.BONE_CORTICAL, rough_mm=(0.3, 0.3))
    canvas.paint(_inside_cortex(femur), VALUE_OF[f"femur_{limb.side}"], M.BONE_SPONGY, (M.BONE_CORTICAL,))


def _paint_arm_bones(canvas: Canvas, palette: Palette, limb: Limb, rng: np.random.Generator) -> None:
    size = rng.uniform(0.9, 1.1)
    shaft = [limb.place(z, *limb.core) for z in (-20, 60, 140, 210, 245)]
    path = smooth_path(np.column_stack([shaft, size * np.array([13, 11, 11, 13, 18])]), 10)[0]
    head = limb.place(262, -0.05, 0.0)
    joint = [ellipsoid(head, size * np.full(3, 26.0))]
    canvas.paint(joint, palette.label("joint_cartilage"), M.SOFT)
    blade = [ellipsoid(head - [58, 30, 40], size * np.array([34, 5, 58]), yaw=0.6),
             ellipsoid(head - [32 * size, 6, 4], size * np.array([9, 14, 18])),
             capsule(head - [60, 42, -4], np.add(head, [0, -12, 30]), 5, 8)]  # fmt: skip
    label = VALUE_OF["scapula_right"]
    canvas.paint(blade, label, M.BONE_CORTICAL, rough_mm=(0.3, 0.3))
    canvas.paint(_inside_cortex(blade), label, M.BONE_SPONGY, (M.BONE_CORTICAL,))
    ball = [ellipsoid(head, size * np.full(3, 23.0)), capsule(head, shaft[-1], 20 * size, 18 * size)]
    _paint_long_bone(canvas, palette, VALUE_OF["humerus_right"], path, rng.uniform(3, 5), ball, rng)


_BONES = {"thighs": _paint_thigh_bones, "lower_legs": _paint_lower_bones, "arm": _paint_arm_bones}


def _paint_chest(canvas: Canvas, palette: Palette, rng: np.random.Generator, fat_mm: float) -> None:
    """The side of the chest: skin, fat, a wall of muscle with ribs, lung."""
    x, y, _ = canvas.position
    wide, deep = np.float32(rng.uniform(125, 150)), np.float32(rng.uniform(85, 105))
    u, v = (x + 110) / wide, y / deep
    depth = (np.sqrt(u * u + v * v) - 1) * deep + canvas.coarse
    for limit, label, material in (
        (fat_mm, palette.label("skin"), M.SKIN),
        (fat_mm - 2, VALUE_OF["subcutaneous_fat"], M.FAT_SUBCUTANEOUS),
        (0, VALUE_OF["skeletal_muscle"], M.MUSCLE),
        (-22, VALUE_OF["lung_upper_lobe_right"], M.LUNG),
    ):
        inside = depth < np.float32(limit)
        canvas.labels[inside], canvas.materials[inside] = label, material
    for number, height in enumerate(np.arange(-40, 420, rng.uniform(24, 32)), start=1):
        angles = np.linspace(-2.2, 2.2, 22)
        a, b = wide - 17, deep - 17
        ring = np.column_stack([a * np.cos(angles) - 110, b * np.sin(angles), height + 14 * np.sin(angles)])
        path = np.column_stack([ring, np.full(len(ring), 5.0)])
        label = palette.label(f"rib_{number}")
        canvas.paint(capsules(path), label, M.BONE_CORTICAL)
        canvas.paint(capsules(path, -1.6), label, M.BONE_SPONGY)
    hub = np.array([-110.0, 0, 150])
    for _ in range(14):
        target = hub + rng.normal(0, (55, 40, 70))
        for branch in tree(rng, hub, target - hub, rng.uniform(2, 4.5), hub - 160, hub + 160, 4):
            canvas.paint(capsules(branch), None, M.LUNG_VESSEL, (M.LUNG,))
