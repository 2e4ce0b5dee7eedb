"""The real server with tokens: who is let in, to what, and how MONAI Label's client, Slicer and browsers sign in."""

import gzip
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from tests.app.conftest import free_port, start, stop, wait_until_up

from ctsam3d.labelapp.guard import OPEN

CHIEF, READER = "the-chiefs~token", "reader-token-0123456789"


@dataclass(frozen=True)
class Guarded:
    """A server that was told a file of tokens and no host."""

    url: str
    work: Path
    process: subprocess.Popen

    def get(self, address: str, token: str = READER, **more) -> requests.Response:
        return self.request("GET", address, token, **more)

    def request(self, method: str, address: str, token: str = "", headers=None, **more) -> requests.Response:
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        more = {"allow_redirects": False, "timeout": 60, **more}
        return requests.request(method, f"{self.url}{address}", headers=headers, **more)

    def operations(self) -> list[tuple[str, str]]:
        """Method and address of everything that the server says it has, and of what it does not say."""
        schema = self.get("/openapi.json").json()
        said = [(method.upper(), path) for path, found in schema["paths"].items() for method in found]
        return [*((method, re.sub(r"{[^}]*}", "x", path)) for method, path in said), *UNSAID]


UNSAID = [
    *(("GET", path) for path in ("/", "/docs", "/openapi.json", "/ohif/", "/ohif/app-config.js", "/viewer/")),
    *(("GET", path) for path in ("/static/favicon.ico", "/favicon.ico", "/proxy/dicom/qido/studies", "/nothing")),
    ("POST", "/proxy/dicom/wado/studies"),
    ("POST", "/infer/wsi/x"),
    ("PUT", "/datastore/"),
    ("DELETE", "/datastore/"),
    ("POST", "/train/"),
    ("OPTIONS", "/info/"),
    ("HEAD", "/info/"),
]
FOR_ADMINS = [
    ("DELETE", "/datastore/image?id=other"),
    ("DELETE", "/datastore/?id=other"),
    ("DELETE", "/datastore/label?id=other&tag=final"),
    ("POST", "/train/ctsam3d"),
    ("POST", "/train/"),
    ("DELETE", "/train/"),
    ("GET", "/model/ctsam3d"),
    ("GET", "/model/info/ctsam3d"),
    ("GET", "/logs/"),
    ("GET", "/logs/gpu"),
    ("POST", "/batch/infer/ctsam3d"),
    ("DELETE", "/batch/infer"),
    ("POST", "/scoring/"),
    ("POST", "/scoring/x"),
    ("DELETE", "/scoring/"),
]


# A small scan in HU: next sample passes over what is no CT.
SCAN = gzip.compress(nib.Nifti1Image(np.arange(-300, 212, dtype=np.int16).reshape(8, 8, 8), np.eye(4)).to_bytes())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    work = tmp_path_factory.mktemp("guarded")
    studies = work / "studies"
    studies.mkdir()
    (studies / "other.nii.gz").write_bytes(SCAN)
    tokens = work / "tokens"
    tokens.write_text(f"admin chief {CHIEF}\nannotator reader {READER}\n")
    tokens.chmod(0o600)
    port = free_port()
    process = start(studies, work, port, "--conf", "token_file", str(tokens), "--access_log", host="")
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, work / "server.log")
        yield Guarded(url, work, process)
    finally:
        stop(process)


