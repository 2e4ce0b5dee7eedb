"""Miniatures of public data sets, each in its own file layout, for the tests of reading and evaluating them.

A structure of label value v is a block whose HU are `hu_of(v)`, in air; voxels of 1.5 mm, so that the model grid is the
scan's own.
"""

import json

import nibabel as nib
import numpy as np

SPACING_MM = 1.5
AIR_HU = -1000
BLOCK = 6  # voxels a side


def hu_of(value):
    return 20 * value


def labels_of(values, shape=(40, 32, 24)):
    """A label map with a block for each value, none of which touch; 3 x 3 x 2 places at most."""
    labels = np.zeros(shape, np.uint8)
    places = list(np.ndindex(4, 3, 2))
    for value, place in zip(values, places):
        labels[tuple(slice(2 + 9 * p, 2 + 9 * p + BLOCK) for p in place)] = value
    return labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([SPACING_MM] * 3 + [1.0])), path)


def save_pair(image, labels, values):
    array = labels_of(values)
    save(image, np.where(array > 0, hu_of(array.astype(np.int16)), AIR_HU).astype(np.int16))
    save(labels, array)


def flare22(folder):
    """Two labelled training cases, one test case, and one image without labels."""
    for name in ("FLARE22_Tr_0001", "FLARE22_Tr_0002"):
        save_pair(folder / f"images/{name}_0000.nii.gz", folder / f"labels/{name}.nii.gz", range(1, 14))
    save_pair(folder / "test/FLARETs_0001_0000.nii.gz", folder / "test/FLARETs_0001.nii.gz", range(1, 14))
    save(folder / "images/FLARE22_Tr_0003_0000.nii.gz", np.zeros((4, 4, 4), np.int16))
    (folder / "images/._FLARE22_Tr_0001_0000.nii.gz").write_bytes(b"left by an archive")


def btcv(folder):
    for number in ("0001", "0002"):
        save_pair(folder / f"img/img{number}.nii.gz", folder / f"label/label{number}.nii.gz", range(1, 14))
    save(folder / "img/img0061.nii.gz", np.zeros((4, 4, 4), np.int16))  # of its unlabelled test set


def msd(folder, kind):
    """`kind`: msd_pancreas or msd_colon."""
    organ = kind.removeprefix("msd_")
    labels = {"0": "background"} | ({"1": "pancreas", "2": "cancer"} if organ == "pancreas" else {"1": "colon cancer"})
    names = [f"{organ}_{number}.nii.gz" for number in ("001", "004", "210")]
    for name in names:
        save_pair(folder / "imagesTr" / name, folder / "labelsTr" / name, range(1, len(labels)))
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    about = {"name": organ.capitalize(), "labels": labels, "training": training, "test": ["./imagesTs/x.nii.gz"]}
    (folder / "dataset.json").write_text(json.dumps(about))


def cases(folder, names=("a", "b"), values=(1, 5)):
    """Folders as in the shared data: values 1 and 5 are a spleen and a liver."""
    known = {1: "spleen", 5: "liver", 7: "aorta"}
    for name in names:
        save_pair(folder / name / "ct.nii.gz", folder / name / "seg.nii.gz", values)
        (folder / name / "labels.json").write_text(json.dumps({str(v): known[v] for v in values}))


def totalseg(folder):
    """TotalSegmentator's download, with names of v2: one case for training, two for testing; empty masks as well."""
    values = {"spleen": 1, "atrial_appendage_left": 2, "vertebrae_L5": 3, "torso_fat": 4, "liver": 0}
    for name in ("s0000", "s0001", "s0002"):
        array = labels_of([v for v in values.values() if v])
        save(folder / name / "ct.nii.gz", np.where(array > 0, hu_of(array.astype(np.int16)), AIR_HU).astype(np.int16))
        for structure, value in values.items():
            save(folder / name / "segmentations" / f"{structure}.nii.gz", ((array == value) & (array > 0)).astype("u1"))
    rows = ["image_id;age;gender;split", "s0000;61;m;train", "s0001;57;f;test", "s0002;44;f;test"]
    (folder / "meta.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")


def datastore(folder):
    """A converted one, as MONAI Label opens it: two cases with final labels, one of them for testing; one without."""
    entry = {"image": {"info": {"split": "test"}, "ext": ".nii.gz"}, "labels": {}}
    info = {"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 5}]}
    objects = {"bare": entry}
    for name, split in (("s0001", "test"), ("s0002", "training")):
        save_pair(folder / f"{name}.nii.gz", folder / f"labels/final/{name}.nii.gz", (1, 5))
        final = {"final": {"info": info, "ext": ".nii.gz"}, "original": {"info": {}, "ext": ".nii.gz"}}
        objects[name] = {"image": {"info": {"split": split}, "ext": ".nii.gz"}, "labels": final}
    store = {"name": "x", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (folder / "datastore_v2.json").write_text(json.dumps(store))


LAYOUTS = {
    "cases": cases,
    "totalseg": totalseg,
    "datastore": datastore,
    "flare22": flare22,
    "btcv": btcv,
    "msd_pancreas": lambda folder: msd(folder, "msd_pancreas"),
    "msd_colon": lambda folder: msd(folder, "msd_colon"),
}
