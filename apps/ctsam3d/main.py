"""CT-SAM3D in MONAI Label: ``monailabel start_server --app apps/ctsam3d --studies DIR``.

Settings, each as ``--conf NAME VALUE``: weights PATH, device cpu|cuda, precision auto|float32, labels a,b,c,
expand_seconds 1.0, token_file PATH, max_upload_mb 2000, max_scan_mb 2000, lease_minutes 240.
"""

from pathlib import Path

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp

from ctsam3d.labelapp.archive_store import study_store
from ctsam3d.labelapp.conf import read_conf
from ctsam3d.labelapp.desk import active_folder, make_desk
from ctsam3d.labelapp.effort import EffortLog
from ctsam3d.labelapp.infer import ClickEngine, ClickInferTask
from ctsam3d.labelapp.scoring import LabelScoring
from ctsam3d.labelapp.server import install_routes
from ctsam3d.labelapp.strategy import strategies
from ctsam3d.labelapp.train import ClickTrainTask
from ctsam3d.labelapp.upload_sessions import UploadSessions
from ctsam3d.labelapp.versions import Versions


class CTSAM3DApp(MONAILabelApp):
    """Click segmentation of CT, which learns from what was labelled.

    Cheap to make, as every training makes it anew in its own process: weights load when the server is up, or at the
    first click.
    """

    def __init__(self, app_dir, studies, conf):
        self._settings = read_conf(conf)
        self._versions = Versions(Path(app_dir) / "model" / "ctsam3d", self._settings.weights)
        self._active = active_folder(app_dir, studies)
        effort = EffortLog(self._active / "effort.jsonl")
        self._engine = ClickEngine(
            self._versions,
            self._settings.device,
            self._settings.expand_seconds,
            max_scan_bytes=self._settings.max_scan_bytes,
            observe=effort.clicked,
            precision=self._settings.precision,
        )
        self._desk = make_desk(self._active, self._settings, self._engine, effort)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="CT-SAM3D",
            description="Click on a structure in a CT and get its mask",
            labels=list(self._settings.labels),
        )
        self._auto_update_scoring = False  # a process of its own, after every next sample
        install_routes(self, self._settings, self._engine, self._versions, self._desk)

    def init_datastore(self):
        return study_store(self.studies, super().init_datastore)

    def init_infers(self):
        return {
            "ctsam3d": ClickInferTask(self._engine, self._settings.labels, "Clicks on named structures"),
            "ctsam3d_points": ClickInferTask(self._engine, (), "Positive and negative points on any structure"),
        }

    def init_trainers(self):
        return {"ctsam3d": ClickTrainTask(self._versions, self._settings.labels, self._settings.device)}

    def init_strategies(self):
        return strategies(self._desk)

    def init_scoring_methods(self):
        return {"ctsam3d": LabelScoring(self._active, self._settings.labels)}

    def _load_sessions(self, load=False):
        return UploadSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def on_init_complete(self):
        super().on_init_complete()
        self._engine.preload()
