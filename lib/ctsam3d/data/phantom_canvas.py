"""What phantoms are painted on: shapes in anatomical millimetres, and a canvas that samples them on a voxel grid.

The anatomical frame is in millimetres of a reference patient, axes x to the Right, y to Anterior, z to Superior, with
z = 0 at the centres of the femoral heads. The canvas maps each voxel into that frame by scale, pose and a smooth random
displacement, so a shape is written once, straight, and every patient gets a different one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

_FRAME_LOW_MM, _FRAME_HIGH_MM = (-330.0, -260.0, -160.0), (330.0, 260.0, 680.0)
_LATTICE_MM = 12.0  # where the displacement is tabulated, to find the voxels of a shape
_SPLINE_SD = 0.332  # standard deviation of a 3D cubic B-spline field whose coefficients are standard normal


class SmoothField:
    """A random scalar field of mean 0 and standard deviation about 1: cubic B-splines on nodes `node_mm` apart."""

    def __init__(self, rng: np.random.Generator, node_mm: float):
        self.node_mm = node_mm
        counts = [int((b - a) / node_mm) + 4 for a, b in zip(_FRAME_LOW_MM, _FRAME_HIGH_MM)]
        self.coefficients = (rng.standard_normal(counts) / _SPLINE_SD).clip(-7.5, 7.5).astype(np.float32)

    def _weights(self, axis: int, positions_mm: np.ndarray) -> np.ndarray:
        """(positions, nodes) weights of the cubic B-spline."""
        nodes = np.arange(self.coefficients.shape[axis]) - 1.0
        steps = (np.asarray(positions_mm)[:, None] - _FRAME_LOW_MM[axis]) / self.node_mm
        t = np.abs(steps - nodes)
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
        return weights.astype(np.float32)

    def sample(self, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Values on the grid spanned by three coordinate axes, shape (len(x), len(y), len(z)), float32."""
        wx, wy, wz = (self._weights(axis, positions) for axis, positions in enumerate(axes_mm))
        partial = np.tensordot(wx, self.coefficients, axes=1)  # (x, node_y, node_z)
        partial = np.matmul(wy, partial)  # (x, y, node_z)
        return np.matmul(partial.reshape(-1, partial.shape[2]), wz.T).reshape(len(wx), len(wy), len(wz))


@dataclass(frozen=True)
class Shape:
    """A solid: `distance(x, y, z)` is about the signed distance in mm, negative inside, sure only within the bounds."""

    low_mm: np.ndarray
    high_mm: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ellipsoid(centre_mm, radii_mm, yaw: float = 0.0, roll: float = 0.0) -> Shape:
    """An ellipsoid, turned by `yaw` radians around z and then by `roll` radians around y."""
    centre, radii = np.asarray(centre_mm, float), np.asarray(radii_mm, float)
    cy, sy, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(roll), np.sin(roll)
    turn = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]]) @ np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    rows = (turn.T / radii[:, None]).astype(np.float32)
    extent = np.sqrt(((turn * radii) ** 2).sum(axis=1))
    smallest, centre32 = np.float32(radii.min()), centre.astype(np.float32)

    def distance(x, y, z):
        x, y, z = x - centre32[0], y - centre32[1], z - centre32[2]
        if yaw == roll == 0.0:
            square = (x * rows[0, 0]) ** 2 + (y * rows[1, 1]) ** 2 + (z * rows[2, 2]) ** 2
        else:
            square = sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in rows)
        return (np.sqrt(square) - 1) * smallest

    return Shape(centre - extent, centre + extent, distance)


