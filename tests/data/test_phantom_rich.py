"""Rich phantoms and limbs: deterministic, labelled nearly everywhere, with HU and places that fit their names."""

import numpy as np
import pytest

from ctsam3d.data.io import read_case
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.data.phantom_limbs import LIMB_REGIONS_MM
from ctsam3d.data.phantom_materials import Material
from ctsam3d.data.phantom_rich import LEAST_VOXELS, METAL_HU, MOST_LABELS, Palette, label_the_rest, paint_implants
from ctsam3d.data.phantom_scanner import Scanner, narrowed, render
from ctsam3d.data.phantoms import make_limb_phantom, make_phantom, write_phantom_case

SPACING_MM = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def trunk():
    return make_phantom(2004, SPACING_MM, rich=True)


def masks(phantom):
    return {
        name: phantom.labels_ijk == value
        for value, name in enumerate(phantom.names, start=1)
        if (phantom.labels_ijk == value).any()
    }


def same(a, b):
    return (
        np.array_equal(a.volume.array_ijk, b.volume.array_ijk)
        and np.array_equal(a.labels_ijk, b.labels_ijk)
        and a.names == b.names
    )


def labelled_share(phantom):
    labelled = phantom.labels_ijk > 0
    return labelled.sum() / (labelled | (phantom.volume.array_ijk > -300)).sum()


def test_same_seed_same_phantom(trunk):
    assert same(trunk, make_phantom(2004, SPACING_MM, rich=True))
    assert not same(trunk, make_phantom(2005, SPACING_MM, rich=True))


def test_without_the_option_nothing_changes(trunk):
    plain = make_phantom(2004, SPACING_MM)
    assert plain.names == NAMES and plain.labels_ijk.max() <= len(NAMES)
    if trunk.labels_ijk.shape == plain.labels_ijk.shape:  # the whole scan is shown
        kidney = plain.labels_ijk == VALUE_OF["kidney_left"]
        assert (trunk.labels_ijk[kidney] == VALUE_OF["kidney_left"]).mean() > 0.5


@pytest.mark.parametrize("region", ["trunk", "abdomen", "chest", "pelvis"])
def test_nearly_all_is_labelled_and_each_label_is_large_enough(region):
    phantom = make_phantom(2010, SPACING_MM, region, rich=True)
    voxels = np.bincount(phantom.labels_ijk.ravel())[1:]
    assert voxels[voxels > 0].min() >= LEAST_VOXELS
    assert len(phantom.names) <= MOST_LABELS and len(set(phantom.names)) == len(phantom.names)
    assert phantom.names[: len(NAMES)] == NAMES
    assert labelled_share(phantom) > 0.9


def test_what_no_class_holds_has_a_label(trunk):
    found = masks(trunk)
    assert {"skin", "spinal_canal", "sternum", "soft_tissue_1"} <= set(found)
    assert {"superior_mesenteric_artery", "renal_vein_left"} & set(found)
    assert any("lesion" in name for name in found)


def test_parts_are_labelled_apart_the_largest_first():
    class Painted:
        labels = np.zeros((20, 20, 20), np.uint8)
        materials = np.zeros((20, 20, 20), np.uint8)

    Painted.materials[:5, :5, :5] = Material.DISC  # 125 voxels
    Painted.materials[10:16, :6, :6] = Material.DISC  # 216
    Painted.materials[:3, 12:15, :3] = Material.DISC  # 27, too few
    Painted.materials[:8, :8, 12:] = Material.CORD
    palette = Palette([])
    label_the_rest(Painted, palette)
    assert palette.names[len(NAMES) :] == ["disc_1", "disc_2", "spinal_canal"]
    assert np.bincount(Painted.labels.ravel())[len(NAMES) + 1 :].tolist() == [216, 125, 512]
    assert not Painted.labels[:3, 12:15, :3].any()


def test_a_palette_that_is_full_gives_no_label():
    palette = Palette([(0.0, 0.0, 0.0)])
    assert palette.label("spleen") == 1 and palette.label("new") == len(NAMES) + 1 == palette.label("new")
    for number in range(MOST_LABELS):
        last = palette.label(f"more_{number}")
    assert last is None and len(palette.names) == MOST_LABELS
    assert palette.material(40, 1, 2) == 1 and palette.table[1] == (40.0, 1.0, 2.0)


def test_a_quarter_has_metal_of_all_kinds():
    class Recorder:
        materials = np.full((4, 4, 4), Material.FAT_VISCERAL, np.uint8)
        position = np.indices((4, 4, 4)).astype(np.float32) * 10

        def paint(self, shapes, label, material, *_):
            self.metal = material

    kinds, without = set(), 0
    for seed in range(60):
        canvas, palette = Recorder(), Palette([(0.0, 0.0, 0.0)])
        paint_implants(canvas, palette, np.random.default_rng(seed))
        if len(palette.table) == 1:
            without += 1
            continue
        assert METAL_HU[0] <= palette.table[canvas.metal][0] <= METAL_HU[1]
        kinds.add(tuple(sorted(palette.names[len(NAMES) :])))
    assert 34 < without < 54
    assert kinds == {("hip_implant_left",), ("hip_implant_right",), ("rod", "screws"), ()}


