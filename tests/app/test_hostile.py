"""What a hostile client sends to the real server: every answer is 4xx with a reason, and nothing is written anywhere.

Each case is one request. Names and tags come in every place where one is taken, files wherever one may be sent.
"""

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests
from tests.app import hostile

pytestmark = pytest.mark.slow

MARK = "zz-hostile"  # in every name that could be written somewhere

# ---- what is sent --------------------------------------------------------------------------------------------------

CLIMBING = [
    f"../{MARK}",
    f"../../{MARK}",
    f"..\\{MARK}",
    f"....//{MARK}",
    f"x/../../{MARK}",
    f"/tmp/{MARK}",
    f"/{MARK}",
    f"//{MARK}",
    f"~/{MARK}",
    f"C:\\{MARK}",
    f"\\\\host\\{MARK}",
    f"file:///tmp/{MARK}",
    f"http://127.0.0.1/{MARK}",
    f"%2e%2e%2f{MARK}",
    f"..%2f{MARK}",
    f"%252e%252e%252f{MARK}",
    f"..%c0%af{MARK}",
    f"..\u2215{MARK}",
    f"..\uff0f{MARK}",
    f".{MARK}",
    "..",
    ".",
    "../",
    "./",
    f"{MARK}/",
    f"{MARK}\x00",
    f"{MARK}\x00.nii.gz",
    f"{MARK}\n",
    f"{MARK}\r\nx-injected: 1",
    f"{MARK}\t",
    f"\u202e{MARK}",
    f"{MARK}\x7f",
    f"{MARK}" * 30,
]
ODD = [  # could be a file, but no new one
    f"$({MARK})",
    f"`{MARK}`",
    f"{MARK};rm -rf .",
    f"<script>{MARK}</script>",
    f"{MARK}'\"",
    f"{MARK}|cat",
    f"{MARK}*",
    f"{MARK}?",
    f"{MARK}%s%n",
    f"{{{MARK}}}",
    f" {MARK}",
    f"{MARK} ",
    f"-{MARK}",
    f"{MARK}.nii.gz",
    f"{MARK}.NRRD",
    f"{MARK}..x",
    f"{MARK}\ud83d\ude00",
]
OF_OTHERS = [".lock", "datastore_v2.json", ".history", "labels", "labels/final/organs", "organs.nii.gz", "ORGANS"]
TAGS = [*CLIMBING[:15], ".", "..", "a b", "a.b", "a\x00", "é", "x" * 65, ".history", "-x", "<b>"]
SESSIONS = [
    "..",
    "../../etc",
    "/etc/passwd",
    "x",
    "0" * 36,
    "00000000-0000-0000-0000-000000000000",
    "00000000-0000-0000-0000-00000000000G",
    "{00000000-0000-0000-0000-000000000000}",
    "00000000000000000000000000000000",
    "urn:uuid:00000000-0000-0000-0000-000000000000",
    "\x00",
    "x" * 500,
]
FILE_NAMES = [
    f"../../{MARK}.nii.gz",
    f"..\\..\\{MARK}.nii.gz",
    f"/tmp/../{MARK}.nii.gz",
    f"{MARK}.txt",
    f"{MARK}",
    f"{MARK}.nii.gz.exe",
    f"{MARK}.nii.gz/",
    f"{MARK}.bin",
    f"{MARK}.dcm",
    f"{MARK}.nhdr",
    f"{MARK}.mhd",
    f"{MARK}.svs",
    ".",
    "..",
]
PARAMS = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "a string": '"x"',
    "NaN": '{"x": NaN}',
    "infinity": '{"x": Infinity}',
    "too large a number": '{"x": 1e999}',
    "a number of 5,000 digits": '{"x": ' + "9" * 5000 + "}",
    "half a character": '{"x": "\\ud800"}',
    "half a character as a key": '{"\\udfff": 1}',
    "nested a hundred deep": '{"x":' * 100 + "1" + "}" * 100,
    "nested 100,000 deep": "[" * 100_000,
    "two megabytes": '{"x": "' + "y" * 2_000_000 + '"}',
    "invalid UTF-8": b'{"x": "\xff\xfe"'.decode("latin-1"),
}
CLICKS = {
    "a number": {"spleen": 3},
    "a path": {"spleen": "/etc/passwd"},
    "objects": {"spleen": [{"i": 1}]},
    "no numbers": {"spleen": [["1", "2", "3"]]},
    "true": {"spleen": [[True, True, True]]},
    "null": {"spleen": [None]},
    "huge": {"spleen": [[10**30, 0, 0]]},
    "negative": {"spleen": [[-1, -1, -1]]},
    "lists in lists": {"spleen": [[[1, 2, 3]]]},
    "100,000 clicks": {"spleen": [[1, 1, 1]] * 100_000},
    "nobody's label": {MARK: [[1, 1, 1]]},
    "an extension that climbs": {"spleen": [[1, 1, 1]], "result_extension": f"/../../{MARK}.nrrd"},
    "an extension that is a command": {"spleen": [[1, 1, 1]], "result_extension": ".nrrd; touch x"},
    "a type that is code": {"spleen": [[1, 1, 1]], "result_dtype": "__import__('os')"},
    "to be saved": {"spleen": [[1, 1, 1]], "save_label": True, "label_tag": f"../../{MARK}"},
    "a client that is an object": {"spleen": [[1, 1, 1]], "client_id": {"x": 1}},
    "a client of 300 letters": {"spleen": [[1, 1, 1]], "client_id": "x" * 300},
}


