"""Structures derived from HU: hand-made legs and joints whose bones, fat, skin and air are known."""

from types import MappingProxyType

import numpy as np
import pytest

from ctsam3d.data import derived as module
from ctsam3d.data.default_data import HELD_OUT, REAL, make_real_cases, refuse_held_out
from ctsam3d.data.derived import derive_structures, find_bones, write_derived_case
from ctsam3d.data.io import Case, read_case
from ctsam3d.volume import Volume

AIR, FAT, LEAN, BONE, MARROW = -1000, -100, 55, 700, -60
SPACING_ZYX_MM = (3.0, 1.5, 1.5)


def disc_mm(shape, centre_mm):
    """(Z, Y, X) distance in mm from an upright axis at (y, x)."""
    y, x = np.arange(shape[1])[:, None] * 1.5 - centre_mm[0], np.arange(shape[2])[None, :] * 1.5 - centre_mm[1]
    return np.broadcast_to(np.hypot(y, x), shape)


def leg():
    """Muscle to 54 mm with two bones, subcutaneous fat to 72, skin to 75; HU zyx and the two bones' masks."""
    shape = (24, 120, 120)
    r = disc_mm(shape, (90, 90))
    hu = np.full(shape, AIR, np.int16)
    for limit, value in ((75, 20), (72, FAT), (54, LEAN)):
        hu[r < limit] = value
    thick, thin = disc_mm(shape, (90, 78)) < 15, disc_mm(shape, (90, 114)) < 9
    hu[thick | thin] = BONE
    hu[disc_mm(shape, (90, 78)) < 9] = MARROW
    return hu, thick, thin


def case_of(hu_zyx, masks=None):
    """Arrays zyx (z up, y to Posterior, x to Left) as a scan whose axes i, j, k are x, y, z."""
    affine = np.diag([-SPACING_ZYX_MM[2], -SPACING_ZYX_MM[1], SPACING_ZYX_MM[0], 1.0])
    structures = {name: (lambda mask=mask: mask.transpose(2, 1, 0)) for name, mask in (masks or {}).items()}
    return Case("leg", Volume(np.ascontiguousarray(hu_zyx.transpose(2, 1, 0)), affine), MappingProxyType(structures))


