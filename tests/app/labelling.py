"""A small team for the tests of training: scans of bright boxes, and their labels in a datastore."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore

from ctsam3d.data.io import write_mask, write_volume
from ctsam3d.labelapp.retrain import REFERENCE, REPLAY
from ctsam3d.volume import Volume

SHAPE = (44, 40, 36)
NAMES = ("spleen", "liver")
INFO = [{"name": "box", "idx": 1}, {"name": "bar", "idx": 2}]


def scan(seed: int) -> tuple[Volume, np.ndarray]:
    """Two bright boxes in noise, 1.5 mm voxels, and their label map with the values 1 and 2."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for value, shape in ((1, (14, 14, 14)), (2, (8, 20, 8))):
        i, j, k = (
            rng.integers(2 + 20 * (value - 1) * (axis == 0), 6 + 20 * (value - 1) * (axis == 0)) for axis in range(3)
        )
        labels[i : i + shape[0], j : j + shape[1], k : k + shape[2]] = value
    hu = np.choose(labels, (-100, 150, 300)) + rng.normal(0, 20, SHAPE)
    return Volume(np.rint(hu).astype(np.int16), np.diag([1.5, 1.5, 1.5, 1.0])), labels


def write_case(folder: Path, seed: int, names: dict[int, str]) -> None:
    """A case folder as the phantoms have it."""
    volume, labels = scan(seed)
    write_volume(folder / "ct.nii.gz", volume)
    write_mask(folder / "seg.nii.gz", labels, volume)
    (folder / "labels.json").write_text(json.dumps(names))


def patients(validation: bool, count: int) -> list[str]:
    """Patients that the split's hash sends to validation, or to training."""
    found = []
    for patient in map(str, itertools.count()):
        held_out = int(hashlib.sha256(f"patient {patient}".encode()).hexdigest()[:16], 16) % 5 == 0
        found += [patient] if held_out == validation else []
        if len(found) == count:
            return found


class Team:
    """A datastore's folder; `label` is what a client's Submit does."""

    def __init__(self, folder: Path):
        self.studies, self.work = folder / "studies", folder / "work"
        self.work.mkdir(parents=True)
        self.datastore = LocalDatastore(str(self.studies))

    def label(self, name: str, seed: int, patient: str = "", values=(1, 2), info=INFO, labels=None) -> None:
        """A scan, and the boxes of these values saved as final."""
        volume, truth = scan(seed)
        image, label = self.work / f"{name}.nii.gz", self.work / f"{name}-label.nii.gz"
        write_volume(image, volume)
        write_mask(label, np.where(np.isin(truth, values), truth, 0) if labels is None else labels, volume)
        self.datastore.add_image(name, str(image), {"patient": patient} if patient else {})
        self.datastore.save_label(name, str(label), "final", {"label_info": list(info)})

    def fresh(self) -> LocalDatastore:
        """As the process that trains sees it."""
        return LocalDatastore(str(self.studies))


def write_team(work: Path) -> Path:
    """The folder of two scans; beside it that of an app which has small phantoms to train with, one of each kind."""
    studies, app = work / "studies", work / "app"
    studies.mkdir()
    for number, spec in enumerate((REPLAY[0], REFERENCE[0])):
        names = {1: spec.structures[0]} if spec.structures else {1: "spleen", 2: "liver"}
        write_case(app / "model" / "ctsam3d" / "phantoms" / spec.name, 100 + number, names)
    for number in range(2):
        write_volume(studies / f"study{number}.nii.gz", scan(number)[0])
    return studies