def cases():
    """Name to method, address, and what else `requests` takes."""
    yield from names()
    yield from files()
    yield from parameters()
    yield from addresses()


def names():
    for number, name in enumerate([*CLIMBING, *ODD, *OF_OTHERS]):
        query = f"image={quote(name, errors='surrogatepass')}"
        places = [
            ("GET", f"/datastore/image?{query}", {}),
            ("HEAD", f"/datastore/image?{query}", {}),
            ("GET", f"/datastore/image/info?{query}", {}),
            ("PUT", f"/datastore/image/info?{query}", {"data": {"info": "{}"}}),
            ("GET", f"/datastore/label?tag=final&{query}", {}),
            ("GET", f"/datastore/label/info?tag=final&{query.replace('image', 'label', 1)}", {}),
            ("PUT", f"/datastore/label?tag=final&{query}", {"files": {"label": ("x.nii.gz", hostile.GOOD)}}),
            ("POST", f"/infer/ctsam3d?{query}", {"data": {"params": '{"spleen": [[1, 1, 1]]}'}}),
            ("DELETE", f"/datastore/image?{query.replace('image', 'id', 1)}", {}),
            ("DELETE", f"/datastore/label?tag=final&{query.replace('image', 'id', 1)}", {}),
        ]
        for place in (number, number + 3, number + 6):  # three of the ten for each name, each place for many
            method, address, more = places[place % len(places)]
            yield f"id {name!r:.40} {method} {address.partition('?')[0]}", method, address, more
        if name not in OF_OTHERS:
            sent = {"files": {"file": ("x.nii.gz", hostile.GOOD)}}
            yield f"new id {name!r:.40}", "PUT", f"/datastore/image?{query}", sent
    for tag in TAGS:
        query = f"tag={quote(tag)}"
        label = {"files": {"label": ("x.nii.gz", hostile.GOOD)}}
        yield f"tag {tag!r:.40} saved", "PUT", f"/datastore/label?image=organs&{query}", label
        yield f"tag {tag!r:.40} read", "GET", f"/datastore/label?label=organs&{query}", {}
        yield f"tag {tag!r:.40} removed", "DELETE", f"/datastore/label?id=organs&{query}", {}
    for session in SESSIONS:
        for method, address in (("GET", "/session/{}"), ("DELETE", "/session/{}"), ("GET", "/session/{}?image=true")):
            if session != "..":  # which is another address
                yield f"session {session!r:.40} {method}", method, address.format(quote(session, safe="")), {}
        address = f"/infer/ctsam3d?session_id={quote(session)}"
        yield f"session {session!r:.40} clicked", "POST", address, {"data": {"params": '{"spleen": [[1, 1, 1]]}'}}