@pytest.mark.slow
def test_without_a_host_it_listens_on_this_machine_alone(guarded):
    listening = [c.laddr.ip for c in psutil.Process(guarded.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


@pytest.mark.slow
def test_nothing_is_open_but_signing_in(guarded):
    operations = guarded.operations()
    assert len(operations) > 50
    for method, address in operations:
        for token in ("", "wrong-token"):
            reply = guarded.request(method, address, token)
            if address in OPEN:
                assert reply.status_code in (200, 303, 401, 405, 422), (method, address)
                continue
            assert reply.status_code == 401, (method, address)
            if method != "HEAD":
                assert "token" in reply.json()["detail"]
                assert "other" not in reply.text and "ctsam3d" not in reply.text.lower()


@pytest.mark.slow
def test_websockets_are_closed(guarded):
    where = urlsplit(guarded.url)
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw==",
        "host": where.netloc,
    }
    for address in ("/", "/ohif/ws", "/info/"):
        assert guarded.request("GET", address, headers=headers).status_code in (401, 403)


@pytest.mark.slow
def test_an_annotator_labels_and_an_admin_does_the_rest(guarded):
    for method, address in FOR_ADMINS:
        reply = guarded.request(method, address, READER)
        assert (reply.status_code, "admin" in reply.json()["detail"]) == (403, True), (method, address)
    for address in ("/info/", "/datastore/", "/train/", "/metrics", "/healthz", "/ohif/", "/docs", "/openapi.json"):
        assert guarded.get(address).status_code in (200, 404 if address == "/train/" else 200), address
    assert guarded.get("/model/ctsam3d", CHIEF).ok and guarded.get("/logs/", CHIEF).ok
    assert guarded.request("DELETE", "/train/", CHIEF).ok
    assert guarded.request("POST", "/train/ctsam3d", CHIEF, json={"max_epochs": 0}).status_code == 400


@pytest.mark.slow
def test_monai_labels_client_and_so_slicer_works_with_the_token_in_the_address(guarded, tmp_path):
    client = MONAILabelClient(f"{guarded.url}/token/{READER}", tmpdir=str(tmp_path), client_id="me")
    uses(lambda: client, tmp_path, "by address")
    assert client.auth_enabled() is False  # so that Slicer asks for no password
    download = requests.get(f"{client.get_server_url()}/datastore/image?image=other", timeout=60)  # as Slicer does it
    assert download.content == SCAN


@pytest.mark.slow
def test_monai_labels_client_signs_in_with_the_token_as_password(guarded, tmp_path):
    client = MONAILabelClient(guarded.url, tmpdir=str(tmp_path), client_id="me")
    assert client.auth_enabled() is True
    with pytest.raises(MONAILabelClientException):
        client.info()
    with pytest.raises(MONAILabelClientException):
        client.auth_token("reader", "wrong-token")
    token = client.auth_token("reader", READER)

    def fresh():  # as Slicer does for every call: a client keeps its requests' headers among those it signs in with
        made = MONAILabelClient(guarded.url, tmpdir=str(tmp_path), client_id="me")
        made.update_auth(token)
        assert made.auth_valid_token()
        return made

    uses(fresh, tmp_path, "by password")


def uses(client: Callable[[], MONAILabelClient], folder: Path, name: str) -> None:
    """Everything that Slicer's plugin calls."""
    scan = folder / "scan.nii.gz"
    scan.write_bytes(SCAN)
    assert client().info()["name"] == "CT-SAM3D"
    assert client().upload_image(str(scan), name)["image"] == name
    assert client().next_sample("first", {})["id"]
    session = client().create_session(str(scan))["session_id"]
    assert client().get_session(session)["image"] == "received.nii.gz"
    for more in ({"session_id": session}, {"file": str(scan)}, {}):
        file, reply = client().infer("ctsam3d", name, {"spleen": [[4, 4, 4]], "expand": False}, **more)
        assert Path(file).stat().st_size and reply["label_names"]["spleen"] == 1
    client().remove_session(session)
    said = {"label_info": [{"name": "spleen", "idx": 1}]}
    assert client().save_label(name, file, params=said)["label"] == name
    assert Path(client().download_label(name, "final")).stat().st_size
    said = client().datastore()["objects"][name]["labels"]["final"]["info"]
    assert (said["user"], said["client_id"], said["version"]) == ("reader", "me", 1)
    with pytest.raises(MONAILabelClientException):
        client().train_start("ctsam3d", {})


@pytest.mark.slow
def test_a_submitted_case_is_opened_again(guarded, tmp_path):
    """Submitted, it is shown to nobody as the next one; but it can be clicked on, corrected, and submitted again."""
    case, client = "submitted", MONAILabelClient(f"{guarded.url}/token/{READER}", tmpdir=str(tmp_path), client_id="me")
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(SCAN)
    client.upload_image(str(scan), case)
    files = []
    for voxel, name in (((2, 2, 2), "spleen"), ((5, 5, 5), "liver")):
        file, _ = client.infer("ctsam3d", case, {name: [voxel], "expand": False})
        client.save_label(case, file, params={"label_info": [{"name": name, "idx": 1}]})
        files.append(Path(file).read_bytes())
        assert Path(client.download_label(case, "final")).read_bytes() == files[-1]
        assert client.next_sample("first", {})["id"] != case
    query = {"label": case, "tag": "final"}
    history = guarded.get("/datastore/label/history", params=query).json()
    assert [(v["version"], v["label_info"][0]["name"]) for v in history] == [(1, "spleen"), (2, "liver")]
    for version, content in enumerate(files, start=1):
        assert guarded.get("/datastore/label", params={**query, "version": version}).content == content
    assert guarded.get("/datastore/label", params={**query, "version": 3}).status_code == 404
    client.upload_image(str(scan), case)
    assert guarded.get("/datastore/label/info", params=query).json()["version"] == 2
    assert guarded.request("HEAD", "/datastore/label", READER, params={"image": case, "tag": "final"}).ok
    assert guarded.request("DELETE", "/datastore/label", CHIEF, params={"id": case, "tag": "final"}).ok
    assert guarded.get("/datastore/label", params=query).status_code == 404
    assert len(guarded.get("/datastore/label/history", params=query).json()) == 2


@pytest.mark.slow
def test_a_browser_signs_in_on_a_page(guarded):
    html = {"accept": "text/html,*/*"}
    sent = guarded.request("GET", "/ohif/?StudyInstanceUIDs=1.2", headers=html)
    assert (sent.status_code, sent.headers["location"]) == (303, "/signin?next=/ohif/%3FStudyInstanceUIDs%3D1.2")
    browser = requests.Session()
    page = browser.get(f"{guarded.url}{sent.headers['location']}", timeout=60)
    assert page.ok and 'value="/ohif/?StudyInstanceUIDs=1.2"' in page.text and "http" not in page.text
    refused = browser.post(f"{guarded.url}/signin", data={"token": "wrong-token", "next": "/"}, timeout=60)
    assert (refused.status_code, "not known" in refused.text, len(browser.cookies)) == (401, True, 0)
    form = {"token": f" {READER} ", "next": "/ohif/"}
    done = browser.post(f"{guarded.url}/signin", data=form, allow_redirects=False, timeout=60)
    assert (done.status_code, done.headers["location"]) == (303, "/ohif/")
    cookie = done.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and READER not in cookie and "path=/" in cookie
    assert browser.get(f"{guarded.url}/info/", timeout=60).ok
    assert browser.get(f"{guarded.url}/ohif/app-config.js", timeout=60).ok
    assert browser.delete(f"{guarded.url}/datastore/image?id=other", timeout=60).status_code == 403
    browser.post(f"{guarded.url}/signout", timeout=60)
    assert browser.get(f"{guarded.url}/info/", timeout=60).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    "next", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "\n", '"><x>']
)
def test_signing_in_leads_nowhere_else(guarded, next):
    page = guarded.request("GET", "/signin", params={"next": next})
    assert 'value="/"' in page.text
    done = guarded.request("POST", "/signin", data={"token": READER, "next": next})
    assert done.headers["location"] == "/"