def dsc(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def derived_masks(derived):
    return {n: (derived.labels_ijk == v).transpose(2, 1, 0) for v, n in enumerate(derived.names, start=1)}


def test_every_part_of_a_leg_gets_its_label():
    hu, thick, thin = leg()
    masks = derived_masks(derive_structures(case_of(hu)))
    assert dsc(masks["bone_1"], thick) > 0.95  # with its marrow
    assert dsc(masks["bone_2"], thin) > 0.9
    r = disc_mm(hu.shape, (90, 90))
    assert dsc(masks["skeletal_muscle"], (r < 54) & ~thick & ~thin) > 0.9
    assert dsc(masks["subcutaneous_fat"], (r >= 54) & (r < 72)) > 0.85
    assert masks["skin"].any() and r[masks["skin"]].min() > 70 and r[masks["skin"]].max() < 77
    body = r < 75
    assert sum(mask & body for mask in masks.values()).sum() / body.sum() > 0.85


def test_what_is_labelled_is_kept_and_comes_first():
    hu, thick, _ = leg()
    mass = disc_mm(hu.shape, (50, 90)) < 12
    case = case_of(hu, {"tumour": mass, "femur_left": thick})
    derived = derive_structures(case)
    masks = derived_masks(derived)
    assert derived.names[:2] == ("tumour", "femur_left")
    assert np.array_equal(masks["tumour"], mass) and np.array_equal(masks["femur_left"], thick)
    assert "bone_1" in derived.names and "bone_2" not in derived.names  # one bone was left to find


def test_a_second_leg_and_the_air_between_are_not_one():
    hu, _, _ = leg()
    both = np.concatenate([hu, hu], axis=2)
    masks = derived_masks(derive_structures(case_of(both)))
    bones = [mask for name, mask in masks.items() if name.startswith("bone")]
    assert len(bones) == 4
    assert all(not (m[:, :, :120].any() and m[:, :, 120:].any()) for m in bones)


def test_bones_that_touch_are_told_apart_at_the_joint():
    """A ball of 20 mm on a block, the gap between them half filled by partial volume."""
    shape = (40, 80, 80)
    z, y, x = np.meshgrid(*(np.arange(n) * 1.5 for n in shape), indexing="ij")
    hu = np.full(shape, LEAN, np.int16)
    ball = np.sqrt((z - 40) ** 2 + (y - 60) ** 2 + (x - 60) ** 2) < 18
    block = (z < 20) & (np.abs(y - 60) < 25) & (np.abs(x - 60) < 25)
    hu[block], hu[ball] = 500, 500
    hu[(ball | block) & (np.abs(z - 21) < 2)] = 180  # they meet in a dim line
    bones = find_bones(hu, np.ones(shape, bool), (1.5, 1.5, 1.5))
    assert bones.max() == 2
    assert dsc(bones == bones[10, 40, 40], block) > 0.9
    assert dsc(bones == bones[28, 40, 40], ball) > 0.9


def test_a_canal_between_bones_is_not_marrow():
    shape = (20, 80, 80)
    hu = np.full(shape, LEAN, np.int16)
    r = disc_mm(shape, (60, 60))
    hu[r < 24] = BONE
    hu[r < 14] = 35  # 6 cm2 of cord and fluid
    bones = find_bones(hu, np.ones(shape, bool), (3.0, 1.5, 1.5))
    assert bones[10, 40, 40] == 0 and bones[10, 40, 53] == 1
    hu[r < 14] = MARROW
    assert find_bones(hu, np.ones(shape, bool), (3.0, 1.5, 1.5))[10, 40, 40] == 1


def test_parts_that_meet_in_a_large_area_are_one():
    parts = np.zeros((4, 4, 8), int)
    parts[:, :, :4], parts[:, :, 4:] = 1, 2
    assert module._contacts_mm2(parts, (1.0, 1.0, 1.0)) == {(1, 2): 16.0}
    # 16 mm2 over (0.064 ml)^(2/3) = 0.16 cm2: one whole side of a cube is a share of 1.
    assert np.array_equal(module._rejoined(parts, (1.0, 1.0, 1.0)), parts)
    shell = np.ones((12, 12, 12), int)
    shell[1:-1, 1:-1, 1:-1] = 2
    assert len(np.unique(module._rejoined(shell, (1.0, 1.0, 1.0)))) == 1


def test_gas_in_the_body_has_a_label_and_a_rim_of_known_gas_none():
    hu, _, _ = leg()
    gas = disc_mm(hu.shape, (60, 90)) < 10
    hu[gas] = -950
    masks = derived_masks(derive_structures(case_of(hu)))
    assert dsc(masks["gas_1"], gas) > 0.9
    most = gas & (disc_mm(hu.shape, (60, 90)) < 8)
    assert "gas_1" not in derive_structures(case_of(hu, {"colon": most})).names


def test_air_alone_yields_nothing():
    derived = derive_structures(case_of(np.full((8, 20, 20), AIR, np.int16)))
    assert derived.names == () and not derived.labels_ijk.any() and not derived.body_ijk.any()


def test_too_many_structures_are_refused():
    empty = np.zeros((2, 2, 2), bool)
    case = case_of(np.zeros((2, 2, 2), np.int16), {f"s{n}": empty for n in range(201)})
    with pytest.raises(ValueError, match="at most 200 structures, it has 201"):
        derive_structures(case)


def test_written_case_reads_back(tmp_path):
    case = case_of(leg()[0])
    derived = derive_structures(case)
    back = read_case(write_derived_case(tmp_path / "leg", case.volume, derived))
    assert set(back.names) == set(derived.names)
    assert np.array_equal(back.mask("bone_1"), derived.labels_ijk == derived.names.index("bone_1") + 1)
    assert np.array_equal(back.volume.array_ijk, case.volume.array_ijk)


# ---- what is trained on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HELD_OUT))
def test_held_out_cases_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="held-out"):
        make_real_cases(tmp_path, tmp_path / "out", ["sts_001", name])
    with pytest.raises(ValueError, match="held-out"):
        refuse_held_out([name.upper()])
    assert not (tmp_path / "out").exists()


def test_no_real_case_is_held_out():
    names = [name for group in REAL.values() for name in group]
    assert not HELD_OUT & set(names) and len(HELD_OUT) == len(set(names)) == 10
    refuse_held_out(names)


def test_a_real_case_is_labelled_nearly_everywhere(tmp_path, shared_data):
    (folder,) = make_real_cases(shared_data, tmp_path, ["sts_006"])
    case = read_case(folder)
    original = read_case(shared_data / "sts_006")
    assert np.array_equal(case.mask("tumour"), original.mask("tumour"))
    labelled = np.logical_or.reduce([case.mask(name) for name in case.names])
    assert labelled.sum() / (original.volume.array_ijk > -300).sum() > 0.9
    voxel_ml = np.prod(case.volume.spacing_ijk_mm) / 1000
    assert 150 < case.mask("bone_1").sum() * voxel_ml < 260  # a femur of 22 cm
    before = (folder / "labels.json").stat().st_mtime_ns
    make_real_cases(shared_data, tmp_path, ["sts_006"])
    assert (folder / "labels.json").stat().st_mtime_ns == before
