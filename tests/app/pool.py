"""A pool of small scans with a desk over it, for the tests of strategies."""

from pathlib import Path

import numpy as np
from tests.app.labelling import INFO, scan

from ctsam3d.data.io import write_mask, write_volume
from ctsam3d.evaluation.scan_scores import ScanScores
from ctsam3d.labelapp.desk import Desk
from ctsam3d.labelapp.effort import EffortLog
from ctsam3d.labelapp.infer import ClickEngine
from ctsam3d.labelapp.leases import Leases
from ctsam3d.labelapp.store import StudyStore
from ctsam3d.labelapp.strategy import strategies
from ctsam3d.labelapp.survey import Survey
from ctsam3d.labelapp.versions import Versions

AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class ScanPool:
    """Scans of bright boxes in a datastore, and a desk whose model is not asked: scores are put in by hand."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.clock = folder, Clock()
        self.studies = folder / "studies"
        self.studies.mkdir(exist_ok=True)  # it may hold studies of another making
        self.images = [f"s{n}" for n in range(count)]
        for number, name in enumerate(self.images):
            write_volume(self.studies / f"{name}.nii.gz", scan(number)[0])
        self.store = StudyStore(str(self.studies))
        self.restart()

    def restart(self) -> None:
        """A new server on the same folders."""
        self.engine = ClickEngine(Versions(self.folder / "model"), "cpu", max_scan_bytes=200_000)
        self.survey = Survey(self.folder / "active", self.engine, max_scan_bytes=200_000)
        self.survey.start = lambda datastore: None
        leases = Leases(self.folder / "active", 60.0, self.clock)
        self.desk = Desk(leases, self.survey, EffortLog(self.folder / "active" / "effort.jsonl", self.clock))
        self.strategies = strategies(self.desk)

    def look(self) -> None:
        """What the background does: looks at all that is new, until that is done."""
        Survey.start(self.survey, self.store)
        self.survey.wait()

    def ask(self, strategy: str, client: str = "one", **more) -> dict:
        return self.strategies[strategy]({"strategy": strategy, "client": client, **more}, self.store)

    def ids(self, strategy: str, client: str = "one", **more) -> list[str]:
        return [sample["id"] for sample in self.ask(strategy, client, **more)["samples"]]

    def score(
        self, image: str, embedding=(0.0, 0.0), disagreement=0.0, quality=0.5, version="v1", name="any 1"
    ) -> None:
        """As the survey would have found it."""
        known = self.survey.examine(image, str(self.studies / f"{image}.nii.gz"))
        found = ScanScores(tuple(embedding), {name: disagreement}, {name: quality})
        self.survey._scores.setdefault(version, {})[known.content] = found

    def label(self, image: str, tag: str = "final", names=INFO) -> None:
        volume, labels = scan(int(image[1:]))
        write_mask(self.folder / "label.nii.gz", labels, volume)
        self.store.save_label(image, str(self.folder / "label.nii.gz"), tag, {"label_info": list(names)})
