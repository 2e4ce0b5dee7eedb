"""The organs of a phantom. Coordinates as in `phantom_canvas`, in reference mm; left is -x."""

from __future__ import annotations

import numpy as np

from ctsam3d.data.labels import VALUE_OF
from ctsam3d.data.phantom_canvas import Canvas, Shape, ellipsoid, half_space, intersection, smooth_path, tube, union
from ctsam3d.data.phantom_frame import SIDES, WALL_ROUGH_MM, Frame
from ctsam3d.data.phantom_materials import Material as M


def _rough(rng: np.random.Generator, coarse_mm: float, fine_mm: float) -> tuple[float, float]:
    """How the shared relief roughens one organ: with a sign of its own, so that neighbours do not bulge together."""
    return tuple(rng.choice((-1, 1)) * rng.uniform(0.7, 1.2) * v for v in (coarse_mm, fine_mm))


def _moved(rng: np.random.Generator, points, sd_mm: float) -> np.ndarray:
    """Points (n, 3 or 4) with their places and, in a fourth column, their radii varied."""
    points = np.array(points, float)
    points[:, :3] += rng.normal(0, sd_mm, 3) + rng.normal(0, sd_mm / 2, (len(points), 3))
    points[:, 3:] *= rng.uniform(0.88, 1.12)
    return points


