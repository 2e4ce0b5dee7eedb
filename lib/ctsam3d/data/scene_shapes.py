"""The structures of a random scene: cells that fill it, and what lies in and across them. See `scene_canvas`."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ctsam3d.data.phantom_canvas import Shape, SmoothField, capsule, ellipsoid, half_space, intersection
from ctsam3d.data.random_shapes import capsules, nearest, quadric, tree, walk
from ctsam3d.data.scene_canvas import CORTICAL_HU, SceneCanvas, edges

_VISIBLE_HU = 12.0  # the least difference of neighbouring cells


# ---- cells -------------------------------------------------------------------------------------------------------


def paint_cells(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Fills the scene: large cells, some of them divided into smaller ones, their walls fat in places."""
    warp = _warp(canvas, rng)
    large_mm = rng.uniform(45, 120)
    flat = np.arange(canvas.labels.size)
    _divide(canvas, rng, warp, flat, large_mm, most=45)
    values = rng.permutation(np.unique(canvas.labels))
    for value in values[: int(len(values) * rng.uniform(0.2, 0.6)) + 1]:
        inside = np.flatnonzero(canvas.labels.ravel() == value)
        _divide(canvas, rng, warp, inside, rng.uniform(10, 0.6 * large_mm), most=int(rng.integers(3, 22)))
    _tell_apart(canvas, rng)
    _paint_walls(canvas, rng)


def _warp(canvas: SceneCanvas, rng: np.random.Generator) -> np.ndarray:
    """Positions of all voxels, bent by a slow and a fast displacement; (3, voxels) float32 mm."""
    slow_mm, fast_mm = rng.uniform(4, 14), rng.uniform(0.3, 2.5)
    out = np.empty((3, *canvas.shape_ijk), np.float32)
    for axis in range(3):
        out[axis] = canvas.grid_mm[axis]
        out[axis] += SmoothField(rng, 45.0).sample(canvas.axes_mm) * np.float32(slow_mm)
        out[axis] += SmoothField(rng, 13.0).sample(canvas.axes_mm) * np.float32(fast_mm)
    return out.reshape(3, -1)


def _divide(canvas: SceneCanvas, rng, warp: np.ndarray, flat: np.ndarray, size_mm: float, most: int) -> None:
    """New cells of about `size_mm` over the voxels `flat` (indices): each takes what its own quadric is smallest at."""
    count = int(np.clip(len(flat) * 1.5**3 / size_mm**3, 2, most))
    quadrics = np.array([_quadric(rng, warp[:, flat[rng.integers(len(flat))]], size_mm) for _ in range(count)])
    labels = np.array([canvas.new_label("cell") for _ in range(count)], np.uint16)
    materials = np.array([canvas.tissue(rng, large=size_mm > 40) for _ in range(count)], np.uint16)
    index, _ = nearest(warp[:, flat], quadrics)
    canvas.labels.ravel()[flat] = labels[index]
    canvas.materials.ravel()[flat] = materials[index]


