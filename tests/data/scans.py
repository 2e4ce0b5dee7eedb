"""Small scans of noise, and case folders of them, for the tests of reading and writing."""

import json

import nibabel as nib
import numpy as np
from tests.geometry import ORIENTATIONS, affine_of

from ctsam3d.data.io import write_volume
from ctsam3d.volume import Volume

OBLIQUE = (0.3, -0.2, 0.4)
SAMPLES = ORIENTATIONS[::7]


def noise(shape=(5, 4, 3), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)


def volume_of(orientation=ORIENTATIONS[0], spacing=(0.7, 0.8, 3.0), rotation=(0, 0, 0), array=None) -> Volume:
    affine = affine_of(orientation, spacing, rotation, (-120.5, 33.25, 900.0))
    return Volume(noise() if array is None else array, affine)


def save_nifti(path, array, affine=None) -> None:
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1.0]) if affine is None else affine), path)


def write_case(folder, labels=None, names=None, masks=None) -> Volume:
    folder.mkdir()
    volume = volume_of()
    write_volume(folder / "ct.nii.gz", volume)
    if labels is not None:
        save_nifti(folder / "seg.nii.gz", labels, volume.affine_ras_mm)
    if names is not None:
        (folder / "labels.json").write_text(names if isinstance(names, str) else json.dumps(names))
    for name, mask in (masks or {}).items():
        (folder / "segmentations").mkdir(exist_ok=True)
        save_nifti(folder / "segmentations" / f"{name}.nii.gz", mask, volume.affine_ras_mm)
    return volume