def files():
    for name in FILE_NAMES:
        for what, method, address, field in PLACES:
            yield f"{what} called {name!r:.40}", method, address, {"files": {field: (name, hostile.GOOD)}}
    content = {**{name: (".nii.gz", data) for name, data in hostile.NIFTI.items()}, **hostile.OTHERS}
    for number, (name, (suffix, data)) in enumerate(content.items()):
        for place in (number, number + 1):  # two of the four for each
            what, method, address, field = PLACES[place % len(PLACES)]
            yield f"{what}: {name}", method, address, {"files": {field: (f"x{suffix}", data)}}
    for name, (suffix, data) in hostile.META.items():
        for what, method, address, field in PLACES:
            yield f"{what}: {name}", method, address, {"files": {field: (f"x{suffix}", data)}}
    for name, data in hostile.OF_SCANS.items():
        for what, method, address, field in PLACES:
            yield f"{what}: {name}", method, address, {"files": {field: ("x.nii.gz", data)}}
    slices = [("files", (f"{n}.dcm", b"no DICOM")) for n in range(3)]
    yield "session: slices that are none", "PUT", "/session/", {"files": slices}
    yield "session: an archive", "PUT", "/session/?uncompress=true", {"files": {"files": ("x.zip", hostile.archive())}}
    yield "session: no file", "PUT", "/session/", {}
    yield "session: for ever", "PUT", "/session/?expiry=99999999999", {"files": {"files": ("x.nii.gz", hostile.GOOD)}}
    yield "image: no file", "PUT", f"/datastore/image?image={MARK}", {"data": {"params": "{}"}}
    yield "image: too large", "PUT", f"/datastore/image?image={MARK}", {"files": {"file": ("x.nii", bytes(61 * 10**6))}}


PLACES = [
    ("image", "PUT", f"/datastore/image?image={MARK}", "file"),
    ("label", "PUT", "/datastore/label?image=organs", "label"),
    ("session", "PUT", "/session/", "files"),
    ("clicked", "POST", "/infer/ctsam3d", "file"),
]


def parameters():
    good = {"label": ("x.nii.gz", hostile.GOOD)}
    for name, params in PARAMS.items():
        sent = params.encode("latin-1" if "UTF-8" in name else "utf-8", "surrogatepass")
        yield f"label params: {name}", "PUT", "/datastore/label?image=organs", {"data": {"params": sent}, "files": good}
        yield f"image info: {name}", "PUT", "/datastore/image/info?image=organs", {"data": {"info": sent}}
        body = {"data": sent, "headers": {"content-type": "application/json"}}
        if name != "null":  # which is no body
            yield f"strategy: {name}", "POST", "/activelearning/first", body
            yield f"training: {name}", "POST", "/train/ctsam3d", body
        if not name.startswith(("null", "nested a", "a number of", "too", "NaN", "inf", "half")):
            yield f"clicks: {name}", "POST", "/infer/ctsam3d?image=organs", {"data": {"params": sent}}
    for name, params in CLICKS.items():
        yield f"clicks: {name}", "POST", "/infer/ctsam3d?image=organs", {"data": {"params": json.dumps(params)}}
    for address in (
        "/datastore/?output=everything",
        "/datastore/dataset?limit_cases=-1",
        "/datastore/dataset?limit_cases=x",
        "/datastore/dataset?limit_cases=99999999999999999999999",
        "/datastore/image?image=organs&image=../x",
        "/datastore/label?label=organs&tag=final&version=-1",
        "/datastore/label?label=organs&tag=final&version=1e9",
        "/datastore/label?label=organs",
        "/datastore/label/history?label=organs&tag=final",
        "/datastore/label/info?label=organs&tag=none",
        "/logs/?lines=-1",
        "/logs/?lines=x",
        "/logs/?lines=99999999",
        "/scoring/",
        "/batch/infer",
    ):
        yield f"query {address}", "GET", address, {}
    for check in ("x", "MD5:x", "SHA3:x", "../../x:y", ":", "SHA256:" + "0" * 64):
        yield f"checksum {check:.20}", "HEAD", f"/datastore/image?image=organs&check_sum={quote(check)}", {}
    yield "training at once", "POST", "/train/ctsam3d?run_sync=true", {"json": {}}
    yield "training unknown", "POST", f"/train/..%2f{MARK}", {"json": {}}
    yield (
        "a thousand fields",
        "PUT",
        "/datastore/image/info?image=organs",
        {"data": {f"f{n}": "x" for n in range(1100)}},
    )