@pytest.mark.slow
def test_a_link_with_a_token_signs_a_browser_in_and_forgets_it(guarded):
    for address in (f"/docs?token={READER}&x=1", f"/token/{READER}/docs?x=1"):
        reply = guarded.request("GET", address, headers={"accept": "text/html"})
        assert (reply.status_code, reply.headers["location"]) == (303, "/docs?x=1")
        assert "httponly" in reply.headers["set-cookie"].lower()
    assert (
        guarded.request("GET", f"/token/{READER}//evil.example", headers={"accept": "text/html"})
        .headers["location"]
        .startswith("/evil.example")
    )
    assert guarded.get("/docs", "", params={"token": READER}).status_code == 200  # a script gets what it asks for


@pytest.mark.slow
def test_other_sites_pages_cannot_use_a_browsers_cookie(guarded):
    for origin in ("http://evil.example", "null", f"{guarded.url}1"):
        reply = guarded.get("/info/", headers={"origin": origin})
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers
    assert guarded.get("/info/", headers={"origin": guarded.url}).ok


@pytest.mark.slow
def test_no_token_is_written_anywhere(guarded):
    guarded.request("GET", f"/datastore/?token={READER}")
    guarded.request("GET", f"/token/{CHIEF}/info/")
    guarded.request("GET", "/info/?token=mistyped-token-1")
    time.sleep(0.2)
    for path in (guarded.work / "server.log", guarded.work / "app" / "logs" / "app.log"):
        text = path.read_text()
        assert READER not in text and CHIEF not in text and "mistyped" not in text
    assert '"GET /datastore/ HTTP/1.1" 200' in (guarded.work / "server.log").read_text()
    assert "refused_total" in guarded.get("/metrics").text


@pytest.mark.slow
@pytest.mark.parametrize("token", [CHIEF, ""], ids=["with a token", "without"])
def test_no_generated_request_fails_the_server(guarded, token):
    """Whatever schemathesis makes of the OpenAPI document; ``CTSAM3D_EXAMPLES`` says how much for each operation."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    examples = int(os.environ.get("CTSAM3D_EXAMPLES", 5))
    schema = schemathesis.openapi.from_dict(guarded.get("/openapi.json").json())
    schema.config.update(base_url=guarded.url)
    headers = {"authorization": f"Bearer {token}"} if token else {}

    def check(operation) -> set[int]:
        seen = set()

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def asks(case):
            reply = case.call(headers=headers, allow_redirects=False)
            seen.add(reply.status_code)
            assert reply.status_code < 500, (operation.label, reply.status_code, reply.text)
            if reply.status_code >= 400 and operation.method != "head" and operation.path != "/signin":
                assert json.loads(reply.text)["detail"]

        asks()
        return seen

    seen = {operation.label: check(operation) for operation in (found.ok() for found in schema.get_all_operations())}
    assert len(seen) > 35
    if not token:
        assert [label for label, statuses in seen.items() if label.split()[1] not in OPEN and statuses - {401}] == []
    assert "Traceback" not in (guarded.work / "server.log").read_text()
