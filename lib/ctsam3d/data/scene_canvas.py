"""What random scenes are painted on: a label map and a map of tissues, each tissue with HU and texture of its own.

A scene has no anatomy. Axes are i, j, k of the voxel grid in mm from the centre of the scene.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ctsam3d.data.phantom_canvas import Shape, SmoothField

SPACING_MM = 1.5

# Classes of tissue: share among cells, range of HU, largest coarse and fine texture (standard deviations in HU).
_CLASSES = {
    "soft": (0.46, (15.0, 125.0), 9.0, 12.0),
    "fat": (0.14, (-125.0, -75.0), 10.0, 12.0),
    "fluid": (0.09, (-10.0, 25.0), 3.0, 5.0),
    "contrast": (0.10, (120.0, 400.0), 12.0, 10.0),
    "bone": (0.09, (150.0, 500.0), 50.0, 60.0),
    "lung": (0.08, (-900.0, -650.0), 30.0, 45.0),
    "gas": (0.02, (-1000.0, -950.0), 5.0, 5.0),
    "mixed": (0.02, (-300.0, 100.0), 120.0, 70.0),
}
CORTICAL_HU = (500.0, 1400.0)


class SceneCanvas:
    """Labels and tissues of one scene, and the tissues' table, which grows as structures are added.

    Args:
        rng: draws the fields that bend cells and roughen surfaces, and the scene's own range of soft tissue.
        shape_ijk: voxels of 1.5 mm.
    """

    def __init__(self, rng: np.random.Generator, shape_ijk: tuple[int, int, int]):
        self.shape_ijk = tuple(shape_ijk)
        self.axes_mm = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * SPACING_MM for n in shape_ijk)
        self.half_mm = np.array([axis[-1] for axis in self.axes_mm], float)
        self.grid_mm = np.meshgrid(*self.axes_mm, indexing="ij", sparse=True)
        self.coarse, self.fine = (SmoothField(rng, node).sample(self.axes_mm) for node in (24.0, 8.0))
        self.labels = np.zeros(self.shape_ijk, np.uint16)
        self.materials = np.zeros(self.shape_ijk, np.uint16)
        self.kinds: list[str] = [""]  # by label value
        self.table: list[tuple[float, float, float]] = [(-1000.0, 0.0, 0.0)]  # by material: HU, coarse, fine
        self.soft_hu = float(rng.uniform(25, 95))  # neighbours are alike in one scene: of one phase, one patient
        self.soft_spread_hu = float(rng.uniform(10, 35))

    def new_label(self, kind: str) -> int:
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def tissue(self, rng: np.random.Generator, kind: str | None = None, large: bool = False) -> int:
        """A new tissue of a class, drawn by share where none is given; its index. What is `large` is seldom bright."""
        if kind is None:
            shares = np.array([entry[0] for entry in _CLASSES.values()])
            shares *= [0.3 if large and name in ("contrast", "bone") else 1.0 for name in _CLASSES]
            kind = list(_CLASSES)[rng.choice(len(shares), p=shares / shares.sum())]
        _, (low, high), coarse, fine = _CLASSES[kind]
        mean = rng.uniform(low, high)
        if kind == "soft" and rng.random() < 0.7:
            mean = np.clip(rng.normal(self.soft_hu, self.soft_spread_hu), low - 10, high + 10)
        return self.add_tissue(mean, coarse * rng.random() ** 1.5, fine * rng.random() ** 1.5)

    def add_tissue(self, mean_hu: float, coarse_hu: float = 0.0, fine_hu: float = 0.0) -> int:
        self.table.append((float(mean_hu), float(coarse_hu), float(fine_hu)))
        return len(self.table) - 1

    def hu(self, material: int) -> float:
        return self.table[material][0]

    def anywhere(self, rng: np.random.Generator, reach: float = 1.0) -> np.ndarray:
        """A point (3,) in mm, within `reach` of the half size."""
        return rng.uniform(-1, 1, 3) * self.half_mm * reach

    def at(self, point_mm) -> tuple[int, int, int]:
        """Index of the voxel at a point, or the nearest."""
        index = np.rint(np.asarray(point_mm) / SPACING_MM + (np.array(self.shape_ijk) - 1) / 2).astype(int)
        return tuple(int(v) for v in index.clip(0, np.array(self.shape_ijk) - 1))

    def paint(
        self,
        shapes: Shape | Iterable[Shape],
        label: int | None,
        material: int | None,
        within: int | None = None,
        rough_mm: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Paint solids; `within` limits them to a label, `rough_mm` moves the surface by the coarse and fine field."""
        for shape in [shapes] if isinstance(shapes, Shape) else shapes:
            box = self._box(shape, 2.5 * abs(rough_mm[0]) + 2.5 * abs(rough_mm[1]))
            if box is None:
                continue
            distance = shape.distance(*(g[tuple(s if g.shape[a] > 1 else slice(None) for a, s in enumerate(box))]
                                        for g in self.grid_mm))  # fmt: skip
            for field, weight in zip((self.coarse, self.fine), rough_mm):
                if weight:
                    distance = distance + field[box] * np.float32(weight)
            inside = distance < 0
            if within is not None:
                inside &= self.labels[box] == within
            for array, value in ((self.labels, label), (self.materials, material)):
                if value is not None:
                    np.copyto(array[box], np.uint16(value), where=inside)

    def _box(self, shape: Shape, grow_mm: float) -> tuple[slice, slice, slice] | None:
        slices = []
        for axis, low, high in zip(self.axes_mm, shape.low_mm - grow_mm, shape.high_mm + grow_mm):
            start, stop = np.searchsorted(axis, (low, high))
            if stop <= start:
                return None
            slices.append(slice(int(start), int(stop)))
        return tuple(slices)


def edges(labels: np.ndarray) -> np.ndarray:
    """Voxels with a face neighbour of another label, bool."""
    out = np.zeros(labels.shape, bool)
    for axis in range(3):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        step = labels[low] != labels[high]
        out[low] |= step
        out[high] |= step
    return out
