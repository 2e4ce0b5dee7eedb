"""Lists of a real archive that answers with less than it has."""

import numpy as np
import pytest
import requests
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.uid import generate_uid
from tests.data.test_dicom import slice_of, write_slices
from tests.e2e.archive import running_orthanc

from ctsam3d.labelapp.archive_store import search_series

pytestmark = pytest.mark.e2e

COMMON = {"PatientID": "7", "StudyInstanceUID": generate_uid(), "StudyID": "1", "SeriesNumber": 1}


class TwoAtATime(DICOMwebClientX):
    """Asks for two series, where the archive would give all of them at once."""

    def search_for_series(self, **asked):
        return super().search_for_series(limit=2, **asked)


@pytest.mark.parametrize(("kind", "at_once"), [(DICOMwebClientX, 5), (TwoAtATime, 2)])
def test_all_series_are_found(tmp_path, kind, at_once):
    uids = sorted(generate_uid() for _ in range(5))
    slices = [slice_of(np.zeros((4, 4)), (0.0, 0.0, 0.0), series=uid, **COMMON) for uid in uids]
    write_slices(tmp_path / "series", slices)
    with running_orthanc(tmp_path / "orthanc") as url:
        for file in (tmp_path / "series").iterdir():
            requests.post(f"{url}/instances", data=file.read_bytes(), timeout=60).raise_for_status()
        client = kind(url=f"{url}/dicom-web")
        assert len(client.search_for_series(search_filters={"Modality": "CT"})) == at_once
        assert sorted(str(one.SeriesInstanceUID) for one in search_series(client, {"Modality": "CT"})) == uids
        assert search_series(client, {"Modality": "SEG"}) == []
