"""Lists of an archive that answers with a page at a time: nothing is lost, and nobody asks for ever."""

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from monailabel.datastore.dicom import DICOMwebClientX
from tests.app.answering import answering

from ctsam3d.labelapp import archive_store
from ctsam3d.labelapp.archive_store import ArchiveStore, search_series

CT = [f"1.2.3.{number}" for number in range(23)]
SEG = [f"1.2.4.{number}" for number in range(11)]  # number n drawn on CT number n


class Qido(BaseHTTPRequestHandler):
    """Searches for series and their metadata; answers with at most `page` series, from `offset` on."""

    def do_GET(self):
        place = urlsplit(self.path)
        if place.path.endswith("/metadata"):
            series = place.path.split("/")[-2]
            referenced = {"0020000E": {"vr": "UI", "Value": [CT[SEG.index(series)]]}}
            self.answer(200, [{"00081115": {"vr": "SQ", "Value": [referenced]}}])
            return
        asked = dict(parse_qsl(place.query))
        self.server.asked.append(asked)
        offset = int(asked.get("offset", 0)) if self.server.offsets else 0
        series = {"CT": CT, "SEG": SEG}[asked["Modality"]]
        if offset >= len(series) > 0 and self.server.beyond != 200:
            self.answer(self.server.beyond, [])
            return
        page = series[offset : offset + self.server.page]
        self.answer(200, [{tag: {"vr": "UI", "Value": [uid]} for tag in ("0020000D", "0020000E")} for uid in page])

    def answer(self, status, items):
        body = json.dumps(items).encode() if status != 204 else b""
        self.send_response(status)
        self.send_header("content-type", "application/dicom+json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on the screen."""


@pytest.fixture
def qido():
    """`page`: series in an answer; `offsets`: whether it knows them; `beyond`: its status where nothing is left."""
    with answering(Qido) as server:
        server.page, server.offsets, server.beyond = 5, True, 200
        yield server


def client_of(qido):
    return DICOMwebClientX(url=f"http://127.0.0.1:{qido.server_port}/dicom-web")


def found_in(qido, modality="CT"):
    return [str(one.SeriesInstanceUID) for one in search_series(client_of(qido), {"Modality": modality})]


@pytest.mark.parametrize("page", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("beyond", [200, 204, 400])
def test_every_series_is_found_once_and_in_order(qido, page, beyond):
    qido.page, qido.beyond = page, beyond
    assert found_in(qido) == CT
    assert [int(asked.get("offset", 0)) for asked in qido.asked] == [*range(0, len(CT), page), len(CT)]


def test_an_archive_without_offsets_is_not_asked_for_ever(qido):
    qido.offsets, qido.page = False, 100
    assert found_in(qido) == CT and len(qido.asked) == 2


def test_an_archive_that_fails_has_no_list(qido, monkeypatch):
    qido.beyond = 501  # in the middle of the pages; of what it may mend by itself, the client asks several times
    with pytest.raises(requests.HTTPError):
        found_in(qido)
    monkeypatch.setattr(Qido, "do_GET", lambda self: self.answer(400, []))
    with pytest.raises(requests.HTTPError):
        found_in(qido)


def test_images_and_segmentations_of_the_store(qido, tmp_path):
    store = ArchiveStore(client_of(qido), {"Modality": "CT"}, cache_path=str(tmp_path))
    assert store.list_images() == CT
    assert store.get_labeled_images() == CT[: len(SEG)] and store.get_unlabeled_images() == CT[len(SEG) :]
    assert store.status()["total"] == len(CT) and store.status()["completed"] == len(SEG)


def test_a_list_that_takes_long_counts_for_longer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(archive_store.time, "monotonic", lambda: now[0])
    asked = []

    def ask():
        asked.append(now[0])
        now[0] += 2.0
        return len(asked)

    recent = archive_store._Recent(ask)
    assert recent.get() == 1
    now[0] = 21.9
    assert recent.get() == 1
    now[0] = 22.0
    assert recent.get() == 2 and asked == [0.0, 22.0]
