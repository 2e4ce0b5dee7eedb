"""Phantoms: the same patient at every spacing, with anatomy and HU that a CT could have."""

import json

import nibabel as nib
import numpy as np
import pytest

from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantom_canvas import SmoothField, capsule, column, ellipsoid, smooth_path, union
from ctsam3d.data.phantom_materials import Material, tissue_tables
from ctsam3d.data.phantoms import REGIONS_MM, make_phantom, make_phantom_cases

SPACING_MM = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def trunk():
    return make_phantom(11, SPACING_MM)


def mean_hu(phantom, *names):
    inside = np.isin(phantom.labels_ijk, [VALUE_OF[name] for name in names])
    return phantom.volume.array_ijk[inside].mean()


def extent_mm(phantom, name):
    where = np.argwhere(phantom.labels_ijk == VALUE_OF[name])
    return (where.max(axis=0) - where.min(axis=0) + 1) * phantom.volume.spacing_ijk_mm


def test_frame_and_dtypes(trunk):
    assert trunk.volume.array_ijk.dtype == np.int16
    assert trunk.labels_ijk.dtype == np.uint8
    assert trunk.labels_ijk.shape == trunk.volume.shape_ijk
    assert np.array_equal(trunk.volume.affine_ras_mm[:3, :3], np.diag(SPACING_MM))
    assert trunk.labels_ijk.max() <= len(NAMES)


def test_left_is_left_and_top_is_top(trunk):
    def centre(name):  # RAS mm
        ijk = np.argwhere(trunk.labels_ijk == VALUE_OF[name]).mean(axis=0)
        return trunk.volume.affine_ras_mm[:3, :3] @ ijk + trunk.volume.affine_ras_mm[:3, 3]

    assert centre("kidney_right")[0] > centre("kidney_left")[0]
    assert centre("liver")[0] > centre("spleen")[0]
    assert centre("urinary_bladder")[1] > centre("sacrum")[1]
    assert centre("heart_myocardium")[2] > centre("liver")[2] > centre("urinary_bladder")[2]


def test_a_seed_is_one_patient_and_another_seed_another(trunk):
    again, other = make_phantom(11, SPACING_MM), make_phantom(12, SPACING_MM)
    assert np.array_equal(again.volume.array_ijk, trunk.volume.array_ijk)
    assert np.array_equal(again.labels_ijk, trunk.labels_ijk)
    shape = np.minimum(other.labels_ijk.shape, trunk.labels_ijk.shape)
    common = tuple(slice(0, n) for n in shape)
    assert (other.labels_ijk[common] != trunk.labels_ijk[common]).mean() > 0.1


def test_global_random_state_is_neither_used_nor_moved():
    np.random.seed(1)
    first, state = make_phantom(3, (6.0, 6.0, 6.0)), np.random.get_state()[1].copy()
    np.random.seed(2)
    assert np.array_equal(first.labels_ijk, make_phantom(3, (6.0, 6.0, 6.0)).labels_ijk)
    np.random.seed(1)
    assert np.array_equal(np.random.get_state()[1], state)


def test_structures_of_a_trunk(trunk):
    present = {NAMES[v - 1] for v in np.unique(trunk.labels_ijk) if v}
    expected = {
        "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta", "inferior_vena_cava",
        "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left", "small_bowel",
        "duodenum", "colon", "iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right",
        "lung_lower_lobe_left", "lung_lower_lobe_right", "lung_middle_lobe_right", "heart_ventricle_left",
        "vertebrae_L5", "vertebrae_L1", "vertebrae_T12", "rib_left_10", "rib_right_10", "hip_left", "hip_right",
        "femur_left", "sacrum", "autochthon_left", "iliopsoas_right", "gluteus_maximus_left", "gluteus_minimus_right",
        "urinary_bladder", "skeletal_muscle", "visceral_fat", "subcutaneous_fat",
    }  # fmt: skip
    assert expected <= present
    assert not {"brain", "face", "vertebrae_C1", "clavicula_left"} & present


def test_nearly_all_of_the_body_has_a_label(trunk):
    labelled = trunk.labels_ijk > 0
    body = labelled | (trunk.volume.array_ijk > -300)
    assert labelled.sum() / body.sum() > 0.75


@pytest.mark.parametrize("seed", [0, 7])
def test_organs_that_no_single_patch_holds(seed):
    phantom = make_phantom(seed, SPACING_MM)
    assert extent_mm(phantom, "liver").max() > 96
    assert extent_mm(phantom, "aorta")[2] > 250


def test_hu_are_those_of_the_tissues(trunk):
    assert mean_hu(trunk, "lung_lower_lobe_left", "lung_lower_lobe_right") < -700
    assert -130 < mean_hu(trunk, "subcutaneous_fat") < -80
    assert 20 < mean_hu(trunk, "skeletal_muscle") < 90
    assert 0 < mean_hu(trunk, "liver") < 150
    assert 250 < mean_hu(trunk, "hip_left") < 900
    corners = trunk.volume.array_ijk[:4, -4:]
    assert -1024 <= corners.min() and corners.mean() < -950


def test_the_same_patient_at_another_spacing():
    fine, thick = make_phantom(5, (2.0, 2.0, 2.0), "abdomen"), make_phantom(5, (2.0, 2.0, 5.0), "abdomen")
    assert thick.volume.spacing_ijk_mm == pytest.approx((2.0, 2.0, 5.0))
    shift = fine.volume.affine_ras_mm[:3, 3] - thick.volume.affine_ras_mm[:3, 3]
    assert np.abs(shift).max() < 1e-6
    # Slice 2k of the thick scan lies at 10k mm: slice 5k of the fine one.
    a, b = fine.labels_ijk[:, :, ::5], thick.labels_ijk[:, :, ::2]
    depth = min(a.shape[2], b.shape[2])
    assert (a[:, :, :depth] == b[:, :, :depth]).mean() > 0.97