def capsule(start_mm, stop_mm, start_radius_mm: float, stop_radius_mm: float) -> Shape:
    """A rounded segment whose radius goes linearly from one end to the other."""
    start, stop = np.asarray(start_mm, np.float32), np.asarray(stop_mm, np.float32)
    along = stop - start
    scale = along / np.float32(max(float(along @ along), 1e-6))
    growth = np.float32(stop_radius_mm - start_radius_mm)

    def distance(x, y, z):
        x, y, z = x - start[0], y - start[1], z - start[2]
        t = (x * scale[0] + y * scale[1] + z * scale[2]).clip(0, 1)
        square = (x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2
        return np.sqrt(square) - (np.float32(start_radius_mm) + growth * t)

    reach = max(start_radius_mm, stop_radius_mm)
    return Shape(np.minimum(start, stop) - reach, np.maximum(start, stop) + reach, distance)


def smooth_path(points_mm, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A smooth curve through `points_mm` (n, d), about `step_mm` apart, and each point's arc length in mm.

    Only the first three columns are space; further ones, a radius for instance, are carried along.
    """
    points = np.asarray(points_mm, float)
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:]):
        t = np.linspace(0, 1, max(2, int(np.linalg.norm((c - b)[:3]) / step_mm) + 1), endpoint=False)[:, None]
        catmull_rom = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
        pieces.append(catmull_rom / 2)
    path = np.vstack([*pieces, points[-1:]])
    steps = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1)
    return path, np.concatenate([[0.0], np.cumsum(steps)])


def tube(path_mm: np.ndarray, shrink_mm: float = 0.0) -> list[Shape]:
    """Capsules along `path_mm` (n, 4): x, y, z and radius; `shrink_mm` less thick for the lumen inside a wall."""
    radii = np.maximum(path_mm[:, 3] - shrink_mm, 0.3)
    return [capsule(p[:3], q[:3], r, s) for p, q, r, s in zip(path_mm, path_mm[1:], radii, radii[1:])]


def intersection(*shapes: Shape) -> Shape:
    return Shape(
        reduce(np.maximum, (s.low_mm for s in shapes)),
        reduce(np.minimum, (s.high_mm for s in shapes)),
        lambda x, y, z: reduce(np.maximum, (s.distance(x, y, z) for s in shapes)),
    )


def union(*shapes: Shape, blend_mm: float = 0.0) -> Shape:
    """The union; `blend_mm` rounds the seam between two of them (polynomial smooth minimum)."""

    def smallest(a, b):
        if not blend_mm:
            return np.minimum(a, b)
        h = (blend_mm - np.abs(a - b)).clip(0) / np.float32(blend_mm)
        return np.minimum(a, b) - h * h * np.float32(blend_mm / 4)

    return Shape(
        reduce(np.minimum, (s.low_mm for s in shapes)) - blend_mm / 4,
        reduce(np.maximum, (s.high_mm for s in shapes)) + blend_mm / 4,
        lambda x, y, z: reduce(smallest, (s.distance(x, y, z) for s in shapes)),
    )


def half_space(distance: Callable) -> Shape:
    """An unbounded solid, for intersections."""
    return Shape(np.full(3, -np.inf), np.full(3, np.inf), distance)


def column(z_mm, x_mm, y_mm, half_width_mm, half_depth_mm, squareness: float = 1.0) -> Shape:
    """An upright solid with an elliptic cross-section, given at the heights `z_mm`.

    `squareness` 0 is an ellipse, 2 the curve x^4 + y^4 = 1.
    """
    z_mm = np.asarray(z_mm, float)
    table = [np.broadcast_to(np.asarray(v, float), z_mm.shape) for v in (x_mm, y_mm, half_width_mm, half_depth_mm)]
    ends = np.float32(z_mm[0]), np.float32(z_mm[-1])

    def distance(x, y, z):
        # Cross-sections follow the mean height of a slab: within one, the smooth displacement moves z by little.
        height = z.mean(axis=(0, 1))
        cx, cy, a, b = (np.interp(height, z_mm, v).astype(np.float32) for v in table)
        u, v = ((x - cx) / a) ** 2, ((y - cy) / b) ** 2
        radius = np.sqrt(np.sqrt(u * u + v * v + np.float32(2 - squareness) * u * v))
        side = (radius - 1) * np.minimum(a, b)
        return np.maximum(side, np.maximum(ends[0] - height, height - ends[1]))

    cx, cy, a, b = table
    low = np.array([(cx - a).min(), (cy - b).min(), z_mm[0]])
    return Shape(low, np.array([(cx + a).max(), (cy + b).max(), z_mm[-1]]), distance)


class Canvas:
    """Labels and materials of one patient on one voxel grid.

    Args:
        axes_mm: coordinates of the voxel centres along x, y, z, in reference millimetres (patient scale removed).
        rotation: (3, 3), pose of the patient.
        shift_mm: (3,), pose of the patient.
        warp: three fields that displace x, y and z, each `warp_mm` strong (standard deviation).
        relief: coarse and fine field that roughen surfaces and texture tissue.
    """

    def __init__(self, axes_mm, rotation, shift_mm, warp, warp_mm: float, relief):
        self.axes_mm, self.rotation, self.shift_mm = axes_mm, np.asarray(rotation), np.asarray(shift_mm)
        self.warp_mm = warp_mm
        x, y, z = np.meshgrid(*[a.astype(np.float32) for a in axes_mm], indexing="ij", sparse=True)
        self.position = []
        for row, shift, field in zip(self.rotation.astype(np.float32), self.shift_mm, warp):
            values = field.sample(axes_mm)
            values *= np.float32(warp_mm)
            values += row[0] * x + row[1] * y + (row[2] * z + np.float32(shift))
            self.position.append(values)
        self.coarse, self.fine = (field.sample(axes_mm) for field in relief)
        lattice = [np.arange(a, b, _LATTICE_MM) for a, b in zip(_FRAME_LOW_MM, _FRAME_HIGH_MM)]
        self._moved = np.stack([field.sample(lattice) for field in warp], axis=-1) * warp_mm
        self.labels = np.zeros(self.coarse.shape, np.uint8)
        self.materials = np.zeros(self.coarse.shape, np.uint8)

    def box(self, low_mm: np.ndarray, high_mm: np.ndarray) -> tuple[slice, slice, slice] | None:
        """Index expression of the voxels that may lie in an anatomical box, or None where the grid has none."""
        centre, half = (low_mm + high_mm) / 2, (high_mm - low_mm) / 2
        place = self.rotation.T @ (centre - self.shift_mm)
        node = np.rint((place - _FRAME_LOW_MM) / _LATTICE_MM).astype(int)
        moved = self._moved[tuple(np.clip(node, 0, np.array(self._moved.shape[:3]) - 1))]
        place = self.rotation.T @ (centre - self.shift_mm - moved)
        reach = np.abs(self.rotation.T) @ half + min(4 * self.warp_mm, 2 + 0.3 * half.max())
        slices = []
        for axis, middle, extent in zip(self.axes_mm, place, reach):
            start, stop = np.searchsorted(axis, (middle - extent, middle + extent))
            if stop - start < 1:
                return None
            slices.append(slice(int(start), int(stop)))
        return tuple(slices)

    def paint(
        self,
        shapes: Shape | Iterable[Shape],
        label: int | None,
        material: int | None,
        over: tuple[int, ...] = (),
        rough_mm: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Paint solids, one after the other.

        Args:
            shapes: what to paint.
            label: label value, or None to keep what is there.
            material: index into the HU table, or None to keep what is there.
            over: paint only over these materials; empty for all.
            rough_mm: how far the coarse and the fine field move the surface; signs and sizes make it the organ's own.
        """
        allowed = np.zeros(256, bool)
        allowed[list(over)] = True
        for shape in [shapes] if isinstance(shapes, Shape) else shapes:
            grow = 2.5 * abs(rough_mm[0]) + 2.5 * abs(rough_mm[1])
            low = np.maximum(shape.low_mm - grow, [a[0] - 40 for a in self.axes_mm])
            high = np.minimum(shape.high_mm + grow, [a[-1] + 40 for a in self.axes_mm])
            box = self.box(low, high) if (low < high).all() else None
            if box is None:
                continue
            distance = shape.distance(*(p[box] for p in self.position))
            if rough_mm[0]:
                distance = distance + self.coarse[box] * np.float32(rough_mm[0])
            if rough_mm[1]:
                distance = distance + self.fine[box] * np.float32(rough_mm[1])
            inside = distance < 0
            if over:
                inside &= allowed[self.materials[box]]
            if label is not None:
                np.copyto(self.labels[box], np.uint8(label), where=inside)
            if material is not None:
                np.copyto(self.materials[box], np.uint8(material), where=inside)
