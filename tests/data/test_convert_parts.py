"""The parts of the conversion, each against what was worked out by hand."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from tests.data.downloads import AFFINE, SHAPE, box, write_masks_case, write_meta

from ctsam3d.data.convert.cases import TEST, TRAINING, find_source_cases, fingerprint, read_meta
from ctsam3d.data.convert.grids import HEADER, REORIENTED, RESAMPLED, SAME, on_image_grid, orthonormal
from ctsam3d.data.convert.label_map import paint, painting_order, rename, value_counts, voxels_of
from ctsam3d.data.io import write_volume
from ctsam3d.volume import Volume

# ---- cases and their split -----------------------------------------------------------------------------------------


def bare_cases(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "ct.nii.gz").write_bytes(b"")
    return folder


def parts_of(cases):
    return {case.name: (case.part, case.source_part) for case in cases}


def test_validation_counts_as_training(tmp_path):
    write_meta(bare_cases(tmp_path, "s0", "s1", "s2"), {"s0": "train", "s1": "val", "s2": "test"})
    expected = {"s0": (TRAINING, "train"), "s1": (TRAINING, "val"), "s2": (TEST, "test")}
    assert parts_of(find_source_cases(tmp_path)) == expected


def test_the_papers_split_of_version_1(tmp_path):
    """1204 cases: 1139 for training, 65 for testing."""
    counts = {"train": 1082, "val": 57, "test": 65}
    splits = [split for split, count in counts.items() for _ in range(count)]
    names = [f"s{n:04}" for n in range(1204)]
    write_meta(bare_cases(tmp_path, *names), dict(zip(names, splits)))
    parts = [case.part for case in find_source_cases(tmp_path)]
    assert (parts.count(TRAINING), parts.count(TEST)) == (1139, 65)


def test_without_a_split_a_hash_of_the_patient_decides(tmp_path):
    bare_cases(tmp_path, *(f"s{n:03}" for n in range(400)))
    parts = parts_of(find_source_cases(tmp_path))
    assert 20 <= [part for part, _ in parts.values()].count(TEST) <= 60  # a tenth of 400, and 3.3 sigma
    some = parts_of(find_source_cases(tmp_path, names=["s007", "s003"]))
    assert list(some) == ["s003", "s007"] and some == {name: parts[name] for name in some}
    assert {part for part, _ in parts_of(find_source_cases(tmp_path, test_share=0)).values()} == {TRAINING}
    assert {part for part, _ in parts_of(find_source_cases(tmp_path, test_share=1)).values()} == {TEST}


def test_all_cases_of_a_patient_are_on_one_side(tmp_path):
    bare_cases(tmp_path, *(f"s{n:03}" for n in range(200)))
    rows = "\n".join(f"s{n:03},P{n % 50}" for n in range(200))
    (tmp_path / "patients.csv").write_text(f"image,patient\n{rows}\n")
    cases = find_source_cases(tmp_path, tmp_path / "patients.csv")
    sides = {}
    for case in cases:
        sides.setdefault(case.patient, set()).add(case.part)
    assert len(sides) == 50 and all(len(parts) == 1 for parts in sides.values())
    assert {TRAINING, TEST} == set().union(*sides.values())


def test_a_patient_on_both_sides_is_refused(tmp_path):
    bare_cases(tmp_path, "a", "b")
    (tmp_path / "meta.csv").write_text("image_id;split;patient\na;train;P1\nb;test;P1\n")
    with pytest.raises(ValueError, match=r"split must keep a patient on one side, patient P1 is on both \(b\)"):
        find_source_cases(tmp_path)


def test_the_folder_may_be_a_case_itself(tmp_path):
    bare_cases(tmp_path, "s0005")
    assert [case.name for case in find_source_cases(tmp_path / "s0005")] == ["s0005"]


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("image_id;split\na;train\n", "must give the split of every case, it has none for b"),
        ("image_id;split\na;train\nb;\n", "must give the split of every case, it has none for b"),
        ("image_id;split\na;train\nb;dev\n", "must have a split of train, val, training, test, got dev"),
        ("name;split\na;train\n", "must have a column image_id or image or case, got"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, meta, words):
    bare_cases(tmp_path, "a", "b")
    (tmp_path / "meta.csv").write_text(meta)
    with pytest.raises(ValueError, match=words):
        find_source_cases(tmp_path)


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "meta.csv").write_text("\ufeffimage_id;split\ns0;test\n", encoding="utf-8")
    assert read_meta(tmp_path / "meta.csv")["s0"].split == "test"


def test_folders_that_are_no_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="in must be an existing folder"):
        find_source_cases(tmp_path / "none")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="must be a case or hold cases"):
        find_source_cases(tmp_path)
    bare_cases(tmp_path, "a", "b")
    with pytest.raises(ValueError, match=r"cases must be among those of .*, a, b, got c"):
        find_source_cases(tmp_path, names=["a", "c"])
    with pytest.raises(ValueError, match="test_share must be from 0 to 1, got 2"):
        find_source_cases(tmp_path, test_share=2)


def test_a_fingerprint_sees_another_version(tmp_path):
    one, same, other = (write_masks_case(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 0)))
    (other / "segmentations" / "spleen.nii.gz").unlink()
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


# ---- grids ---------------------------------------------------------------------------------------------------------


def sheared(shear, spacing=1.5):
    """i also moves along y: by `shear` of its step."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[1, 0] = shear * spacing
    return affine


