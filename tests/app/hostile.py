"""Files that no server should take for a scan or a label map: a few kilobytes each, and bombs of a megabyte."""

import gzip
import io
import pickle
import zipfile

import nibabel as nib
import numpy as np
import SimpleITK as sitk

NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n{more}\n"
MHA = "ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = {data}\n"


def nifti(shape=(8, 8, 8), dtype=np.int16, affine=None, change=None, zipped=True) -> bytes:
    """A NIfTI file of zeros; `change` sees its 348 bytes of header as a structured array."""
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    header = image.header.copy()
    header.set_data_dtype(dtype)
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    values = header.structarr.copy()
    values["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    values["vox_offset"] = 352
    values["magic"] = b"n+1"
    if change:
        change(values)
    size = min(abs(int(np.prod(np.array(shape, float)))), 4096) * np.dtype(dtype).itemsize
    content = values.tobytes() + bytes(4) + bytes(size)
    return gzip.compress(content) if zipped else content


def put(name, value):
    """Sets one field of a header."""

    def change(values):
        values[name] = value

    return change


def affine(value: float) -> np.ndarray:
    found = np.eye(4)
    found[0, 0] = value
    return found


def with_nan() -> bytes:
    array = np.zeros((8, 8, 8), np.float32)
    array[1, 2, 3] = np.nan
    return gzip.compress(nib.Nifti1Image(array, np.eye(4)).to_bytes())


def written(image: sitk.Image, folder, name: str) -> bytes:
    path = folder / name
    sitk.WriteImage(image, str(path))
    return path.read_bytes()


def archive() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("../../zz-hostile.nii.gz", b"x")
    return target.getvalue()


GOOD = nifti()

NIFTI = {
    "empty": b"",
    "one byte": b"x",
    "text": b"not a scan\n" * 50,
    "html": b"<script>alert(1)</script>",
    "pickle": pickle.dumps({"x": [1]}),
    "zip that climbs": archive(),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "gzip of nothing": gzip.compress(b""),
    "gzip of text": gzip.compress(b"not a scan" * 100),
    "gzip cut short": GOOD[: len(GOOD) // 2],
    "gzip of gzip": gzip.compress(GOOD),
    "voxels cut short": gzip.compress(gzip.decompress(GOOD)[:-700]),
    "header cut short": gzip.compress(gzip.decompress(GOOD)[:200]),
    "NaN affine": nifti(affine=affine(np.nan)),
    "infinite affine": nifti(affine=affine(np.inf)),
    "affine that flattens": nifti(affine=affine(0)),
    "2D": nifti((8, 8)),
    "4D": nifti((4, 4, 4, 3)),
    "5D": nifti((4, 4, 4, 1, 3)),
    "7D": nifti((2, 2, 2, 1, 1, 1, 2)),
    "no axis": nifti((8, 8, 8), change=put("dim", [0] * 8)),
    "200 axes": nifti(change=put("dim", [200, 8, 8, 8, 1, 1, 1, 1])),
    "negative size": nifti((8, -8, 8)),
    "zero size": nifti((8, 0, 8)),
    "terabytes": nifti((32767, 32767, 32767)),
    "a gigabyte of zeros": nifti((1000, 1000, 500)),
    "colours": nifti(dtype=np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "complex": nifti(dtype=np.complex64),
    "unknown type": nifti(change=put("datatype", 9999)),
    "offset behind the end": nifti(change=put("vox_offset", 1e9)),
    "offset NaN": nifti(change=put("vox_offset", np.nan)),
    "offset negative": nifti(change=put("vox_offset", -352)),
}
OF_SCANS = {"NaN voxels": with_nan()}  # which a label map may not hold either, for another reason

OTHERS = {
    "NRRD of another file": (".nrrd", NRRD.format(sizes="8 8 8", more="data file: /etc/hostname\n").encode()),
    "NRRD of other files": (".nrrd", NRRD.format(sizes="8 8 8", more="data file: LIST\n/etc/hostname\n").encode()),
    "NRRD of terabytes": (".nrrd", NRRD.format(sizes="99999 99999 99999", more="").encode()),
    "NRRD of a negative size": (".nrrd", NRRD.format(sizes="8 -8 8", more="").encode() + bytes(1024)),
    "NRRD without an end": (".nrrd", NRRD.format(sizes="8 8 8", more="# " + "x" * 70000).encode()),
    "NRRD cut short": (".nrrd", NRRD.format(sizes="8 8 8", more="").encode() + bytes(100)),
    "NRRD with a NaN direction": (
        ".nrrd",
        NRRD.format(
            sizes="8 8 8",
            more="space: left-posterior-superior\nspace directions: (nan,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n",
        ).encode()
        + bytes(1024),
    ),
    "NRRD that is text": (".nrrd", b"NRRD0004\nhello\n\n"),
    "NIfTI called NRRD": (".nrrd", GOOD),
    "gzip called plain": (".nii", GOOD),
    "plain called gzip": (".nii.gz", nifti(zipped=False)),
    "empty NRRD": (".nrrd", b""),
    "empty plain": (".nii", b""),
}

META = {  # which are clicked on but never stored
    "MetaImage of another file": (".mha", MHA.format(sizes="8 8 8", data="/etc/hostname").encode()),
    "MetaImage of terabytes": (".mha", MHA.format(sizes="99999 99999 99999", data="LOCAL").encode()),
}


def bombs() -> dict[str, tuple[str, bytes]]:
    """Two gigabytes of zeros, packed, as the header says."""
    large = gzip.compress(nifti((1024, 1024, 1024), zipped=False)[:352]) + _TWO_GIGABYTES
    return {
        "NIfTI": (".nii.gz", large),
        "NRRD": (".nrrd", _nrrd("1024 1024 1024")),
        "gzip of gzip": (".nii.gz", gzip.compress(large)),
    }


def hidden_bomb() -> bytes:
    """A .nrrd of 512 voxels that are followed by two gigabytes."""
    return _nrrd("8 8 8")


_TWO_GIGABYTES = gzip.compress(bytes(16 * 2**20)) * 128


def _nrrd(sizes: str) -> bytes:
    return NRRD.format(sizes=sizes, more="").replace("encoding: raw", "encoding: gzip").encode() + _TWO_GIGABYTES
