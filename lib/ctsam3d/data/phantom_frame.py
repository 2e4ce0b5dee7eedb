"""The frame of a phantom: body outline, walls and skeleton. Coordinates as in `phantom_canvas`, in reference mm."""

from __future__ import annotations

import numpy as np

from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantom_canvas import Canvas, Shape, capsule, column, ellipsoid, half_space, intersection, tube
from ctsam3d.data.phantom_materials import Material as M

SIDES = (("left", -1.0), ("right", 1.0))
WALL_ROUGH_MM = (0.8, 0.2)  # of the cavity, and of the lungs, which fill it to the wall

_LUMBAR_MM, _THORACIC_MM = 31.0, 22.5  # mean height of a vertebra with its disc
_L5_BOTTOM_MM = 104.0

_PROFILE_Z = np.array([-160, -30, 30, 80, 120, 180, 240, 300, 360, 420, 480, 520, 560, 640], float)
_MUSCLE_X = np.array([145, 150, 150, 143, 133, 131, 137, 141, 146, 150, 158, 158, 100, 60], float)
_MUSCLE_Y = np.array([80, 88, 90, 88, 86, 88, 92, 97, 100, 100, 94, 82, 64, 55], float)
_CAVITY_Z = np.array([-45, -20, 20, 60, 85, 110, 140, 180, 240, 300, 360, 420, 480, 520, 545], float)
_CAVITY_X = np.array([20, 46, 58, 76, 96, 112, 117, 116, 121, 125, 125, 118, 97, 66, 25], float)
_CAVITY_Y = np.array([20, 44, 55, 66, 72, 74, 75, 77, 82, 87, 89, 84, 68, 45, 18], float)


class Frame:
    """Body walls and spine of one patient: drawn once, asked by every organ."""

    def __init__(self, rng: np.random.Generator):
        self.fat_mm = rng.uniform(9, 32)
        belly = rng.uniform(0, 22) * np.exp(-(((_PROFILE_Z - 190) / 90) ** 2))
        self.muscle_x = _MUSCLE_X * rng.uniform(0.97, 1.03) + 0.5 * belly
        self.muscle_y = _MUSCLE_Y * rng.uniform(0.96, 1.04) + 0.6 * belly + 3
        belly = np.interp(_CAVITY_Z, _PROFILE_Z, belly)
        self.cavity_x, self.cavity_y = _CAVITY_X + 0.4 * belly, _CAVITY_Y + 0.55 * belly - 4
        self.muscle_centre_y = 0.55 * np.interp(_PROFILE_Z, _CAVITY_Z, belly) - 3
        self.cavity_centre_y = 8.0 + 0.55 * belly
        self.lordosis_mm, self.kyphosis_mm = rng.uniform(4, 12), rng.uniform(8, 20)
        self.scoliosis_mm, self.spine_phase = rng.normal(0, 2.5), rng.uniform(0, 6.28)
        self.pelvis_size = rng.uniform(0.95, 1.05)
        radii = np.array([122, 86, 132]) * self.pelvis_size
        self.iliac_bowl = ellipsoid((0, -6, 108), radii)  # the wings of the hip bones are parts of it
        self.dome_mm = {"right": rng.uniform(338, 356), "left": rng.uniform(326, 346)}
        self.cavity = column(_CAVITY_Z, 0.0, self.cavity_centre_y, self.cavity_x, self.cavity_y, squareness=0.6)
        self.muscle = column(_PROFILE_Z, 0.0, self.muscle_centre_y, self.muscle_x, self.muscle_y, squareness=0.9)

    def spine_x(self, z):
        return self.scoliosis_mm * np.sin(np.asarray(z) / 90 + self.spine_phase)

    def spine_y(self, z):
        """Anterior coordinate of the centres of the vertebral bodies."""
        z = np.asarray(z, float)
        lordosis = self.lordosis_mm * np.exp(-(((z - 170) / 70) ** 2))
        return -38 + lordosis - self.kyphosis_mm * np.exp(-(((z - 410) / 110) ** 2))

    def cavity_wall(self, z, angle: float, outside_mm: float) -> np.ndarray:
        """Point on the wall of the cavity; `angle` runs from 0 at the back over pi/2 at the right to pi in front."""
        a, b = (np.interp(z, _CAVITY_Z, v) + outside_mm for v in (self.cavity_x, self.cavity_y))
        y = np.interp(z, _CAVITY_Z, self.cavity_centre_y) - b * np.cos(angle)
        return np.array([a * np.sin(angle), y, z])

    def inside_cavity(self, margin_mm: float) -> Shape:
        return half_space(lambda x, y, z: self.cavity.distance(x, y, z) + np.float32(margin_mm))

    def diaphragm(self, side: str, offset_mm: float, above: bool) -> Shape:
        """What lies above or below the dome of one side, moved up by `offset_mm`."""
        centre_x = np.float32(60.0 if side == "right" else -62.0)
        top, sign = np.float32(self.dome_mm[side] + offset_mm), np.float32(-1 if above else 1)

        def distance(x, y, z):
            fall = ((x - centre_x) ** 2 * np.float32(1 / 95) + (y - 12) ** 2 * np.float32(1 / 75)).clip(None, 150)
            return (z - top + fall) * sign * np.float32(0.7)

        return half_space(distance)