@pytest.mark.parametrize(
    ("region", "inside", "outside"),
    [("chest", "trachea", "sacrum"), ("abdomen", "pancreas", "trachea"), ("pelvis", "femur_left", "spleen")],
)
def test_regions_show_their_part_of_the_body(region, inside, outside):
    phantom = make_phantom(2, (4.0, 4.0, 4.0), region)
    assert (phantom.labels_ijk == VALUE_OF[inside]).any()
    assert not (phantom.labels_ijk == VALUE_OF[outside]).any()
    low, high = REGIONS_MM[region]
    assert phantom.volume.shape_ijk[2] * 4.0 == pytest.approx(high - low, rel=0.12)


@pytest.mark.parametrize("spacing_mm", [(0.0, 1.0, 1.0), (1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_a_spacing_that_is_none(spacing_mm):
    with pytest.raises(ValueError, match="spacing_mm"):
        make_phantom(0, spacing_mm)


def test_a_region_that_is_none():
    with pytest.raises(ValueError, match=r"region must be one of .*'head'"):
        make_phantom(0, region="head")


def test_cases_on_disk(tmp_path):
    folders = make_phantom_cases(tmp_path, count=2, seed=4, spacing_mm=(6.0, 6.0, 6.0))
    assert [folder.name for folder in folders] == ["phantom_4", "phantom_5"]
    assert sorted(p.name for p in folders[0].iterdir()) == ["ct.nii.gz", "labels.json", "seg.nii.gz"]
    phantom = make_phantom(4, (6.0, 6.0, 6.0))
    ct, seg = (nib.load(folders[0] / f"{name}.nii.gz") for name in ("ct", "seg"))
    assert ct.get_data_dtype() == np.int16 and seg.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(ct.dataobj), phantom.volume.array_ijk)
    assert np.array_equal(np.asarray(seg.dataobj), phantom.labels_ijk)
    assert np.allclose(ct.affine, phantom.volume.affine_ras_mm)
    names = json.loads((folders[0] / "labels.json").read_text())
    assert {int(value): name for value, name in names.items()} == {
        int(v): NAMES[v - 1] for v in np.unique(phantom.labels_ijk) if v
    }


def test_count_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        make_phantom_cases(tmp_path, count=0, seed=0)


def test_every_material_has_finite_hu_and_the_phases_differ():
    tables = [tissue_tables(np.random.default_rng(seed)) for seed in range(12)]
    assert all(len(column) == len(Material) and np.isfinite(column).all() for table in tables for column in table)
    aorta = [mean[Material.AORTA] for mean, _, _ in tables]
    assert min(aorta) < 70 and max(aorta) > 110


def at(shape, *points):
    x, y, z = (np.array(v, np.float32).reshape(1, 1, -1) for v in zip(*points))
    return shape.distance(x, y, z).ravel()


def test_shapes_by_hand():
    ball = ellipsoid((1, 2, 3), (5, 5, 5))
    assert at(ball, (1, 2, 3), (6, 2, 3), (1, 2, 13)) == pytest.approx([-5, 0, 5], abs=1e-5)
    rod = capsule((0, 0, 0), (10, 0, 0), 2, 4)
    assert at(rod, (0, 2, 0), (5, 3, 0), (-3, 0, 0), (10, 0, 6)) == pytest.approx([0, 0, 1, 2], abs=1e-5)
    both = union(ball, ellipsoid((21, 2, 3), (5, 5, 5)))
    assert at(both, (1, 2, 3), (21, 2, 3), (11, 2, 3)) == pytest.approx([-5, -5, 5], abs=1e-5)
    post = column([0, 10], 0, 0, 4, 4, squareness=0)
    height = np.array([[[5.0]]], np.float32)
    one, zero = np.ones_like(height), np.zeros_like(height)
    assert post.distance(4 * one, zero, height).item() == pytest.approx(0, abs=1e-5)
    assert post.distance(zero, zero, height).item() == pytest.approx(-4, abs=1e-5)


def test_a_turned_ellipsoid_lies_inside_its_bounds():
    shape = ellipsoid((0, 0, 0), (10, 2, 2), yaw=np.pi / 2)
    assert shape.high_mm == pytest.approx([2, 10, 2])
    assert at(shape, (0, 10, 0), (2, 0, 0)) == pytest.approx([0, 0], abs=1e-5)


def test_a_path_passes_through_its_points():
    path, arc = smooth_path([(0, 0, 0, 1), (10, 0, 0, 3), (20, 0, 0, 1)], 1.0)
    assert arc[-1] == pytest.approx(20)
    assert path[np.argmin(np.abs(path[:, 0] - 10))] == pytest.approx([10, 0, 0, 3])


def test_a_smooth_field_depends_on_place_alone():
    field = SmoothField(np.random.default_rng(0), 20.0)
    axes = np.arange(-100, 100, 5.0), np.arange(-80, 80, 5.0), np.arange(0, 300, 5.0)
    values = field.sample(axes)
    assert values.std() == pytest.approx(1, abs=0.25)
    part = field.sample((axes[0][3:5], axes[1][:7], axes[2][40:]))
    assert np.allclose(part, values[3:5, :7, 40:], atol=1e-5)
