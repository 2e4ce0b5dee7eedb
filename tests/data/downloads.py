"""Miniatures of TotalSegmentator's data set in its own file layout."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (14, 12, 10)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 1.5, 400], [0, 0, 0, 1.0]])

# Structures of a miniature as boxes, first and last index along i, j and k: none of them overlap.
BOXES = {
    "spleen": ((1, 3), (1, 3), (1, 4)),
    "liver": ((5, 9), (1, 4), (1, 5)),
    "rib_left_7": ((1, 2), (6, 9), (2, 3)),
    "urinary_bladder": ((6, 8), (6, 8), (6, 8)),
}
VOXELS = {"spleen": 36, "liver": 100, "rib_left_7": 16, "urinary_bladder": 27}
VALUES = {"spleen": 1, "liver": 5, "rib_left_7": 64, "urinary_bladder": 104}


def box(*spans: tuple[int, int]) -> np.ndarray:
    """A uint8 mask, 1 from the first to the last index along each axis."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(first, last + 1) for first, last in spans)] = 1
    return mask


def ct(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_masks_case(folder: Path, seed: int = 0, masks=None, empty=("brain", "face"), affine=AFFINE) -> Path:
    """A case with a file a structure, as v1 and v2 are downloaded; all classes have a file, many of them empty."""
    save(folder / "ct.nii.gz", ct(seed), affine)
    for name, mask in (masks or {name: box(*spans) for name, spans in BOXES.items()}).items():
        save(folder / "segmentations" / f"{name}.nii.gz", mask, affine)
    for name in empty:
        save(folder / "segmentations" / f"{name}.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    return folder


def write_map_case(folder: Path, labels: np.ndarray, names: dict[int, str], in_header=False, affine=AFFINE) -> Path:
    """A case with one label map; its names in labels.json, or in the header as TotalSegmentator's --ml writes them."""
    save(folder / "ct.nii.gz", ct(), affine)
    image = nib.Nifti1Image(labels, affine)
    if in_header:
        rows = "".join(f'<Label Key="{v}" Red="1" Alpha="1"><![CDATA[{name}]]></Label>\n' for v, name in names.items())
        table = f"<VolumeInformation><LabelTable>{rows}</LabelTable></VolumeInformation>"
        xml = f'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>{table}</CaretExtension>\n   '
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml.encode()))
    else:
        (folder / "labels.json").write_text(json.dumps(names))
    nib.save(image, folder / "seg.nii.gz")
    return folder


def write_meta(folder: Path, splits: dict[str, str]) -> None:
    """meta.csv as v1 has it."""
    header = "image_id;age;gender;institute;study_type;split;scanner"
    rows = [f"{name};66;m;A;ct abdomen;{split};siemens" for name, split in splits.items()]
    (folder / "meta.csv").write_text("\n".join([header, *rows]) + "\n")


def write_v1(folder: Path) -> Path:
    """Four cases of v1: three to learn from and one to test on."""
    splits = {"s0000": "train", "s0001": "val", "s0002": "test", "s0003": "train"}
    for seed, name in enumerate(splits):
        write_masks_case(folder / name, seed)
    write_meta(folder, {**splits, "s9999": "train"})  # a row more than was unpacked
    return folder


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def expected_map() -> np.ndarray:
    """Of a case with `BOXES`."""
    labels = np.zeros(SHAPE, np.uint8)
    for name, spans in BOXES.items():
        labels += VALUES[name] * box(*spans)
    return labels