def test_a_direction_that_is_orthonormal_stays():
    assert orthonormal(AFFINE, SHAPE) is None
    assert orthonormal(sheared(1e-6), SHAPE) is None  # what a header in float32 rounds away
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert orthonormal(turned, SHAPE) is None


def test_a_shear_is_shared_between_the_two_axes():
    # The nearest rotation to [[1, 0], [s, 1]] turns by s / 2, up to terms of order s cubed.
    mended = orthonormal(sheared(0.01), (21, 21, 21))
    direction = mended[:3, :3] / 1.5
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-4)
    assert direction[:2, :2] == pytest.approx(np.array([[1, -0.005], [0.005, 1]]), abs=1e-4)
    centre = np.array([10, 10, 10, 1])
    assert mended @ centre == pytest.approx(sheared(0.01) @ centre)


def test_flips_stay_flips():
    affine = sheared(0.002)
    affine[0] *= -1
    mended = orthonormal(affine, SHAPE)
    assert np.linalg.det(mended[:3, :3]) < 0 and mended[0, 0] < 0 < mended[1, 1]


def test_a_tilted_gantry_is_refused():
    # Shear 0.2 over 101 voxels: a corner is 50 x sqrt(2) voxels from the axis and moves by 0.1 times that.
    with pytest.raises(ValueError, match=r"direction must be orthonormal, .* move voxels by 7\.\d of their size"):
        orthonormal(sheared(0.2), (101, 101, 1))


def test_a_mended_scan_opens_in_itk(tmp_path):
    def save(affine):
        image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
        image.set_qform(None, 0)
        image.set_sform(affine, 1)
        nib.save(image, tmp_path / "ct.nii.gz")

    save(sheared(1e-3))
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
    mended = orthonormal(sheared(1e-3), SHAPE)
    write_volume(tmp_path / "mended.nii.gz", Volume(np.zeros(SHAPE, np.int16), mended))
    assert sitk.ReadImage(str(tmp_path / "mended.nii.gz")).GetSize() == SHAPE
    save(sheared(1e-5))  # below what is mended
    sitk.ReadImage(str(tmp_path / "ct.nii.gz"))


IMAGE = Volume(np.zeros(SHAPE, np.int16), AFFINE)
MASK = box((2, 4), (1, 5), (3, 3))


def shifted(mm):
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


def test_a_mask_on_the_images_grid_is_taken_as_it_is():
    mask, what = on_image_grid(MASK, AFFINE, IMAGE)
    assert what == SAME and np.array_equal(mask, MASK)


def test_a_mask_in_another_axis_order_is_moved_back():
    swap = AFFINE[:, [2, 0, 1, 3]]  # its i is the image's k
    flip = swap.copy()
    flip[:3, 3] += flip[:3, 1] * (SHAPE[0] - 1)
    flip[:3, 1] *= -1
    mask, what = on_image_grid(np.flip(MASK.transpose(2, 0, 1), 1), flip, IMAGE)
    assert what == REORIENTED and np.array_equal(mask, MASK)


def test_a_mask_with_a_slightly_other_header_is_taken_voxel_for_voxel():
    mask, what = on_image_grid(MASK, shifted((0.4, 0, 0)), IMAGE)  # 0.27 voxels
    assert what == HEADER and np.array_equal(mask, MASK)