def addresses():
    for address in (
        "/reload",
        "/infer/wsi/ctsam3d?image=/etc/passwd",
        "/infer/wsi_v2/ctsam3d?image=/etc/passwd",
        f"/infer/..%2f{MARK}?image=organs",
        "/infer/?image=organs",
        "/activelearning/..%2fx",
        "/activelearning/epistemic",
        "/scoring/dice",
        "/batch/infer/ctsam3d",
        "/batch/infer/..%2fx",
        "/auth/realms",
    ):
        yield f"POST {address}", "POST", address, {"json": {}}
    for method in ("PUT", "DELETE", "POST", "PATCH"):
        yield f"{method} weights", method, "/model/ctsam3d", {"files": {"file": ("x.pt", b"x")}}
    for method in ("TRACE", "PROPFIND", "PATCH", "OPTIONS", "FOO"):
        yield f"{method} /info/", method, "/info/", {}
    for address in (
        "/model/..%2f..%2fetc%2fpasswd",
        "/model/info/..%2fx",
        "/proxy/dicom/..%2fsystem",
        "/proxy/dicom/wado/..%2f..%2fsystem",
        "/proxy/dicom/qido/studies/..%2f..%2fpatients",
        "/proxy/dicom/http:%2f%2f127.0.0.1:1%2f",
        "/nothing",
        "/.env",
        "/.git/config",
    ):
        yield f"GET {address}", "GET", address, {}
    for header, value in (
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("host", "evil.example"),
        ("host", "evil.example:8000"),
        ("host", "127.0.0.1.evil.example"),
        ("host", "x@evil.example"),
    ):
        yield f"{header}: {value}", "GET", "/info/", {"headers": {header: value}}
    many = {f"x-{n}": "y" * 100 for n in range(100)}
    yield "headers of 18 kB", "GET", "/info/", {"headers": {**many, "x": "y" * 8000}}
    yield "an address of 9 kB", "GET", f"/datastore/image?image={'x' * 9000}", {}
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "text/plain",
        "multipart/form-data; boundary=x",
    ):
        sent = {"data": b"--y\r\nnothing", "headers": {"content-type": kind}}
        yield f"content-type {kind}", "PUT", f"/datastore/image?image={MARK}", sent


CLICK = '{"spleen": [[1, 1, 1]]}'
CASES = {name: (method, address, more) for name, method, address, more in cases()}

# ---- what comes back -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(server):
    """Files of the server's whole folder before and after all tests of this module."""
    requests.post(f"{server.url}/infer/ctsam3d?image=organs", data={"params": '{"spleen": [[1, 1, 1]]}'}, timeout=120)
    yield contents(server)
    for folder in (Path.cwd(), Path.home(), Path("/tmp"), Path("/"), *server.studies.parents):
        assert [path for path in folder.iterdir() if MARK in path.name] == []


def contents(server) -> dict:
    """Path to size, of all but the log and what a running server writes of itself."""
    root = server.studies.parent
    changing = ("server.log", "logs", "tmp", "replies")
    return {
        str(path.relative_to(root)): path.stat().st_size
        for path in root.rglob("*")
        if path.is_file() and not set(changing) & set(path.relative_to(root).parts)
    }


def test_the_corpus_is_large():
    assert len(CASES) >= 200, len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_every_hostile_request_is_refused_with_a_reason(server, tree, case):
    method, address, more = CASES[case]
    reply = requests.request(method, f"{server.url}{address}", timeout=120, **more)
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:500])
    if "x-request-id" not in reply.headers:
        return  # what is no HTTP, or has too large headers, is refused before it reaches the application
    if method != "HEAD":
        said = reply.json()
        assert said["detail"] and isinstance(said["detail"], str), reply.text
        assert said["request_id"] == reply.headers["x-request-id"]
        for secret in (str(server.studies), str(server.temporary), "root:", "Traceback"):
            assert secret not in reply.text, reply.text
    assert "x-injected" not in reply.headers
    before, after = dict(tree), contents(server)
    tree.clear()
    tree.update(after)  # so that one case that writes fails alone
    assert after == before


BOMB_MB = 200  # more than the server needs for a request; a bomb would be 2,147


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process's peak is told by Linux alone")


@linux
@pytest.mark.parametrize("address", ["image", "label", "click"])
def test_bombs_are_refused_and_take_no_memory(server, tree, address):
    method, path, field = {
        "image": ("PUT", f"/datastore/image?image={MARK}", "file"),
        "label": ("PUT", "/datastore/label?tag=final&image=organs", "label"),
        "click": ("POST", "/infer/ctsam3d", "file"),
    }[address]
    for name, (suffix, data) in hostile.bombs().items():
        sent = {"files": {field: (f"x{suffix}", data)}, "data": {"params": CLICK}}
        reply, more_mb = watched(server, method, path, **sent)
        assert 400 <= reply.status_code < 500, (name, reply.status_code, reply.text[:500])
        assert more_mb < BOMB_MB, name
    assert contents(server) == tree