def test_written_names_are_those_of_the_phantom(tmp_path, trunk):
    case = read_case(write_phantom_case(tmp_path / "p", trunk))
    found = masks(trunk)
    assert set(case.names) == set(found)
    assert np.array_equal(case.mask("skin"), found["skin"])


# ---- limbs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", sorted(LIMB_REGIONS_MM))
def test_limbs_are_labelled_everywhere(region):
    phantom = make_limb_phantom(4, (3.0, 3.0, 3.0), region)
    assert same(phantom, make_limb_phantom(4, (3.0, 3.0, 3.0), region))
    assert labelled_share(phantom) > 0.97
    assert {"skin", "subcutaneous_fat"} <= set(masks(phantom))
    voxels = np.bincount(phantom.labels_ijk.ravel())[1:]
    assert voxels[voxels > 0].min() >= LEAST_VOXELS


def whole(region, names):
    """The first phantom of a region that shows all of the names."""
    for seed in range(30):
        phantom = make_limb_phantom(seed, SPACING_MM, region)
        found = masks(phantom)
        if set(names) <= set(found):
            return phantom, found
    raise AssertionError(f"no phantom of the {region} shows {names}")


def test_bones_lie_on_their_sides_with_marrow_in_them():
    phantom, found = whole("thighs", ("femur_left", "femur_right"))
    x_mm = {
        side: phantom.volume.affine_ras_mm[0, 3] + 4 * np.argwhere(found[f"femur_{side}"])[:, 0].mean()
        for side in ("left", "right")
    }
    assert x_mm["left"] < 0 < x_mm["right"]  # the anatomical x of phantoms runs to the Right
    hu = phantom.volume.array_ijk[found["femur_left"]]
    assert np.percentile(hu, 95) > 350 and np.percentile(hu, 5) < 200


def test_a_lower_leg_has_two_bones():
    _, found = whole("lower_legs", ("tibia_left", "fibula_left", "tibia_right", "fibula_right"))
    assert found["tibia_left"].sum() > 2 * found["fibula_left"].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((1, 1, 0), "arm"), "spacing_mm"), (((1, 1, 1), "trunk"), "region must be one of thighs, lower_legs, arm")],
)
def test_limbs_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_limb_phantom(0, *arguments)


# ---- the scanner --------------------------------------------------------------------------------------------------


def shown(table, materials, scanner, spacing_mm=(1.5, 1.5, 1.5), seed=0):
    return render(
        materials, table, np.zeros(materials.shape, np.float32), spacing_mm, scanner, np.random.default_rng(seed)
    )


def test_mean_and_noise_are_those_asked_for():
    hu = shown([(40.0, 0.0, 0.0)], np.zeros((40, 40, 40), np.uint8), Scanner(12.0, 0.9, 0.6, 1.5, 0.0))
    assert hu.dtype == np.int16
    assert hu.mean() == pytest.approx(40, abs=1) and hu.std() == pytest.approx(12, rel=0.1)


def test_thick_slices_blur_along_z_alone():
    materials = np.zeros((30, 30, 30), np.uint8)
    materials[15:, :, 15:] = 1
    hu = shown([(0.0, 0.0, 0.0), (1000.0, 0.0, 0.0)], materials, Scanner(0.0, 0.9, 0.5, 6.0, 0.0))
    along, across = hu[25, 15].astype(int), hu[:, 15, 25].astype(int)
    assert ((along > 50) & (along < 950)).sum() > ((across > 50) & (across < 950)).sum()


def test_metal_casts_rays_in_its_own_slices():
    materials = np.zeros((60, 60, 12), np.uint8)
    materials[28:33, 28:33, 6:] = 1
    hu = shown([(0.0, 0.0, 0.0), (3000.0, 0.0, 0.0)], materials, Scanner(0.0, 0.9, 0.5, 1.5, 0.0)).astype(int)
    rim = np.hypot(*np.meshgrid(np.arange(60) - 30, np.arange(60) - 30)) > 12
    assert hu[:, :, 10][rim].std() > 10
    assert hu[:, :, 1][rim].std() < 1


def test_a_narrow_scan_is_a_part_of_the_whole():
    shape, spacing_mm, cut, round_ = (200, 150, 120), (1.5, 1.5, 1.5), 0, 0
    for seed in range(60):
        box, lacking = narrowed(shape, spacing_mm, np.random.default_rng(seed))
        sizes = [s.stop - s.start for s in box]
        assert all(0 <= s.start < s.stop <= n for s, n in zip(box, shape))
        assert all(size * 1.5 >= least - 1.5 for size, least in zip(sizes, (140, 130, 70)))
        cut += sizes != list(shape)
        if lacking is not None:
            round_ += 1
            assert lacking.shape == tuple(sizes[:2]) and not lacking[sizes[0] // 2, sizes[1] // 2]
    assert 8 < cut < 36 and 3 < round_ < 26