def test_a_mask_with_a_lost_header_is_refused():
    with pytest.raises(ValueError, match=r"has the image's shape, but its affine is [\d.]+ voxels away"):
        on_image_grid(MASK, np.diag([1.5, 1.5, 1.5, 1]), IMAGE)
    with pytest.raises(ValueError, match=r"is 2\.0 voxels away"):
        on_image_grid(MASK, shifted((0, 0, 3.0)), IMAGE)


def test_a_cropped_mask_is_put_back():
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [1, 0, 2, 1])[:3]
    mask, what = on_image_grid(MASK[1:8, :7, 2:6], affine, IMAGE)
    assert what == RESAMPLED and np.array_equal(mask, MASK)


def test_a_coarser_mask_is_resampled_to_the_nearest():
    coarse = np.zeros((7, 6, 5), np.uint8)
    coarse[1, 2, 3] = 9  # two image voxels an edge: i 2 and 3, j 4 and 5, k 6 and 7
    affine = AFFINE @ np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (AFFINE @ [0.5, 0.5, 0.5, 1])[:3]
    mask, what = on_image_grid(coarse, affine, IMAGE)
    assert what == RESAMPLED and np.array_equal(mask, 9 * box((2, 3), (4, 5), (6, 7)))


def test_a_mask_that_leaves_the_image_is_refused():
    large = np.pad(MASK, ((0, 6), (0, 0), (0, 0)))
    large[17, 4, 4] = 1  # the image ends at 13
    with pytest.raises(ValueError, match=r"has shape \(20, 12, 10\) on a grid of its own, and labels 4\.0 voxels out"):
        on_image_grid(large, AFFINE, IMAGE)
    large[17, 4, 4] = 0
    mask, what = on_image_grid(large, AFFINE, IMAGE)
    assert what == RESAMPLED and np.array_equal(mask, MASK)


def test_an_empty_mask_is_empty_on_every_grid():
    for shape in ((3, 3, 3), SHAPE):
        mask, what = on_image_grid(np.zeros(shape, np.uint8), np.eye(4), IMAGE)
        assert what == SAME and mask.shape == SHAPE and not mask.any()


# ---- label maps ----------------------------------------------------------------------------------------------------


def test_tissues_are_painted_first_and_then_by_label():
    names = ("urinary_bladder", "hip_left", "torso_fat", "heart", "spleen", "skeletal_muscle", "vertebrae_S1", "sacrum")
    expected = ["skeletal_muscle", "torso_fat", "spleen", "hip_left", "sacrum", "vertebrae_S1", "urinary_bladder"]
    assert painting_order(names) == expected


def test_the_later_label_has_what_two_claim():
    labels = np.zeros(SHAPE, np.uint8, order="F")
    assert paint(labels, box((0, 3), (0, 3), (0, 3)), 106) == 0  # a tissue, 64 voxels
    assert paint(labels, box((0, 1), (0, 1), (0, 1)), 1) == 0  # takes 8 of them, which is no damage
    assert paint(labels, 255 * box((1, 2), (1, 1), (0, 0)), 5) == 1  # two voxels, one of them label 1
    assert paint(labels, box((1, 1), (1, 1), (0, 0)), 5) == 0  # more of the same
    assert value_counts(labels) == {1: 7, 5: 2, 106: 64 - 9}
    assert voxels_of(labels) == {"spleen": 7, "liver": 2, "visceral_fat": 55}
    assert labels[1, 1, 0] == labels[2, 1, 0] == 5


def test_values_of_a_map_are_renamed():
    labels = 3 * box((0, 0), (0, 0), (0, 1)).astype(np.uint16)
    labels[5, 5, 5], labels[6, 6, 6], labels[7, 7, 7] = 26, 300, 51
    renamed = rename(labels, {3: "kidney_left", 26: "vertebrae_S1", 51: "heart", 90: "liver"})
    assert renamed.dtype == np.uint8 and value_counts(renamed) == {3: 2, 92: 1}
    assert renamed[0, 0, 0] == renamed[0, 0, 1] == 3 and renamed[5, 5, 5] == 92


def test_counts_of_values_beyond_ours():
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, 0, 0], labels[1, 1, 1] = 4000, 2
    assert value_counts(labels) == {2: 1, 4000: 1}
    assert value_counts(np.zeros(SHAPE, np.uint8)) == {}