@linux
def test_what_a_header_does_not_speak_of_is_not_unpacked(server):
    sent = {"files": {"file": ("x.nrrd", hostile.hidden_bomb())}, "data": {"params": CLICK}}
    reply, more_mb = watched(server, "POST", "/infer/ctsam3d?output=json", **sent)
    assert reply.status_code == 200, reply.text[:500]
    assert more_mb < BOMB_MB


def watched(server, method: str, path: str, **sent) -> tuple[requests.Response, float]:
    """The reply, and by how many MB the server's memory grew at the most."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # its peak counts from here
    before = memory_mb(server, "VmRSS")
    reply = requests.request(method, f"{server.url}{path}", timeout=120, **sent)
    return reply, memory_mb(server, "VmHWM") - before


def memory_mb(server, what: str) -> float:
    """`VmRSS`, what it holds, or `VmHWM`, the most that it held."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1000


# ---- below requests ------------------------------------------------------------------------------------------------


def raw(server, data: bytes) -> int:
    """Status of the reply to bytes that no HTTP library would send; 0 where the connection is closed without one."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(data)
        reply = connection.recv(4096)
    return int(reply.split()[1]) if reply.startswith(b"HTTP/1.1 ") else 0


HOST = b"Host: 127.0.0.1\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /info/ HTTP/1.1\r\n\r\n",  # no host
        b"GET /info/ HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n",
        b"GET /info/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /static/../../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /static/%2e%2e/%2e%2e/app.py HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /static/..%5c..%5capp.py HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /static//etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /static/%00 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ohif/../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ohif/%2e%2e%2f%2e%2e%2fapp.py HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ohif/..%5c..%5capp.py HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /ohif/x%00.js HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /datastore/image?image=%ff%fe HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /datastore/image?image=%ed%a0%80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://evil.example/info/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /info/ HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /info/ HTTP/1.1\r\n" + HOST + b"".join(b"X%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET /info/ HTTP/1.1\r\n" + HOST + b"Bad Header: x\r\n\r\n",
        b"PUT /datastore/image?image=x HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\n",
        b"PUT /datastore/image?image=x HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        b"PUT /datastore/image?image=x HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PUT /datastore/image?image=x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
        b"PUT /datastore/image?image=x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
def test_what_is_hardly_http_is_refused(server, tree, data):
    status = raw(server, data)
    assert status == 0 or 400 <= status < 500
    assert requests.get(f"{server.url}/info/", timeout=30).ok


def test_a_body_that_grows_beyond_the_limit_is_cut_off(server, tree):
    """Without a length, it is counted as it comes: 70 MB where 60 are allowed."""
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'

    def body():
        yield head
        for _ in range(70):
            yield bytes(10**6)

    headers = {"content-type": "multipart/form-data; boundary=x", "transfer-encoding": "chunked"}
    try:
        connection.request("PUT", f"/datastore/image?image={MARK}", body(), headers, encode_chunked=True)
        reply = connection.getresponse()
        assert (reply.status, "more bytes" in json.loads(reply.read())["detail"]) == (413, True)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has answered and closed, while the rest was being sent
    assert requests.get(f"{server.url}/info/", timeout=30).ok


def test_many_ranges_of_a_file_are_few_pieces(server, tree):
    ranges = ",".join(f"{n}-{n}" for n in range(0, 2000, 2))
    address = f"{server.url}/datastore/image?image=organs"
    reply = requests.get(address, headers={"range": f"bytes={ranges}"}, timeout=60)
    assert reply.status_code in (200, 206, 400, 416) and len(reply.content) < 4 * 10**6
    assert requests.get(address, headers={"range": "bytes=x-"}, timeout=60).status_code in (200, 400, 416)


def test_no_failure_of_the_server(server, tree):
    log = server.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:6000]
    metrics = requests.get(f"{server.url}/metrics", timeout=30).text
    assert 'status="5' not in metrics
    assert "evil.example" not in metrics and MARK not in metrics
