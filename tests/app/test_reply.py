"""The label map of a reply: overlaps settled by hand-computed probabilities, files read back with shape and affine."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctsam3d.labelapp.reply import Segment, merge, write_reply
from ctsam3d.labelapp.requests import DTYPES, EXTENSIONS, ReplyOptions
from ctsam3d.volume import Box, Volume

SHAPE = (5, 3, 2)
OBLIQUE = np.array([[0.7, -0.4, 0.1, 12.3], [0.3, 0.8, -0.2, -45.6], [0.1, 0.3, 2.5, 78.9], [0, 0, 0, 1]])


def segment(value, probability, box=None):
    """A segment whose probability along i is given, the same at every j and k; its mask is where that exceeds 0.5."""
    full = np.broadcast_to(np.array(probability, np.float32)[:, None, None], SHAPE)
    box = box or Box((0, 0, 0), SHAPE)
    return Segment(value, full[box.slices()] > 0.5, box, lambda asked: full[asked.slices()])


def test_one_structure():
    labels = merge([segment(5, [0, 0.9, 0.9, 0, 0])], SHAPE)
    assert labels.dtype == np.uint8
    assert labels[:, 0, 0].tolist() == [0, 5, 5, 0, 0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_more_probable_structure_holds_whatever_the_order(order):
    both = [segment(1, [0.9, 0.9, 0.6, 0, 0]), segment(2, [0, 0.7, 0.8, 0.9, 0])]
    labels = merge([both[n] for n in order], SHAPE)
    assert labels[:, 1, 1].tolist() == [1, 1, 2, 2, 0]


def test_three_structures_and_a_tie():
    three = [segment(7, [0.9, 0.8, 0.6, 0, 0]), segment(3, [0, 0.8, 0.7, 0, 0]), segment(9, [0, 0, 0.95, 0.6, 0])]
    assert merge(three, SHAPE)[:, 2, 0].tolist() == [7, 7, 9, 9, 0]  # at equal probability the first holds


def test_boxes_that_hold_only_a_part():
    near, far = Box((0, 0, 0), (3, 3, 2)), Box((2, 0, 0), (5, 3, 2))
    labels = merge([segment(1, [0.9, 0.9, 0.6, 0, 0], near), segment(2, [0, 0, 0.8, 0.9, 0], far)], SHAPE)
    assert labels[:, 0, 1].tolist() == [1, 1, 2, 2, 0]


def test_boxes_apart_and_empty():
    none = Box((4, 0, 0), (4, 3, 2))
    apart = [segment(1, [0.9, 0, 0, 0, 0], Box((0, 0, 0), (1, 3, 2))), segment(2, [0, 0, 0, 0.9, 0], none)]
    assert merge(apart, SHAPE)[:, 0, 1].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_merging_equals_the_most_probable_claim_voxel_by_voxel(seed):
    """Boxes and probabilities at random; the rule written down directly is the reference."""
    rng = np.random.default_rng(seed)
    shape, segments, claims = (7, 6, 5), [], []
    for value in (4, 9, 2, 7):
        start = [int(rng.integers(0, n)) for n in shape]
        box = Box(tuple(start), tuple(int(rng.integers(a, n)) + 1 for a, n in zip(start, shape)))
        probability = rng.random(shape, dtype=np.float32)
        inside = np.zeros(shape, bool)
        inside[box.slices()] = probability[box.slices()] > 0.5
        segments.append(Segment(value, inside[box.slices()], box, lambda asked, p=probability: p[asked.slices()]))
        claims.append(np.where(inside, probability, 0))
    expected = np.where(np.max(claims, axis=0) > 0, np.array([4, 9, 2, 7])[np.argmax(claims, axis=0)], 0)
    assert np.array_equal(merge(segments, shape), expected)


def read_back(path):
    """Array (i, j, k) and affine to RAS mm, by another library than the one that wrote the file."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def labels_and_volume(affine):
    labels = np.random.default_rng(0).integers(0, 100, (6, 5, 4)).astype(np.uint8)
    return np.asfortranarray(labels), Volume(np.zeros((6, 5, 4), np.int16), affine)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_written_labels_keep_values_shape_and_affine(tmp_path, extension, compress, dtype):
    affine = np.diag([-0.8, 0.8, 3.0, 1.0])
    affine[:3, 3] = (100.25, -20.5, 7)
    labels, volume = labels_and_volume(affine)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, dtype, compress))
    array, found = read_back(path)
    assert array.dtype == dtype
    assert np.array_equal(array, labels)
    assert np.allclose(found, affine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz"])
def test_oblique_affine_is_kept(tmp_path, extension):
    labels, volume = labels_and_volume(OBLIQUE)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension))
    if extension == ".nrrd":
        array, found = read_back(path)
    else:
        image = nib.load(path)
        array, found = np.asanyarray(image.dataobj), image.affine
    assert np.array_equal(array, labels)
    assert np.allclose(found, OBLIQUE, rtol=0, atol=1e-5)


def test_nrrd_is_compressed_only_when_asked(tmp_path):
    labels, volume = labels_and_volume(np.eye(4))
    for compress, encoding in [(False, b"encoding: raw"), (True, b"encoding: gzip")]:
        write_reply(tmp_path / "reply.nrrd", labels, volume, ReplyOptions(".nrrd", compress=compress))
        assert encoding in (tmp_path / "reply.nrrd").read_bytes()