def _tell_apart(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Another tissue for a cell that nothing would show beside a neighbour; a few stay, as in life."""
    coarse = canvas.labels[::2, ::2, ::2].astype(np.int64)
    neighbours: dict[int, set[int]] = {}
    for axis in range(3):
        ahead, behind = (np.moveaxis(coarse, axis, 0)[part].ravel() for part in (slice(1, None), slice(-1)))
        codes = np.unique((ahead * 65536 + behind)[ahead != behind])
        for a, b in zip((codes // 65536).tolist(), (codes % 65536).tolist()):
            neighbours.setdefault(a, set()).add(b)
            neighbours.setdefault(b, set()).add(a)
    first = np.unique(canvas.labels, return_index=True)
    material = {int(v): int(canvas.materials.ravel()[i]) for v, i in zip(*first)}
    table = np.arange(len(canvas.table) + 8 * len(material), dtype=np.uint16)
    for value, others in neighbours.items():
        around = np.array([canvas.hu(material[other]) for other in others])
        old, tries = material[value], 0
        while np.abs(canvas.hu(material[value]) - around).min() < _VISIBLE_HU and tries < 8 and rng.random() > 0.02:
            material[value], tries = canvas.tissue(rng, "soft" if tries < 6 else None), tries + 1
        table[old] = material[value]
    canvas.materials = table[canvas.materials]


def _quadric(rng: np.random.Generator, centre: np.ndarray, size_mm: float) -> np.ndarray:
    axes = Rotation.random(random_state=rng).as_matrix()
    return quadric(axes, size_mm * np.exp(rng.normal(0, 0.3, 3)), centre, rng.normal(0, 0.03))


def _paint_walls(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Cortex around bone, a capsule around some cells, and fat between cells where a field says so."""
    border = edges(canvas.labels)
    own = canvas.materials.copy()
    table = np.arange(len(canvas.table), dtype=np.uint16)
    for material in np.unique(own):
        if 150 <= canvas.hu(material) and rng.random() < 0.6:
            table[material] = canvas.add_tissue(rng.uniform(*CORTICAL_HU), 40, 60)
        elif rng.random() < 0.12:
            table[material] = canvas.tissue(rng, "soft")
    canvas.materials[border] = table[own[border]]
    share = rng.choice((0.0, 0.3, 0.6, 0.9))
    field = SmoothField(rng, 35.0).sample(canvas.axes_mm)
    fat = border & (field < np.quantile(field[::7, ::7, ::7], share)) if share else np.zeros_like(border)
    if share and rng.random() < 0.4:  # twice as thick
        fat |= edges(fat) & (field < np.quantile(field[::7, ::7, ::7], 0.7 * share))
    canvas.materials[fat] = canvas.tissue(rng, "fat")
    canvas.labels[fat] = 0


# ---- trees -------------------------------------------------------------------------------------------------------


def paint_trees(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Branching tubes through the whole scene: vessels, airways, ducts; some with a wall, some labelled by branch."""
    for _ in range(rng.integers(3, 9)):
        radius_mm = float(np.exp(rng.uniform(np.log(1.6), np.log(15))))
        branches = _tree(canvas, rng, radius_mm)
        kind = rng.choice(("contrast", "soft", "fluid", "gas", "fat"), p=(0.55, 0.25, 0.08, 0.07, 0.05))
        lumen, by_branch = canvas.tissue(rng, kind), rng.random() < 0.4
        label = canvas.new_label("tube")
        wall_mm = rng.uniform(1.0, 3.0) if radius_mm > 4 and rng.random() < 0.35 else 0.0
        wall = canvas.tissue(rng, "soft")
        wall_label = canvas.new_label("wall") if wall_mm and rng.random() < 0.4 else None
        own = [label if number == 0 or not by_branch else canvas.new_label("tube") for number in range(len(branches))]
        for value, path in zip(own[::-1], branches[::-1]):
            if wall_mm:
                canvas.paint(capsules(path, wall_mm), wall_label or value, wall)
        for value, path in zip(own[::-1], branches[::-1]):
            canvas.paint(capsules(path), value, lumen)


def paint_inner_trees(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Thin vessels inside some cells, which keep their label: an organ is labelled with its vessels."""
    for _ in range(rng.integers(2, 7)):
        start = canvas.anywhere(rng, 0.9)
        within = int(canvas.labels[canvas.at(start)])
        if not within:
            continue
        hu = canvas.hu(int(canvas.materials[canvas.at(start)]))
        vessel = canvas.add_tissue(rng.uniform(20, 200) if hu < -500 else hu + _apart(rng, 20, 90))
        for path in _tree(canvas, rng, rng.uniform(1.2, 4), start, most=14):
            canvas.paint(capsules(path), None, vessel, within)


def _tree(canvas: SceneCanvas, rng, radius_mm: float, start=None, most: int = 9) -> list[np.ndarray]:
    """Paths (n, 4) of x, y, z and radius in mm, trunk first."""
    if start is None:
        start = canvas.anywhere(rng)
        axis = rng.integers(3)
        start[axis] = rng.choice((-1, 1)) * canvas.half_mm[axis]
    aim = canvas.anywhere(rng, 0.5) - start
    return tree(rng, start, aim, radius_mm, -canvas.half_mm, canvas.half_mm, most)


def _apart(rng: np.random.Generator, least_hu: float, most_hu: float) -> float:
    """A difference in HU, either way."""
    return rng.choice((-1, 1)) * rng.uniform(least_hu, most_hu)


# ---- masses, organs with walls, plates ----------------------------------------------------------------------------


def paint_masses(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Ellipsoids and lobulated masses, most a little brighter or darker than what is around, some with a core."""
    for _ in range(rng.integers(8, 26)):
        centre = canvas.anywhere(rng, 0.95)
        size_mm = float(np.exp(rng.uniform(np.log(4), np.log(32))))
        around = canvas.hu(int(canvas.materials[canvas.at(centre)]))
        if -200 < around < 250 and rng.random() < 0.75:
            material = canvas.add_tissue(around + _apart(rng, 12, 70), 8 * rng.random(), 10 * rng.random())
        else:
            material = canvas.tissue(rng)
        lobes = [centre + rng.normal(0, 0.55, 3) * size_mm * (n > 0) for n in range(rng.choice((1, 1, 2, 4)))]
        rough = (rng.normal(0, 0.1) * size_mm, rng.normal(0, 0.06) * size_mm)
        within = int(canvas.labels[canvas.at(centre)]) if rng.random() < 0.35 else None
        label = canvas.new_label("mass")
        shapes = [_ellipsoid(rng, lobe, size_mm * rng.uniform(0.7, 1.0)) for lobe in lobes]
        canvas.paint(shapes, label, material, within, rough)
        if size_mm > 12 and rng.random() < 0.3:  # necrosis, or calcification: the same mass
            core = canvas.add_tissue(canvas.hu(material) + rng.choice((-40, -25, 30, 250)), 5, 8)
            canvas.paint(_ellipsoid(rng, centre, 0.5 * size_mm), None, core, label, rough)


def _ellipsoid(rng: np.random.Generator, centre, size_mm: float) -> Shape:
    radii = size_mm * np.exp(rng.normal(0, 0.3, 3))
    return ellipsoid(centre, radii, *rng.uniform(0, 3.14, 2))


def paint_hollow(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Bags with a wall and a content, as heart chambers, bladder, cysts, bowel: one label, or one for each."""
    for _ in range(rng.integers(1, 6)):
        centre, size_mm = canvas.anywhere(rng, 0.9), rng.uniform(10, 42)
        radii, angles = size_mm * np.exp(rng.normal(0, 0.3, 3)), rng.uniform(0, 3.14, 2)
        wall_mm = min(rng.uniform(1.6, 8), 0.4 * radii.min())
        rough = (rng.normal(0, 0.08) * size_mm, rng.normal(0, 0.04) * size_mm)
        outer, apart = canvas.new_label("bag"), rng.random() < 0.6
        canvas.paint(ellipsoid(centre, radii, *angles), outer, canvas.tissue(rng, "soft"), None, rough)
        content = canvas.tissue(rng, rng.choice(("fluid", "contrast", "gas", "soft", "mixed")))
        inner = canvas.new_label("content") if apart else outer
        lumen = ellipsoid(centre, radii - wall_mm, *angles)
        canvas.paint(lumen, inner, content, outer, rough)
        if rng.random() < 0.35:  # a level: gas above, fluid below, both content
            level = np.float32(centre[1] + rng.uniform(-0.4, 0.6) * radii[1])
            above = half_space(lambda x, y, z, level=level: level - y + 0 * x + 0 * z)
            canvas.paint(intersection(lumen, above), None, canvas.tissue(rng, "gas"), inner, rough)


def paint_plates(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Thin curved sheets across the scene, as diaphragm, skull, skin and flat muscles."""
    for _ in range(rng.integers(0, 4)):
        field = SmoothField(rng, rng.uniform(50, 120)).sample(canvas.axes_mm)
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        height = sum((np.float32(n) * g for n, g in zip(normal, canvas.grid_mm)), np.float32(0))
        height = height + field * np.float32(rng.uniform(5, 22))
        height -= np.float32(rng.uniform(-0.7, 0.7) * canvas.half_mm[0])
        half_mm = np.float32(rng.uniform(1.2, 5))
        kind = rng.choice(("soft", "bone", "fat", "contrast"), p=(0.5, 0.25, 0.15, 0.1))
        inside = np.abs(height) < half_mm
        inside &= canvas.coarse > rng.choice((-9.0, -1.0, 0.0))  # with holes, or in pieces
        canvas.labels[inside], canvas.materials[inside] = canvas.new_label("plate"), canvas.tissue(rng, kind)
        if kind == "bone" and half_mm > 3:
            shell = inside & (np.abs(height) > half_mm - np.float32(1.6))
            canvas.materials[shell] = canvas.add_tissue(rng.uniform(*CORTICAL_HU), 30, 60)


# ---- bones and rows ------------------------------------------------------------------------------------------------


def paint_bones(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Long bones: a cortex, and marrow of fat or spongy bone under the same label."""
    for _ in range(rng.integers(0, 4)):
        heading = rng.normal(size=3)
        start = canvas.anywhere(rng, 0.8)
        length_mm, radius_mm = rng.uniform(40, 260), rng.uniform(5, 20)
        middle = start + heading / np.linalg.norm(heading) * length_mm / 2 + rng.normal(0, 6, 3)
        stop = start + heading / np.linalg.norm(heading) * length_mm
        head_mm = radius_mm * rng.uniform(1.0, 1.8)
        shaft = [(start, middle, head_mm, radius_mm), (middle, stop, radius_mm, head_mm)]
        label, cortex_mm = canvas.new_label("bone"), rng.uniform(1.2, 4)
        cortex = canvas.add_tissue(rng.uniform(*CORTICAL_HU), 40, 60)
        marrow = canvas.tissue(rng, "bone") if rng.random() < 0.6 else canvas.tissue(rng, "fat")
        rough = (rng.normal(0, 0.8), rng.normal(0, 0.4))
        canvas.paint([capsule(*part) for part in shaft], label, cortex, None, rough)
        inner = [capsule(p, q, max(r - cortex_mm, 0.5), max(s - cortex_mm, 0.5)) for p, q, r, s in shaft]
        canvas.paint(inner, None, marrow, label, rough)


def paint_rows(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """Objects alike, one behind the other along a curve, as vertebrae; or side by side, as ribs; each its own label."""
    for _ in range(rng.integers(0, 3)):
        path, _ = walk(rng, canvas.anywhere(rng, 0.6), rng.normal(size=3), 5.0, -canvas.half_mm, canvas.half_mm)
        _paint_beads(canvas, rng, path) if rng.random() < 0.55 else _paint_ribs(canvas, rng, path)


def _paint_beads(canvas: SceneCanvas, rng: np.random.Generator, path: np.ndarray) -> None:
    size_mm, gap_mm = rng.uniform(6, 24), rng.uniform(0.5, 5)
    bone = rng.random() < 0.7
    inner = canvas.tissue(rng, "bone" if bone else None)
    outer = canvas.add_tissue(canvas.hu(inner) + rng.uniform(150, 600), 30, 50) if bone else inner
    disc, disc_label = canvas.tissue(rng, "soft"), 0
    radii = size_mm * np.exp(rng.normal(0, 0.25, 3))
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))])
    period = 2 * radii.max() * rng.uniform(0.75, 1.0) + gap_mm
    angles = rng.uniform(0, 3.14, 2)
    canvas.paint(capsules(path, 0.6 * size_mm - 5.0), disc_label, disc)
    for place in np.arange(period / 2, steps[-1], period)[:18]:
        centre = np.array([np.interp(place, steps, path[:, axis]) for axis in range(3)])
        label, rough = canvas.new_label("bead"), (rng.normal(0, 0.05) * size_mm, rng.normal(0, 0.03) * size_mm)
        own = radii * np.exp(rng.normal(0, 0.05, 3))
        canvas.paint(ellipsoid(centre, own, *angles), label, outer, None, rough)
        canvas.paint(ellipsoid(centre, np.maximum(own - 1.8, 0.5), *angles), None, inner, label, rough)


def _paint_ribs(canvas: SceneCanvas, rng: np.random.Generator, path: np.ndarray) -> None:
    radius_mm, count = rng.uniform(2.5, 7), int(rng.integers(3, 13))
    apart = np.cross(path[-1, :3] - path[0, :3], rng.normal(size=3))
    apart *= radius_mm * rng.uniform(2.6, 5) / np.linalg.norm(apart)
    outer = canvas.add_tissue(rng.uniform(250, 900), 40, 60)
    inner = canvas.tissue(rng, "bone" if rng.random() < 0.8 else "soft")
    for number in range(count):
        own = path.copy()
        own[:, :3] += apart * (number - count / 2) + rng.normal(0, 0.6, 3)
        own[:, 3] = radius_mm
        label = canvas.new_label("rib")
        canvas.paint(capsules(own), label, outer)
        canvas.paint(capsules(own, -1.5), None, inner, label)


def paint_outside(canvas: SceneCanvas, rng: np.random.Generator) -> None:
    """The air around the body, a skin and a layer of fat, in some scenes."""
    if rng.random() > 0.45:
        return
    radii = canvas.half_mm * rng.uniform(0.8, 1.35, 3) * (1, 1, 3)
    x, y, z = (g / np.float32(r) for g, r in zip(canvas.grid_mm, radii))
    depth = (1 - np.sqrt(x * x + y * y + z * z)) * np.float32(radii[:2].min()) + 2 * canvas.coarse
    fat_mm, skin_mm = rng.uniform(2, 30), rng.uniform(1.5, 3)
    outside = depth < 0
    layers = (("fat", depth < fat_mm, "fat"), ("skin", depth < skin_mm, "soft"))
    for kind, where, tissue in layers:
        where = where & ~outside
        canvas.labels[where], canvas.materials[where] = canvas.new_label(kind), canvas.tissue(rng, tissue)
    canvas.labels[outside], canvas.materials[outside] = 0, 0
