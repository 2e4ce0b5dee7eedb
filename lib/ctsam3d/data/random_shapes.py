"""Shapes that are drawn, not placed: trees of branching tubes, and the quadrics whose cells divide a region."""

from __future__ import annotations

import numpy as np

from ctsam3d.data.phantom_canvas import Shape, capsule

_CHUNK = 1 << 17  # voxels whose cells are found at a time


def tree(
    rng: np.random.Generator, start_mm, heading, radius_mm: float, low_mm, high_mm, most: int = 9
) -> list[np.ndarray]:
    """Branches of a tree that grows within a box, trunk first.

    Args:
        start_mm: (3,) where the trunk begins, `heading` (3,) where it goes.
        low_mm, high_mm: (3,) corners of the box, which a branch leaves by its radius at most.
        most: branches.

    Returns:
        Paths (n, 4) of x, y, z and radius in mm.
    """
    open_ends, branches = [(np.asarray(start_mm, float), np.asarray(heading, float), radius_mm)], []
    while open_ends and len(branches) < most:
        path, children = walk(rng, *open_ends.pop(0), low_mm, high_mm)
        branches.append(path)
        open_ends.extend(children)
    return branches


def walk(rng: np.random.Generator, place, heading, radius: float, low_mm, high_mm) -> tuple[np.ndarray, list]:
    """One branch (n, 4) that winds and tapers, and (place, heading, radius) of those that leave it."""
    low_mm, high_mm = np.asarray(low_mm, float), np.asarray(high_mm, float)
    step_mm = max(3.0, 0.7 * radius)
    heading = heading / (np.linalg.norm(heading) + 1e-6)
    wiggle, taper = rng.uniform(0.05, 0.5), rng.uniform(0.985, 1.0)
    turn = rng.normal(0, wiggle, 3)
    path, children = [(*place, radius)], []
    for number in range(int(rng.uniform(40, 300) / step_mm)):
        turn = 0.8 * turn + 0.6 * rng.normal(0, wiggle, 3) * np.sqrt(step_mm / 6)
        heading = heading + turn
        heading /= np.linalg.norm(heading)
        place, radius = place + step_mm * heading, radius * taper
        path.append((*place, radius))
        if (place < low_mm - radius).any() or (place > high_mm + radius).any() or radius < 0.9:
            break
        if number > 2 and rng.random() < step_mm / 35 and len(children) < 5 and radius > 1.3:
            side = np.cross(heading, rng.normal(size=3))
            children.append((place, heading + rng.uniform(0.6, 1.6) * side / np.linalg.norm(side),
                             radius * rng.uniform(0.45, 0.85)))  # fmt: skip
    return np.array(path), children


def capsules(path_mm: np.ndarray, grow_mm: float = 0.0) -> list[Shape]:
    """Capsules along a path (n, 4), each `grow_mm` thicker."""
    return [capsule(p[:3], q[:3], p[3] + grow_mm, q[3] + grow_mm) for p, q in zip(path_mm, path_mm[1:])]


def quadric(axes: np.ndarray, radii_mm, centre_mm, bias: float = 0.0) -> np.ndarray:
    """(10,) coefficients of 1, x, y, z, xx, yy, zz, xy, xz, yz of a squared distance in radii, plus `bias`.

    Args:
        axes: (3, 3), a column for each of the directions that `radii_mm` belong to.
    """
    centre = np.asarray(centre_mm, float)
    a = axes @ np.diag(np.asarray(radii_mm, float) ** -2.0) @ axes.T
    linear = -2 * a @ centre
    return np.array([centre @ a @ centre + bias, *linear, *np.diag(a), 2 * a[0, 1], 2 * a[0, 2], 2 * a[1, 2]])


def nearest(positions_mm: np.ndarray, quadrics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which quadric is smallest at each position, and by how much.

    Args:
        positions_mm: (3, n) float32.
        quadrics: (k, 10), at least two.

    Returns:
        Index (n,) of the smallest, and the difference (n,), in radii, to the next distance; float32.
    """
    count = positions_mm.shape[1]
    index, gap = np.empty(count, np.int64), np.empty(count, np.float32)
    weights = np.asarray(quadrics, np.float32).T
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        x, y, z = positions_mm[:, part]
        terms = np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
        values = terms @ weights
        index[part] = values.argmin(axis=1)
        first, second = np.partition(values, 1, axis=1)[:, :2].T
        gap[part] = np.sqrt(second.clip(0)) - np.sqrt(first.clip(0))
    return index, gap
