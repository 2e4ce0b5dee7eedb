"""The label map of a reply: overlaps settled by hand-computed probabilities, files read back with shape and affine."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from ctsam3d.labelapp.reply import BoxedLabels, Segment, merge, write_reply
from ctsam3d.labelapp.requests import DTYPES, EXTENSIONS, ReplyOptions
from ctsam3d.labelapp.sparse_gzip import SparseGzip, crc32_after_zeros
from ctsam3d.volume import Box, Volume

SHAPE = (5, 3, 2)
OBLIQUE = np.array([[0.7, -0.4, 0.1, 12.3], [0.3, 0.8, -0.2, -45.6], [0.1, 0.3, 2.5, 78.9], [0, 0, 0, 1]])


def segment(value, probability, box=None):
    """A segment whose probability along i is given, the same at every j and k; its mask is where that exceeds 0.5."""
    full = np.broadcast_to(np.array(probability, np.float32)[:, None, None], SHAPE)
    box = box or Box((0, 0, 0), SHAPE)
    return Segment(value, full[box.slices()] > 0.5, box, lambda asked: full[asked.slices()])


def whole(labels, shape=SHAPE):
    """The label map over the whole scan."""
    full = np.zeros(shape, labels.array.dtype)
    full[labels.box_ijk.slices()] = labels.array
    return full


def test_one_structure():
    merged = merge([segment(5, [0, 0.9, 0.9, 0, 0])])
    assert merged.box_ijk == Box((1, 0, 0), (3, 3, 2))
    labels = whole(merged)
    assert labels.dtype == np.uint8
    assert labels[:, 0, 0].tolist() == [0, 5, 5, 0, 0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_more_probable_structure_holds_whatever_the_order(order):
    both = [segment(1, [0.9, 0.9, 0.6, 0, 0]), segment(2, [0, 0.7, 0.8, 0.9, 0])]
    labels = whole(merge([both[n] for n in order]))
    assert labels[:, 1, 1].tolist() == [1, 1, 2, 2, 0]


def test_three_structures_and_a_tie():
    three = [segment(7, [0.9, 0.8, 0.6, 0, 0]), segment(3, [0, 0.8, 0.7, 0, 0]), segment(9, [0, 0, 0.95, 0.6, 0])]
    assert whole(merge(three))[:, 2, 0].tolist() == [7, 7, 9, 9, 0]  # at equal probability the first holds


def test_boxes_that_hold_only_a_part():
    near, far = Box((0, 0, 0), (3, 3, 2)), Box((2, 0, 0), (5, 3, 2))
    labels = whole(merge([segment(1, [0.9, 0.9, 0.6, 0, 0], near), segment(2, [0, 0, 0.8, 0.9, 0], far)]))
    assert labels[:, 0, 1].tolist() == [1, 1, 2, 2, 0]


def test_boxes_apart_and_empty():
    none = Box((4, 0, 0), (4, 3, 2))
    apart = [segment(1, [0.9, 0, 0, 0, 0], Box((0, 0, 0), (1, 3, 2))), segment(2, [0, 0, 0, 0.9, 0], none)]
    assert whole(merge(apart))[:, 0, 1].tolist() == [1, 0, 0, 0, 0]


def test_no_label_has_an_empty_box():
    none = Box((4, 0, 0), (4, 3, 2))
    for segments in ([], [segment(2, [0, 0, 0, 0.9, 0], none)], [segment(1, [0.5, 0, 0, 0, 0])] * 2):
        merged = merge(segments)
        assert merged.box_ijk.empty
        assert merged.array.size == 0


def test_the_box_of_the_labels_is_the_smallest():
    probability = np.zeros((9, 8, 7), np.float32)
    probability[3:5, 2, 1:6] = 0.9
    box = Box((1, 1, 0), (8, 7, 7))
    merged = merge([Segment(2, probability[box.slices()] > 0.5, box, lambda asked: probability[asked.slices()])])
    assert merged.box_ijk == Box((3, 2, 1), (5, 3, 6))
    assert np.array_equal(whole(merged, (9, 8, 7)), np.where(probability > 0.5, 2, 0))


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
    assert np.array_equal(whole(merge(segments), shape), expected)


def read_back(path):
    """Array (i, j, k) and affine to RAS mm, by another library than the one that wrote the file."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def one_member(packed):
    """What a gzip stream of one member holds; it must end where its data end."""
    reader = zlib.decompressobj(31)
    data = reader.decompress(packed) + reader.flush()
    assert reader.eof and reader.unused_data == b""
    assert gzip.decompress(packed) == data
    return data


