"""The way to the DICOM archive: only DICOMweb, only below its address, the query passed on, no token given away."""

from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.app.answering import answering

from ctsam3d.labelapp.archive import archive_router, checked_path
from ctsam3d.labelapp.errors import install_handlers
from ctsam3d.labelapp.guard import Guard
from ctsam3d.labelapp.monitor import Monitor
from ctsam3d.labelapp.requests import RequestError


class Pacs(BaseHTTPRequestHandler):
    """Answers everything, also what is beside its DICOMweb service, and notes what it was asked."""

    def do_GET(self):
        length = int(self.headers.get("content-length", 0))
        self.server.asked.append((self.command, self.path, dict(self.headers.items()), self.rfile.read(length)))
        status = int(self.headers.get("accept", "").partition("status=")[2] or 200)
        self.send_response(status)
        self.send_header("content-type", "application/dicom+json")
        self.send_header("set-cookie", "pacs=secret")
        if status == 302:
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(b'[{"x": 1}]')

    do_POST = do_GET

    def log_message(self, *_):
        """Nothing on the screen."""


@pytest.fixture
def pacs():
    with answering(Pacs) as server:
        yield server


def client_of(studies: str) -> TestClient:
    application = FastAPI()
    install_handlers(application)
    application.include_router(archive_router(SimpleNamespace(studies=studies)))
    guard = Guard(application, None, Monitor(), 10**6, hosts=["testserver"])
    return TestClient(guard, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def client(pacs):
    return client_of(f"http://127.0.0.1:{pacs.server_port}/dicom-web")


def test_path_and_query_are_passed_on(client, pacs):
    for address in (
        "/proxy/dicom/qido/studies?PatientID=a%26b&includefield=00081030&limit=101",
        "/proxy/dicom/wado/studies/1.2.3/series/4.5/instances/6/frames/1,2",
        "/proxy/dicom/qido/studies/1.2.3/series/4.5/metadata",
        "/proxy/dicom/studies/1.2/series/3/instances/4/bulk/7fe00010",
    ):
        reply = client.get(address)
        assert (reply.status_code, reply.json()) == (200, [{"x": 1}])
        assert reply.headers["content-type"] == "application/dicom+json"
        place = address.removeprefix("/proxy/dicom").removeprefix("/qido").removeprefix("/wado")
        assert pacs.asked[-1][:2] == ("GET", f"/dicom-web{place}")


def test_neither_tokens_nor_cookies_leave_the_server_and_none_come_back(client, pacs):
    given = {"authorization": "Bearer secret", "cookie": "ctsam3d=secret", "accept": "application/dicom+json"}
    reply = client.get("/proxy/dicom/qido/studies", headers=given)
    sent = {name.lower(): value for name, value in pacs.asked[-1][2].items()}
    assert "authorization" not in sent and "cookie" not in sent and sent["accept"] == given["accept"]
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        "..%2fsystem",
        "%2e%2e/system",
        "studies/..%2f..%2fsystem",
        "studies/%2e%2e/%2e%2e/system",
        "studies/%2e%2e",
        "studies//system",
        "studies/1%2f..%2f..%2fpatients",
        "studies/1%3fx=1",
        "studies/1%23x",
        "studies/..%5csystem",
        "studies/%00",
        "studies/a%0d%0aX-Injected: 1",
        "studies/%252e%252e/x",
        "system",
        "patients",
        "tools/execute-script",
        "http:%2f%2f127.0.0.1:1%2f",
        "%2fstudies",
        "@127.0.0.1:1/studies",
        "",
    ],
)
@pytest.mark.parametrize("operation", ["", "wado/", "qido/", "stow/"])
def test_nothing_else_of_the_archive_is_reached(client, pacs, operation, path):
    for method in ("GET", "POST"):
        reply = client.request(method, f"/proxy/dicom/{operation}{path}")
        assert 400 <= reply.status_code < 500 and reply.json()["detail"]
    assert pacs.asked == []


def test_a_path_is_checked_as_it_will_be_sent():
    assert checked_path("studies/1.2/series/3") == "studies/1.2/series/3"
    for path in ("../studies", "studies/../x", "studies/a..b", "studies/.x", "studies/x y", "studies/é", "x"):
        with pytest.raises(RequestError):
            checked_path(path)


def test_objects_are_stored_at_studies_alone(client, pacs):
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    for place in ("studies", "studies/1.2.3"):
        reply = client.post(f"/proxy/dicom/wado/{place}", content=b"--x data", headers={"content-type": kind})
        assert reply.status_code == 200
        method, path, headers, body = pacs.asked[-1]
        assert (method, path, body) == ("POST", f"/dicom-web/{place}", b"--x data")
        assert {name.lower(): value for name, value in headers.items()}["content-type"] == kind
    asked = len(pacs.asked)
    assert client.post("/proxy/dicom/wado/studies/1.2/series/3", content=b"x").status_code == 400
    assert client.post("/proxy/dicom/wado/instances", content=b"x").status_code == 400
    assert client.delete("/proxy/dicom/wado/studies/1").status_code == 405
    assert client.put("/proxy/dicom/wado/studies/1").status_code == 405
    assert len(pacs.asked) == asked


@pytest.mark.parametrize(("theirs", "ours"), [(404, 404), (400, 400), (401, 502), (403, 502), (500, 502), (503, 502)])
def test_the_archives_own_faults_are_said_to_be_its_own(client, theirs, ours):
    reply = client.get("/proxy/dicom/qido/studies", headers={"accept": f"x; status={theirs}"})
    assert reply.status_code == ours
    if ours == 502:
        assert f"status {theirs}" in reply.json()["detail"]


def test_a_redirect_is_not_followed(client, pacs):
    reply = client.get("/proxy/dicom/qido/studies", headers={"accept": "x; status=302"})
    assert reply.status_code == 302 and "location" not in reply.headers and len(pacs.asked) == 1


def test_an_archive_that_does_not_answer_and_none_at_all():
    reply = client_of("http://127.0.0.1:9/dicom-web").get("/proxy/dicom/qido/studies")
    assert (reply.status_code, "does not answer" in reply.json()["detail"]) == (502, True)
    reply = client_of("/some/folder").get("/proxy/dicom/qido/studies")
    assert (reply.status_code, "images are files" in reply.json()["detail"]) == (404, True)
