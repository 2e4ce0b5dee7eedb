"""Scans of every orientation, and the model grid's place in the world computed apart from the code under test."""

import itertools

import numpy as np
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from ctsam3d.volume import Volume

MODEL_MM = 1.5
PATCH = 64

# All 48 ways to lay the axes of an array along R, A and S: six orders by eight directions.
ORIENTATIONS = [
    np.diag(signs)[:, order]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def affine_of(orientation, spacing_ijk_mm, rotation_vector=(0.0, 0.0, 0.0), origin_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4) to RAS mm: the axes laid by `orientation`, turned by `rotation_vector` (radians), at `origin_mm`."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix() @ orientation * np.asarray(spacing_ijk_mm)
    affine[:3, 3] = origin_mm
    return affine


def lps_of_ijk(affine_ras_mm, ijk) -> np.ndarray:
    """(..., 3), world position in LPS mm."""
    return apply_affine(affine_ras_mm, np.asarray(ijk, dtype=float)) * [-1, -1, 1]


def lps_of_model_voxel(affine_ras_mm, shape_ijk, voxel_zyx, spacing_mm=MODEL_MM) -> np.ndarray:
    """(3,), centre in LPS mm of a voxel of the model grid, which starts at the scan's lowest corner in L, P and S."""
    corners_ijk = list(itertools.product(*[(-0.5, n - 0.5) for n in shape_ijk]))
    lowest_lps = lps_of_ijk(affine_ras_mm, corners_ijk).min(axis=0)
    return lowest_lps + (np.asarray(voxel_zyx)[::-1] + 0.5) * spacing_mm


@st.composite
def volumes(draw) -> Volume:
    """Empty scans of every orientation, oblique ones among them, 0.5 to 5 mm, from one voxel to more than a patch."""
    spacing_mm = tuple(draw(st.floats(0.5, 5.0)) for _ in range(3))
    shape = tuple(draw(st.integers(1, max(2, int(130 / s)))) for s in spacing_mm)
    rotation = tuple(draw(st.sampled_from([0.0, 0.1, -0.35])) for _ in range(3))
    affine = affine_of(draw(st.sampled_from(ORIENTATIONS)), spacing_mm, rotation, (12.0, -34.0, 56.0))
    return Volume(np.zeros(shape, np.int16), affine)
