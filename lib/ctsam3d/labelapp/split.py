"""Which patients are for validation: decided once by a hash, recorded, and never undone.

What is recorded are hashes, not names: of the identity of each patient, and of the voxels of each image. So an image
stays where it was when the identity that the datastore gives it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ctsam3d.data.files import atomic_path

TRAINING, VALIDATION = "training", "validation"
EXCLUDED = "excluded"  # was trained on before its patient came into validation: of no use for either
ONE_IN = 5

_PARTS = {TRAINING, VALIDATION}


class Split:
    """The record in a JSON file; not for use by two processes at once.

    Raises:
        ValueError: the file is there, but is no such record. A new split in its place would mix the two parts.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.patients: dict[str, str] = {}
        self.images: dict[str, str] = {}
        if self.path.exists():
            self._read()

    def assign(self, studies: Sequence[tuple[str, str]]) -> list[str]:
        """The part of each study, recorded in the file before it is returned.

        Args:
            studies: (identity of the patient, hash of the image) each; an empty identity stands for the image's own.
        """
        keys = [(_hash(f"patient {identity}" if identity else f"image {image}"), image) for identity, image in studies]
        known = {patient for patient, image in keys if patient in self.patients or image in self.images}
        for patient in {patient for patient, _ in keys} - known:
            if int(patient[:16], 16) % ONE_IN == 0:
                self.patients[patient] = VALIDATION
        while self._spread(keys):
            pass
        for patient, image in keys:
            self.images.setdefault(image, self.patients.setdefault(patient, TRAINING))
        self._write()
        held_out = {image for patient, image in keys if self.patients[patient] == VALIDATION}
        return [self._part(image) if image in held_out else TRAINING for _, image in keys]

    def _spread(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Takes validation from a patient to new images, and from an image to its patient; whether anything changed."""
        before = dict(self.patients), dict(self.images)
        for patient, image in keys:
            if self.images.get(image) == VALIDATION:
                self.patients[patient] = VALIDATION
            if self.patients.get(patient) == VALIDATION:
                self.images.setdefault(image, VALIDATION)
        return before != (self.patients, self.images)

    def _part(self, image: str) -> str:
        """Of an image that belongs to a patient in validation."""
        return EXCLUDED if self.images[image] == TRAINING else VALIDATION

    def _read(self) -> None:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            self.patients, self.images = dict(record["patients"]), dict(record["images"])
            if not set(self.patients.values()) | set(self.images.values()) <= _PARTS:
                raise ValueError(f"its parts must be {' and '.join(sorted(_PARTS))}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"split {self.path} must be the record of the validation patients: {error!r}") from error

    def _write(self) -> None:
        record = {"patients": dict(sorted(self.patients.items())), "images": dict(sorted(self.images.items()))}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