def paint_lungs(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Five lobes above the diaphragm with vessels, and the trachea with the main bronchi."""
    hilum = {"left": np.array([-30.0, -8, 410]), "right": np.array([30.0, -8, 408])}
    for side, sign in SIDES:
        inner, ripple = np.float32(rng.uniform(13, 19)), np.float32(rng.uniform(0, 6))

        def mediastinum(x, y, z, sign=sign, inner=inner, ripple=ripple):
            # Narrow behind the sternum, wide around the great vessels and over the spine.
            bulge = 5 * np.sin(z / 21 + ripple) - (y * np.float32(0.11)).clip(-4, 8)
            return inner + bulge - sign * x

        lung = intersection(
            Shape(np.array([-150.0, -110, 200]), np.array([150.0, 120, 545]), frame.cavity.distance),
            frame.diaphragm(side, 4.0, above=True),
            half_space(mediastinum),
        )
        slope, height = np.float32(rng.uniform(1.0, 1.4)), np.float32(rng.uniform(382, 400))
        below = half_space(lambda x, y, z, h=height, k=slope: (z - h + k * y) * np.float32(0.6))
        canvas.paint(lung, VALUE_OF[f"lung_upper_lobe_{side}"], M.LUNG, rough_mm=WALL_ROUGH_MM)
        half = Shape(*np.sort([[0.0, -110, 200], [sign * 150.0, 120, 545]], axis=0), lambda x, y, z, s=sign: -s * x)
        lobe = half_space(lambda x, y, z, h=height: z - h - 6)
        if side == "right":
            value = VALUE_OF["lung_middle_lobe_right"]
            canvas.paint(intersection(half, lobe), value, None, (M.LUNG,), rough_mm=(1.0, 0.0))
        value = VALUE_OF[f"lung_lower_lobe_{side}"]
        canvas.paint(intersection(half, below), value, None, (M.LUNG,), rough_mm=(1.0, 0.0))
        for _ in range(42):
            target = frame.cavity_wall(rng.uniform(290, 500), rng.uniform(0.2, 2.9), -rng.uniform(8, 40))
            target[0] *= sign
            middle = (hilum[side] + target) / 2 + rng.normal(0, 8, 3)
            branch = np.array([(*hilum[side], 5.5), (*middle, 2.9), (*target, 1.2)])
            canvas.paint(tube(smooth_path(branch, 14)[0]), None, M.LUNG_VESSEL, (M.LUNG,))
    windpipe = np.array([(2, 2, 540, 9), (2, -12, 480, 9), (2, -18, 440, 9), (4, -16, 428, 8)], float)
    canvas.paint(tube(windpipe, -1.8), 0, M.SOFT)
    for _, sign in SIDES:
        bronchus = np.array([(2, -16, 432, 7), (sign * 14, -14, 420, 6), (sign * 32, -8, 406, 5)], float)
        canvas.paint(tube(bronchus, -1.3), 0, M.SOFT)
        canvas.paint(tube(bronchus), 0, M.AIRWAY)
    canvas.paint(tube(windpipe), VALUE_OF["trachea"], M.AIRWAY)


def paint_heart(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Four chambers in their fat, and the pulmonary artery."""
    size, move = rng.uniform(0.95, 1.12), rng.normal((-4, 0, -8), 3)

    def part(centre, radii, yaw=0.0, roll=0.0) -> Shape:
        return ellipsoid(np.array(centre) + move, np.array(radii) * size, yaw, roll)

    pericardium = part((-12, 22, 378), (60, 51, 54))
    canvas.paint(pericardium, VALUE_OF["visceral_fat"], M.FAT_VISCERAL, rough_mm=_rough(rng, 2.5, 0.5))
    for name, centre, radii, yaw, roll in (
        ("heart_atrium_right", (28, 18, 388), (22, 25, 32), 0.0, 0.1),
        ("heart_atrium_left", (-4, -12, 392), (32, 18, 24), 0.0, 0.0),
        ("heart_ventricle_right", (-2, 48, 372), (38, 22, 30), -0.2, -0.2),
    ):
        material = M.BLOOD_LEFT if name == "heart_atrium_left" else M.BLOOD_RIGHT
        canvas.paint(part(centre, radii, yaw, roll), VALUE_OF[name], material, rough_mm=_rough(rng, 1.2, 0.4))
    rough = _rough(rng, 0.8, 0.3)
    wall = part((-36, 22, 368), (42, 29, 30), 0.55, 0.3)
    canvas.paint(wall, VALUE_OF["heart_myocardium"], M.MYOCARDIUM, rough_mm=rough)
    chamber = part((-33, 20, 369), (32, 18, 19), 0.55, 0.3)
    canvas.paint(chamber, VALUE_OF["heart_ventricle_left"], M.BLOOD_LEFT, rough_mm=rough)
    trunk = [(-18, 44, 400, 14), (-20, 30, 418, 14), (-16, 10, 424, 12), (8, 2, 420, 10), (34, -6, 414, 9)]
    left = [(-18, 16, 424, 11), (-30, -4, 420, 9), (-38, -12, 414, 8)]
    for path in (trunk, left):
        shapes = tube(smooth_path(np.add(path, (*move, 0)), 6)[0])
        canvas.paint(shapes, VALUE_OF["pulmonary_artery"], M.BLOOD_RIGHT)


def paint_liver_and_spleen(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Liver under the right dome with vessels and sometimes lesions, gallbladder, and spleen."""
    size, move = rng.uniform(0.92, 1.08, 3), rng.normal(0, 4, 3)
    right = ellipsoid(np.array([70.0, -6, 272]) + move, np.array([66, 76, 82]) * size)
    left = ellipsoid(np.array([-4.0, 34, 290]) + move, np.array([68, 38, 40]) * size, yaw=-0.15)
    whole = union(right, left, blend_mm=24)
    domes = (frame.diaphragm("right", -1.0, above=False), frame.diaphragm("left", -1.0, above=False))
    # The left lobe reaches under the other dome; each side obeys the higher of the two.
    roof = half_space(lambda x, y, z: np.minimum(*(d.distance(x, y, z) for d in domes)))
    liver = intersection(whole, roof, frame.inside_cavity(3.0))
    rough = _rough(rng, 3.0, 0.8)
    canvas.paint(liver, VALUE_OF["liver"], M.LIVER, rough_mm=rough)
    for _ in range(9):
        end = np.array([66, 0, 280]) + move + rng.normal(0, (36, 34, 32))
        hub = np.array([30, 0, 262.0]) if rng.random() < 0.5 else np.array([26, -22, 320.0])
        branch = np.array([(*hub, 4.2), (*((hub + end) / 2 + rng.normal(0, 7, 3)), 3.0), (*end, 1.3)])
        canvas.paint(tube(smooth_path(branch, 10)[0]), None, M.PORTAL, (M.LIVER,))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        centre = np.array([72, 0, 272]) + rng.normal(0, (30, 35, 30))
        canvas.paint(ellipsoid(centre, rng.uniform(4, 15, 3)), None, M.LESION, (M.LIVER,))
    gall = _moved(rng, [(52, 34, 212, 12), (46, 26, 228, 13), (38, 14, 244, 7)], 3.0)
    gall = smooth_path(gall, 6)[0]
    canvas.paint(tube(gall, -1.6), 0, M.WALL, (M.LIVER, M.FAT_VISCERAL))
    canvas.paint(tube(gall), VALUE_OF["gallbladder"], M.BILE, rough_mm=_rough(rng, 0.8, 0.2))
    spleen = intersection(
        ellipsoid(
            np.array([-94.0, -32, 278]) + rng.normal(0, 4, 3), np.array([27, 46, 52]) * rng.uniform(0.85, 1.2, 3), 0.35
        ),
        frame.diaphragm("left", -2.0, above=False),
        frame.inside_cavity(3.0),
    )
    canvas.paint(spleen, VALUE_OF["spleen"], M.SPLEEN, rough_mm=_rough(rng, 1.8, 0.4))


def paint_kidneys(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Kidneys of cortex, medulla and sinus, ureters, and the adrenal glands."""
    for side, sign in SIDES:
        size = rng.uniform(0.88, 1.12)
        centre = np.array([sign * 60, -35, 208 if side == "right" else 217]) + rng.normal(0, (3, 3, 6))
        roll, yaw = sign * rng.uniform(0.15, 0.3), sign * rng.uniform(0.3, 0.6)
        nest = ellipsoid(np.add(centre, (0, 2, 0)), np.array([30, 29, 58]) * size, yaw, roll)
        canvas.paint(nest, VALUE_OF["visceral_fat"], M.FAT_VISCERAL, (M.LIVER, M.SPLEEN, M.WALL, M.BOWEL_FLUID, M.GAS))
        rough = _rough(rng, 1.0, 0.4)
        value = VALUE_OF[f"kidney_{side}"]
        hilum = ellipsoid(centre - [sign * 24 * size, -8, 0], (17, 12, 16))
        outside_hilum = half_space(lambda x, y, z, h=hilum: -h.distance(x, y, z))
        kidney = intersection(ellipsoid(centre, np.array([27, 25, 54]) * size, yaw, roll), outside_hilum)
        canvas.paint(kidney, value, M.KIDNEY_CORTEX, rough_mm=rough)
        for angle in np.linspace(-1.2, 1.2, 5) + rng.normal(0, 0.1, 5):
            for front in (-8, 8):
                pyramid = centre + np.array([sign * (4 + 4 * np.cos(angle)), front, 40 * size * np.sin(angle)])
                canvas.paint(ellipsoid(pyramid, (9, 6, 9)), None, M.KIDNEY_MEDULLA, (M.KIDNEY_CORTEX,))
        sinus = ellipsoid(centre - [sign * 6, -1, 0], np.array([13, 8, 24]) * size, yaw, roll)
        canvas.paint(sinus, 0, M.FAT_VISCERAL, (M.KIDNEY_CORTEX, M.KIDNEY_MEDULLA), rough_mm=(1.0, 0.8))
        pelvis = ellipsoid(centre - [sign * 12, -3, 4], np.array([9, 6, 12]) * rng.uniform(0.6, 1.2))
        canvas.paint(pelvis, 0, M.URINE_UPPER)
        outlet = centre - [sign * 16, -2, 14]
        ureter = np.array([(*outlet, 2.2), (sign * 36, -10, 150, 1.8), (sign * 34, -14, 90, 1.8)])
        canvas.paint(tube(smooth_path(ureter, 12)[0]), 0, M.URINE_UPPER, (M.FAT_VISCERAL,))
        top = centre + np.array([-sign * 20, 4, 48 * size])
        gland = VALUE_OF[f"adrenal_gland_{side}"]
        for foot in ((-sign * 3, -16, -12), (sign * 9, -15, -12)):
            limb = np.array([(*np.add(top, (0, 4, 4)), 4.2), (*np.add(top, foot), 3.0)])
            canvas.paint(tube(limb), gland, M.ADRENAL, rough_mm=(0.5, 0.3))


def _paint_gut(canvas, path, wall_mm: float, label: int, contents, over, rough_mm=(0.0, 0.0)) -> None:
    """A hollow tube: wall first, then what fills each stretch; `contents` holds one material per segment."""
    canvas.paint(tube(path), label, M.WALL, over, rough_mm)
    inside = (M.WALL,)
    for shape, material in zip(tube(path, wall_mm), contents):
        canvas.paint(shape, label, material, inside, rough_mm)


def paint_small_bowel(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """One long loop that winds through the middle of the abdomen."""
    knots = rng.uniform(-1, 1, (46, 3))
    knots /= np.maximum(1, np.linalg.norm(knots, axis=1))[:, None]
    centre = np.array([0, 24 + frame.cavity_centre_y.max() * 0.6, 128])
    points = centre + knots * [84, 34 + 0.6 * frame.cavity_centre_y.max(), 64]
    path, arc = smooth_path(points, 13.0)
    radius = rng.uniform(9, 12.5) * (1 + 0.18 * np.sin(arc / 37 + rng.uniform(0, 6)))
    path = np.column_stack([path, radius])
    mood = np.interp(arc, np.arange(0, arc[-1] + 90, 90), rng.normal(0, 1, int(arc[-1] / 90) + 2))
    contents = [M.GAS if m > 1.6 else M.BOWEL_FLUID if m > -0.7 else M.WALL for m in mood]
    _paint_gut(canvas, path, 2.6, VALUE_OF["small_bowel"], contents, (M.FAT_VISCERAL, M.WALL), _rough(rng, 0.5, 0.6))


def paint_stomach(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Stomach with fluid below air, pancreas, duodenum."""
    full = rng.uniform(0.75, 1.2)
    bend = _moved(rng, [(-22, -6, 318, 15), (-52, 2, 312, 26), (-64, 16, 282, 30), (-54, 36, 250, 26)], 3.0)
    bend = np.vstack([bend, _moved(rng, [(-28, 48, 230, 20), (4, 44, 226, 15), (22, 34, 230, 9)], 2.0)])
    bend[:, 3] *= full
    path = smooth_path(bend, 8)[0]
    dome, room = frame.diaphragm("left", -3.0, above=False), frame.inside_cavity(3.0)
    rough = _rough(rng, 1.8, 0.6)
    value = VALUE_OF["stomach"]
    soft = (M.FAT_VISCERAL, M.WALL, M.BOWEL_FLUID, M.GAS)
    level = np.float32(rng.uniform(22, 62))
    air = half_space(lambda x, y, z: level - y)
    canvas.paint([intersection(s, dome, room) for s in tube(path)], value, M.WALL, soft, rough)
    lumen = tube(path, rng.uniform(3.0, 5.0))
    canvas.paint([intersection(s, dome, room) for s in lumen], value, M.GASTRIC_FLUID, (M.WALL,), rough)
    canvas.paint([intersection(s, air, room) for s in lumen], value, M.GAS, (M.GASTRIC_FLUID,), rough)
    gland = _moved(rng, [(36, 10, 198, 13), (26, 16, 214, 15), (6, 22, 228, 10), (-28, 10, 242, 12)], 2.5)
    gland = np.vstack([gland, _moved(rng, [(-58, -10, 256, 11), (-80, -22, 264, 8)], 2.5)])
    around = (M.FAT_VISCERAL, M.WALL, M.BOWEL_FLUID)
    canvas.paint(tube(smooth_path(gland, 7)[0]), VALUE_OF["pancreas"], M.PANCREAS, around, _rough(rng, 0.8, 1.3))
    hoop = [(24, 34, 229, 11), (44, 22, 226, 12), (50, 4, 206, 12), (44, -4, 182, 12), (18, -6, 172, 11)]
    hoop = smooth_path(_moved(rng, [*hoop, (-16, -4, 178, 11), (-30, 6, 188, 11)], 2.0), 8)[0]
    filling = rng.choice((M.BOWEL_FLUID, M.WALL, M.BOWEL_FLUID, M.GAS), len(hoop), p=(0.5, 0.3, 0.12, 0.08))
    over = (M.FAT_VISCERAL, M.WALL, M.BOWEL_FLUID, M.PANCREAS, M.LIVER, M.GAS, M.GASTRIC_FLUID)
    _paint_gut(canvas, hoop, 2.8, VALUE_OF["duodenum"], filling, over, _rough(rng, 0.5, 0.6))


def paint_colon(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """The frame of the colon from caecum to rectum, with haustra, gas and stool."""
    front = 44 + 1.0 * frame.cavity_centre_y.max()
    knots = [(78, 18, 84, 22), (88, 2, 112, 24), (94, -8, 150, 22), (94, -4, 182, 21), (86, 18, 200, 19)]
    knots += [(56, front, 186, 19), (10, front + 4, 176, 19), (-40, front, 190, 18), (-80, 30, 222, 18)]
    knots += [(-104, -4, 246, 17), (-104, -26, 224, 16), (-104, -24, 170, 15), (-102, -16, 120, 14)]
    knots += [(-84, 12, 84, 14), (-52, 14, 62, 15), (-12, 30, 66, 15), (14, 6, 82, 15), (6, -28, 78, 15)]
    knots += [(0, -47, 52, 16), (0, -44, 20, 18), (0, -38, -14, 15), (0, -42, -44, 9)]
    path, arc = smooth_path(_moved(rng, knots, 3.0), 6.0)
    calm = (arc > arc[-1] - 130) | (arc < 5)
    path[:, 3] *= 1 + np.where(calm, 0.02, 0.13) * np.sin(arc / 5.2 + 1.5 * np.sin(arc / 31))
    mood = np.interp(arc, np.arange(0, arc[-1] + 120, 120), rng.normal(0, 1, int(arc[-1] / 120) + 2))
    contents = [M.GAS if m > 0.15 else M.STOOL if m > -1.0 else M.BOWEL_FLUID for m in mood]
    over = (
        M.FAT_VISCERAL,
        M.WALL,
        M.BOWEL_FLUID,
        M.GAS,
        M.GASTRIC_FLUID,
        M.LIVER,
        M.PORTAL,
        M.SPLEEN,
        M.MUSCLE,
        M.SOFT,
        M.FAT_SUBCUTANEOUS,
    )
    rough = _rough(rng, 0.8, 0.9)
    _paint_gut(canvas, path, rng.uniform(2.2, 3.2), VALUE_OF["colon"], contents, over, rough)


def paint_pelvic_glands(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Prostate or uterus, neither of which has a label."""
    gland = ellipsoid((0, 4, -20), (24, 18, 20)) if rng.random() < 0.5 else ellipsoid((4, -10, 36), (30, 20, 28))
    canvas.paint(gland, 0, M.SOFT, (M.FAT_VISCERAL, M.MUSCLE), _rough(rng, 1.0, 0.5))


def paint_bladder(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """A bladder, more or less full, in some phases with contrast."""
    full = rng.uniform(0.6, 1.15)
    centre = np.array([0, 22, 14]) + rng.normal(0, 3, 3)
    radii = np.array([40, 32, 30]) * full
    rough, value = _rough(rng, 1.5, 0.2), VALUE_OF["urinary_bladder"]
    canvas.paint(ellipsoid(centre, radii), value, M.WALL, rough_mm=rough)
    inner = ellipsoid(centre, radii - rng.uniform(2.5, 4.5))
    canvas.paint(inner, value, M.URINE, rough_mm=rough)
    layer = np.float32(centre[1] - radii[1] * rng.uniform(-0.1, 0.7))
    # Contrast is heavier than urine and settles at the back.
    canvas.paint(intersection(inner, half_space(lambda x, y, z: y - layer)), value, M.URINE_DENSE, rough_mm=rough)


def paint_vessels(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Aorta from the valve to the bifurcation, cava, iliac and portal vessels, oesophagus."""
    size, lean = rng.uniform(0.9, 1.25), rng.normal(0, 3)

    def beside_spine(z, x, gap, radius):
        return (float(frame.spine_x(z)) + x, float(frame.spine_y(z)) + 18 + gap + radius, z, radius)

    gullet = [(0, -24, 530, 7), (-4, -32, 450, 7), (-2, -34, 400, 7), (-8, -22, 345, 7), (-18, -8, 322, 8)]
    canvas.paint(tube(smooth_path(gullet, 8)[0]), VALUE_OF["esophagus"], M.WALL, rough_mm=_rough(rng, 0.4, 0.6))
    venous = [(10, -14, 126, 10), *(beside_spine(z, 18, 0, 10.5) for z in (160, 200, 240)), (24, -14, 290, 12)]
    cava = smooth_path([*venous, (26, -4, 330, 13), (26, 6, 368, 13)], 8)[0]
    canvas.paint(tube(cava), VALUE_OF["inferior_vena_cava"], M.CAVA, rough_mm=_rough(rng, 0.9, 0.3))
    upper_cava = [(24, 16, 400, 10), (24, 12, 450, 9), (22, 18, 490, 8)]
    canvas.paint(tube(smooth_path(upper_cava, 10)[0]), 0, M.BLOOD_RIGHT)
    legs = {}
    for side, sign in SIDES:
        legs[side] = [(sign * 24, -12, 104, 6.5), (sign * 44, -12, 76, 6), (sign * 56, 10, 44, 5.5)]
        legs[side] += [(sign * 66, 46, 4, 5), (sign * 70, 56, -60, 5)]
        vein = np.array([(10, -14, 128, 9), *legs[side]], float)
        vein[1:] += [-sign * 9, -9, 0, 1.5]
        canvas.paint(tube(smooth_path(vein, 8)[0]), VALUE_OF[f"iliac_vena_{side}"], M.ILIAC_VEIN, rough_mm=(0.4, 0.2))
    fork = beside_spine(138, lean, 0, 7.0)
    for side, _ in SIDES:
        artery = _moved(rng, [fork, *legs[side]], 1.0)
        artery[0, :3] = fork[:3]
        shapes = tube(smooth_path(artery, 7)[0])
        canvas.paint(shapes, VALUE_OF[f"iliac_artery_{side}"], M.AORTA, rough_mm=(0.2, 0.2))
    radii = size * np.array([8.2, 8.8, 9.2, 10, 10.6, 11.2, 11.8])
    heights = (138, 170, 210, 250, 300, 360, 420)
    offsets = (lean, -5 + lean, -8 + lean / 2, -10, -14, -20, -24)
    falling = [beside_spine(z, x, -3 if z > 300 else 0, r) for z, x, r in zip(heights, offsets, radii)]
    arch = [(-20, -18, 452, 12.5), (-8, 0, 466, 13), (8, 18, 450, 14), (10, 26, 420, 15), (-2, 22, 394, 15)]
    canvas.paint(tube(smooth_path([*falling, *arch], 6)[0]), VALUE_OF["aorta"], M.AORTA, rough_mm=_rough(rng, 0.5, 0.2))
    splenic = [(-88, -26, 268, 3), (-56, -18, 258, 3.6), (-22, 2, 242, 4), (8, 10, 232, 4.8), (24, 8, 244, 6)]
    portal = smooth_path(_moved(rng, [*splenic, (38, 4, 262, 6.5), (52, 2, 272, 5)], 2.0), 7)[0]
    canvas.paint(tube(portal), VALUE_OF["portal_vein_and_splenic_vein"], M.PORTAL, rough_mm=(0.3, 0.2))
    for target, source in (((14, 42, 200), (-6, 6, 226)), ((-4, 40, 150), (-4, 0, 210))):
        branch = np.array([(*source, 3.5), (*target, 2.6)])
        canvas.paint(tube(branch), 0, M.AORTA, (M.FAT_VISCERAL, M.PANCREAS))