ANISOTROPIC = np.array([[-0.8, 0, 0, 100.25], [0, 0.8, 0, -20.5], [0, 0, 3.0, 7], [0, 0, 0, 1]])
INNER, WHOLE, EMPTY = Box((2, 1, 1), (5, 4, 3)), Box((0, 0, 0), (6, 5, 4)), Box((0, 0, 0), (0, 0, 0))
# Each touches one face of the grid, or two opposite ones.
FACES = [Box((0, 1, 1), (5, 4, 3)), Box((2, 0, 1), (5, 4, 3)), Box((2, 1, 0), (5, 4, 3)), Box((2, 1, 1), (6, 4, 3))]
FACES += [Box((2, 1, 1), (5, 5, 3)), Box((2, 1, 1), (5, 4, 4)), Box((0, 1, 1), (6, 4, 3)), Box((2, 0, 1), (5, 5, 3))]


def labels_and_volume(affine, box=INNER, shape=(6, 5, 4), seed=0):
    array = np.random.default_rng(seed).integers(0, 100, box.shape).astype(np.uint8)
    return BoxedLabels(array, box), Volume(np.zeros(shape, np.int16), affine)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_written_labels_keep_values_shape_and_affine(tmp_path, extension, compress, dtype):
    labels, volume = labels_and_volume(ANISOTROPIC)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, dtype, compress))
    array, found = read_back(path)
    assert array.dtype == dtype
    assert np.array_equal(array, whole(labels, volume.shape_ijk))
    assert np.allclose(found, ANISOTROPIC, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("box", [INNER, WHOLE, EMPTY, *FACES])
def test_labels_at_every_face_and_none(tmp_path, extension, box):
    labels, volume = labels_and_volume(ANISOTROPIC, box)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, "uint16", compress=True))
    expected = whole(labels, volume.shape_ijk)
    assert np.array_equal(read_back(path)[0], expected)
    if extension != ".nrrd":
        assert np.array_equal(np.asanyarray(nib.load(path).dataobj), expected)


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
    assert np.array_equal(array, whole(labels, volume.shape_ijk))
    assert np.allclose(found, OBLIQUE, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nifti_is_to_the_byte_what_nibabel_writes(tmp_path, dtype):
    labels, volume = labels_and_volume(OBLIQUE)
    image = nib.Nifti1Image(whole(labels, volume.shape_ijk).astype(dtype), OBLIQUE)
    image.header.set_xyzt_units("mm")
    image.set_qform(OBLIQUE, code=1)
    image.set_sform(OBLIQUE, code=1)
    nib.save(image, tmp_path / "theirs.nii")
    for extension in (".nii", ".nii.gz"):
        write_reply(tmp_path / "ours", labels, volume, ReplyOptions(extension, dtype))
        ours = (tmp_path / "ours").read_bytes()
        assert (one_member(ours) if extension == ".nii.gz" else ours) == (tmp_path / "theirs.nii").read_bytes()


def test_nrrd_is_compressed_only_when_asked(tmp_path):
    labels, volume = labels_and_volume(np.eye(4))
    for compress, encoding in [(False, b"encoding: raw"), (True, b"encoding: gzip")]:
        write_reply(tmp_path / "reply.nrrd", labels, volume, ReplyOptions(".nrrd", compress=compress))
        assert encoding in (tmp_path / "reply.nrrd").read_bytes()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_of_the_box_alone_lies_where_the_labels_do(tmp_path, extension):
    labels, volume = labels_and_volume(ANISOTROPIC)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, compress=True, box_only=True))
    array, affine = read_back(path)
    assert np.array_equal(array, labels.array)
    assert np.allclose(affine[:3, :3], ANISOTROPIC[:3, :3], rtol=0, atol=1e-6)
    # Voxel (2, 1, 1) of the image is the file's first: 100.25 - 0.8 * 2, -20.5 + 0.8 * 1, 7 + 3 * 1.
    assert np.allclose(affine[:3, 3], (98.65, -19.7, 10.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_of_no_label_alone_has_one_voxel(tmp_path, extension):
    labels, volume = labels_and_volume(ANISOTROPIC, EMPTY)
    path = tmp_path / f"reply{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, box_only=True))
    assert read_back(path)[0].tolist() == [[[0]]]


# ---- gzip without looking at zeros ---------------------------------------------------------------------------------


@st.composite
def grids_and_boxes(draw):
    """A shape, and a box inside it that may be empty or touch any face."""
    shape = tuple(draw(st.integers(1, n)) for n in (40, 30, 8))
    spans = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return shape, Box(*zip(*spans))


@settings(max_examples=150, deadline=None)
@given(grids_and_boxes(), st.sampled_from(DTYPES), st.sampled_from([".nrrd", ".nii.gz"]), st.integers(0, 9))
def test_the_gzip_stream_is_one_member_with_exactly_the_voxels(tmp_path_factory, grid_and_box, dtype, extension, seed):
    shape, box = grid_and_box
    labels, volume = labels_and_volume(np.eye(4), EMPTY if box.empty else box, shape, seed)
    path = tmp_path_factory.getbasetemp() / f"stream{extension}"
    write_reply(path, labels, volume, ReplyOptions(extension, dtype, compress=True))
    packed = path.read_bytes()
    if extension == ".nrrd":
        voxels = one_member(packed[packed.index(b"\n\n") + 2 :])
    else:
        voxels = one_member(packed)[352:]
    assert voxels == whole(labels, shape).astype(np.dtype(dtype).newbyteorder("<")).tobytes(order="F")


PIECES = st.one_of(st.binary(max_size=300), st.integers(0, 4000), st.sampled_from([2**20 - 1, 2**20, 3 * 2**20 + 5]))


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from([1, 2]))
def test_data_and_zeros_in_any_order(tmp_path_factory, pieces, itemsize):
    path = tmp_path_factory.getbasetemp() / "pieces.gz"
    with open(path, "wb") as file:
        stream = SparseGzip(file, itemsize)
        for piece in pieces:
            stream.zeros(piece) if isinstance(piece, int) else stream.write(piece)
        stream.close()
    expected = b"".join(bytes(piece) for piece in pieces)  # bytes of a number: as many zeros
    assert one_member(path.read_bytes()) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200_000))
def test_crc_over_zeros(crc, count):
    assert crc32_after_zeros(crc, count) == zlib.crc32(bytes(count), crc)


def test_crc_over_more_zeros_than_memory_holds():
    """Two halves are the whole, and the register's matrix has the order 2**32 - 1 that a primitive polynomial gives."""
    assert crc32_after_zeros(crc32_after_zeros(7, 2**40 + 3), 2**40 - 1) == crc32_after_zeros(7, 2**41 + 2)
    assert crc32_after_zeros(1234, 2**32 - 1) == 1234


def test_a_large_scan_costs_no_memory_of_its_size(tmp_path):
    """512 x 512 x 600 voxels, 157 MB: less than a hundredth is ever held, and less is sent."""
    shape = (512, 512, 600)
    volume = Volume(np.broadcast_to(np.zeros((), np.int16), shape), np.eye(4))
    labels, _ = labels_and_volume(np.eye(4), Box((100, 200, 300), (140, 240, 310)))
    tracemalloc.start()
    write_reply(tmp_path / "reply.nii.gz", labels, volume, ReplyOptions(".nii.gz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 2**20
    assert (tmp_path / "reply.nii.gz").stat().st_size < 300_000