def vertebra_levels() -> list[tuple[str, float, float]]:
    """(level, height of its centre, height of the vertebra without disc) from L5 to T1."""
    levels, bottom = [], _L5_BOTTOM_MM
    for group, count, mean in (("L", 5, _LUMBAR_MM), ("T", 12, _THORACIC_MM)):
        for number in range(count, 0, -1):
            pitch = mean if group == "L" else mean + 0.5 * (number - 6.5)
            disc = 7.0 if group == "L" else 4.5
            levels.append((f"{group}{number}", bottom + pitch / 2, pitch - disc))
            bottom += pitch
    return levels


def paint_walls(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat, muscle wall and the fat of the cavity, over the whole grid."""
    muscle = frame.muscle.distance(*canvas.position)
    x, y, _ = canvas.position
    muscle += canvas.coarse * np.float32(0.7)
    thickness = canvas.coarse * np.float32(0.08) + np.float32(1.0)
    thickness += (y * np.float32(0.003)).clip(-0.25, 0.35)
    thickness += (np.abs(x) * np.float32(-0.0015)).clip(-0.25, 0)
    skin = muscle - thickness * np.float32(frame.fat_mm)
    for inside, label, material in (
        (skin < 0, 0, M.SKIN),
        (skin < -2.0, VALUE_OF["subcutaneous_fat"], M.FAT_SUBCUTANEOUS),
        (muscle < 0, VALUE_OF["skeletal_muscle"], M.MUSCLE),
    ):
        np.copyto(canvas.labels, np.uint8(label), where=inside)
        np.copyto(canvas.materials, np.uint8(material), where=inside)
    # Muscles are bundles: fat runs between them where the relief is high, most of it around the hips.
    # No class holds it, so it stays without a label.
    streaks = (muscle < -1) & (np.abs(canvas.coarse) < np.float32(rng.uniform(0.03, 0.08))) & (canvas.fine > -0.2)
    np.copyto(canvas.materials, np.uint8(M.FAT_SUBCUTANEOUS), where=streaks)
    np.copyto(canvas.labels, np.uint8(0), where=streaks)
    canvas.paint(frame.cavity, VALUE_OF["visceral_fat"], M.FAT_VISCERAL, rough_mm=WALL_ROUGH_MM)


def paint_back_muscles(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Autochthon, iliopsoas and the three gluteal muscles of each side."""
    z = np.array([25, 60, 110, 180, 260, 340, 430, 520.0])
    size = rng.uniform(0.85, 1.1)
    outside_bowl = half_space(lambda x, y, z: -frame.iliac_bowl.distance(x, y, z))
    for side, sign in SIDES:
        width = size * np.array([9, 18, 25, 27, 25, 22, 19, 15])
        depth = size * np.array([6, 11, 17, 19, 17, 14, 12, 10])
        x = frame.spine_x(z) + sign * (width + 3)
        back = column(z, x, frame.spine_y(z) - 32 - 0.5 * depth, width, depth, 0.6)
        within = (M.MUSCLE, M.FAT_SUBCUTANEOUS, M.FAT_VISCERAL)
        canvas.paint(back, VALUE_OF[f"autochthon_{side}"], M.MUSCLE, within, rough_mm=(sign * 0.7, 0.4))
        psoas = [(30, 250, -2, 7), (36, 200, 2, 14), (44, 150, 4, 20), (56, 100, 12, 21), (72, 50, 36, 19)]
        psoas += [(80, 15, 44, 17), (88, -15, 26, 15), (104, -50, -6, 10)]
        path = [(sign * a, frame.spine_y(max(h, 140)) + dy, h, size * r) for a, h, dy, r in psoas]
        iliacus = ellipsoid((sign * 88, -8, 92), (17, 38, 40), yaw=sign * 0.35, roll=-sign * 0.35)
        value = VALUE_OF[f"iliopsoas_{side}"]
        canvas.paint([*tube(np.array(path)), iliacus], value, M.MUSCLE, rough_mm=(sign * 0.8, 0.5))
        for name, centre, radii, yaw in (
            ("maximus", (72, -70, 12), (62, 31, 82), 0.42),
            ("medius", (122, -14, 66), (24, 52, 58), 0.25),
            ("minimus", (113, 12, 50), (16, 32, 38), 0.3),
        ):
            radii_mm = np.array(radii) * size * rng.uniform(0.93, 1.07, 3)
            muscle = ellipsoid((sign * centre[0], *centre[1:]), radii_mm, yaw=sign * yaw)
            muscle = intersection(muscle, outside_bowl)
            value = VALUE_OF[f"gluteus_{name}_{side}"]
            allowed = (M.MUSCLE, M.FAT_SUBCUTANEOUS)
            canvas.paint(muscle, value, M.MUSCLE, allowed, rough_mm=(sign * 0.8, 0.4))


def _bone(canvas: Canvas, shapes: list[Shape], inner: list[Shape], label: int | None, rough_mm: float = 0.5) -> None:
    """Cortical bone with a spongy core."""
    canvas.paint(shapes, label, M.BONE_CORTICAL, rough_mm=(0.3, rough_mm))
    canvas.paint(inner, label, M.BONE_SPONGY, rough_mm=(0.3, rough_mm))


def paint_spine(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Vertebrae L5 to T1 with arches and processes, discs, spinal canal and sacrum."""
    z = np.array([96.0, 540.0])
    nodes = np.linspace(*z, 40)
    x, y = frame.spine_x(nodes), frame.spine_y(nodes)
    size = rng.uniform(0.92, 1.08)
    width, depth = (np.interp(nodes, (110, 270, 520), v) * size for v in ((24, 20, 13.5), (17, 15, 10.5)))
    canvas.paint(column(nodes, x, y, width - 0.5, depth - 0.5, 0.4), 0, M.DISC)
    for level, centre, height in vertebra_levels():
        _paint_vertebra(canvas, frame, level, centre, height, size, rng.normal(0, 1.5, 4))
    canal = column(nodes, x, y - depth - 7.5, np.interp(nodes, (110, 520), (10, 8)), 7, 0.2)
    canvas.paint(canal, 0, M.CORD)
    _paint_sacrum(canvas, frame, size)


def _paint_vertebra(canvas, frame: Frame, level: str, z: float, height: float, size: float, wobble) -> None:
    label, lumbar = VALUE_OF[f"vertebrae_{level}"], level[0] == "L"
    x, y = float(frame.spine_x(z)), float(frame.spine_y(z))
    width, depth = (float(np.interp(z, (110, 270, 520), v)) * size for v in ((24, 20, 13.5), (17, 15, 10.5)))
    tilt = (float(frame.spine_y(z + 8)) - float(frame.spine_y(z - 8))) / 16

    def body(shrink: float) -> Shape:
        half = height / 2
        levels = z + (half - shrink) * np.linspace(-1, 1, 5)
        waist = np.array([1.0, 0.94, 0.91, 0.94, 1.0])
        upright = column(levels, x, y + (levels - z) * tilt, width * waist - shrink, depth * waist - shrink, 0.4)
        ends = half_space(lambda px, py, pz: np.abs(pz - z - (py - y) * np.float32(tilt)) - np.float32(half - shrink))
        return intersection(upright, ends)

    back = y - depth - 7.5  # centre of the canal
    processes, reach = [], 28.0 if lumbar else 17.0
    tip = (x + wobble[0], back - (34 if lumbar else 30) * size, z - (8 if lumbar else 20))
    processes.append(capsule((x, back - 9, z - 2), tip, 4.0, 3.4))
    for _, sign in SIDES:
        pedicle = (x + sign * width * 0.6, y - depth + 2, z + 3)
        processes.append(capsule(pedicle, (x + sign * 13, back - 3, z), 5.0, 5.0))
        processes.append(capsule((x + sign * 13, back - 3, z - 2), (x, back - 10, z - 3), 5.0, 4.0))
        wing = (x + sign * (13 + reach), back - 4 - 0.3 * reach + wobble[1], z + wobble[2])
        processes.append(capsule((x + sign * 12, back - 2, z), wing, 4.6, 3.0))
        facet = ellipsoid((x + sign * 15, back - 8, z - height * 0.55), (5, 5, 9))
        processes.append(facet)
    _bone(canvas, [*processes, body(0.0)], [body(1.7)], label)


def _paint_sacrum(canvas: Canvas, frame: Frame, size: float) -> None:
    value = VALUE_OF["sacrum"]
    z = np.array([18, 30, 50, 70, 90, 103.0])
    y = float(frame.spine_y(104)) + np.array([-34, -36, -36, -28, -14, -3.0])
    width, depth = size * np.array([7, 19, 36, 52, 60, 52]), np.array([5, 8, 10, 13, 17, 17.0])
    x = float(frame.spine_x(104))
    _bone(
        canvas,
        [column(z, x, y, width, depth, 0.2)],
        [column(np.clip(z, 20, 101), x, y, width - 2.2, depth - 2.2, 0.2)],
        value,
        0.8,
    )
    canal = [(x, y[k] - 0.45 * depth[k], z[k], 5.0 - 0.5 * (5 - k)) for k in range(2, 6)]
    canvas.paint(tube(np.array(canal)), 0, M.CORD)


def paint_pelvis(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Hip bones and proximal femora."""
    for side, sign in SIDES:
        for shrink, material in ((0.0, M.BONE_CORTICAL), (2.0, M.BONE_SPONGY)):
            parts = _hip_parts(frame, sign, shrink)
            canvas.paint(parts, VALUE_OF[f"hip_{side}"], material, rough_mm=(0.4 * sign, 0.3))
        socket = ellipsoid((sign * 88, 0, 0), (28.5, 28.5, 28.5))
        canvas.paint(intersection(socket, half_space(lambda x, y, z, s=sign: 80 - s * x - 0.2 * z)), 0, M.SOFT)
        canvas.paint(ellipsoid((sign * 88, 0, 0), (26, 26, 26)), 0, M.SOFT)
        for shrink, material in ((0.0, M.BONE_CORTICAL), (1.8, M.BONE_SPONGY)):
            femur = [
                ellipsoid((sign * 89, 0, 0), np.full(3, 24 - shrink)),
                capsule((sign * 92, -1, -2), (sign * 124, -8, -24), 16 - shrink, 17 - shrink),
                ellipsoid((sign * 133, -14, -18), (15 - shrink, 17 - shrink, 22 - shrink)),
                capsule((sign * 126, -8, -30), (sign * 118, 0, -170), 19 - 1.5 * shrink, 14 - 3 * shrink),
            ]
            canvas.paint(femur, VALUE_OF[f"femur_{side}"], material, rough_mm=(0.2, 0.3))


def _hip_parts(frame: Frame, sign: float, shrink: float) -> list[Shape]:
    """Iliac wing as part of a bowl, acetabulum, ischium and pubis; `shrink` mm inside the cortex."""
    bowl, size = frame.iliac_bowl, frame.pelvis_size

    def wing(x, y, z):
        shell = np.abs(bowl.distance(x, y, z)) - np.float32(5.5 - 1.1 * shrink)
        crest = z + (y + 5) ** 2 * np.float32(0.012) - np.float32(134 - shrink)
        front = y - 34 - (z - 60) * np.float32(0.25) + np.float32(shrink)
        return np.maximum.reduce([shell, crest, front, 42 - sign * x, 12 - z, -86 - y + np.float32(shrink)])

    low, high = sorted((sign * 40, sign * 130))
    wing_shape = Shape(np.array([low, -90.0, 10.0]), np.array([high, 60.0, 136.0]), wing)
    return [
        wing_shape,
        ellipsoid((sign * 82, -2, 4), np.array([26, 33, 34]) * size - shrink),
        capsule((sign * 76, -14, -8), (sign * 62, -38, -52), 16 - shrink, 14 - shrink),
        capsule((sign * 74, 22, 4), (sign * 12, 50, -24), 10 - shrink, 9 - shrink),
        capsule((sign * 12, 50, -26), (sign * 58, -30, -56), 8 - shrink, 9 - shrink),
    ]


def paint_ribs(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Twelve ribs a side as curved tubes on the wall of the cavity, their cartilage, and the sternum."""
    heights = {level: z for level, z, _ in vertebra_levels()}
    reach = {1: 2.5, 8: 2.35, 9: 2.2, 10: 2.05, 11: 1.35, 12: 0.9}
    for side, sign in SIDES:
        for number in range(1, 13):
            top, drop = heights[f"T{number}"] + 3, rng.uniform(52, 66) * (0.6 if number < 3 else 1.0)
            end = reach.get(number, 2.55) + rng.normal(0, 0.05)
            points = []
            for angle in np.arange(0.28, 3.0, 0.11):
                height = top - drop * (angle / np.pi) ** 1.15 * (1.25 if number > 10 else 1.0)
                point = frame.cavity_wall(height, angle, 5.5)
                point[0] = sign * point[0] + frame.spine_x(height) * np.cos(angle / 2)
                points.append((*point, 5.2 - 0.5 * np.cos(2 * angle), angle))
            path = np.array(points)
            bone, gristle = path[path[:, 4] <= end], path[path[:, 4] > end - 0.11]
            if number <= 7 and len(gristle) > 1:
                canvas.paint(tube(gristle), 0, M.CARTILAGE)
            neck = np.array([frame.spine_x(top) + sign * 16, frame.spine_y(top) - 6, top, 4.4, 0.0])
            bone = np.vstack([neck, bone])
            value = VALUE_OF[f"rib_{side}_{number}"]
            _bone(canvas, tube(bone), tube(bone, 1.7), value, 0.2)
    front = float(np.interp(400, _CAVITY_Z, frame.cavity_centre_y + frame.cavity_y))
    for shrink, material in ((0.0, M.BONE_CORTICAL), (1.6, M.BONE_SPONGY)):
        z = np.array([338, 380, 430, 470.0])
        y = front + np.array([7, 6, 0, -14.0])
        canvas.paint(column(z, 0, y, np.array([8, 17, 15, 24]) - shrink, 6.5 - shrink, 1.0), 0, material)


def paint_shoulders(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Scapulae, clavicles and humeral heads."""
    for side, sign in SIDES:
        for shrink, material in ((0.0, M.BONE_CORTICAL), (1.5, M.BONE_SPONGY)):
            plate = ellipsoid((sign * 98, -74, 440), (44 - shrink, 5.5 - shrink, 66 - shrink), yaw=sign * 0.6)
            spine = capsule((sign * 70, -84, 480), (sign * 138, -40, 508), 5 - shrink, 7 - shrink)
            canvas.paint([plate, spine], VALUE_OF[f"scapula_{side}"], material, (M.MUSCLE, M.FAT_SUBCUTANEOUS))
            clavicle = np.array([(18, 52, 486, 8), (60, 56, 500, 6.5), (100, 30, 512, 6), (134, -2, 516, 7)], float)
            clavicle[:, 0] *= sign
            canvas.paint(tube(clavicle, shrink), VALUE_OF[f"clavicula_{side}"], material)
            head = ellipsoid((sign * 142, -22, 500), np.full(3, 22 - shrink))
            shaft = capsule((sign * 144, -20, 500), (sign * 160, -10, 600), 17 - shrink, 12 - 2 * shrink)
            canvas.paint([head, shaft], VALUE_OF[f"humerus_{side}"], material)
