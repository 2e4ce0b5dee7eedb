"""The first page, and OHIF's files as they are served: nothing asks another host; its panel is mended."""

import json
import shutil
import subprocess

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ctsam3d.labelapp.guard import Guard
from ctsam3d.labelapp.monitor import Monitor
from ctsam3d.labelapp.ohif import MENDED, mended_script
from ctsam3d.labelapp.pages import STATIC, pages_router


@pytest.fixture
def client():
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    application.include_router(pages_router(application, None, Monitor()))
    return TestClient(Guard(application, None, Monitor(), 10**6, hosts=["testserver"]))


@pytest.mark.parametrize("address", ["/", "/docs"])
def test_the_first_page_lists_routes_and_asks_no_other_host(client, address):
    reply = client.get(address)
    assert reply.status_code == 200 and "<code>/healthz</code>" in reply.text
    assert "Whether the server can do its work" in reply.text
    assert "//" not in reply.text and "<script" not in reply.text
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")


def test_ohif_asks_nobody_for_fonts(client):
    files = [path.name for path in (STATIC / "ohif").glob("*.css")]
    asking = [name for name in (*files, "index.html") if "//fonts." in (STATIC / "ohif" / name).read_text()]
    assert "index.html" in asking and "app.bundle.css" in asking  # as MONAI Label brings them
    for name in (*asking, "monai-label"):
        reply = client.get(f"/ohif/{name}")
        assert reply.status_code == 200 and "//fonts." not in reply.text
        assert reply.headers["content-type"].startswith("text/css" if name.endswith(".css") else "text/html")
    assert '<div id="root"' in client.get("/ohif/viewer").text


def test_of_ohifs_scripts_one_is_mended_and_nothing_of_it_forgotten(client):
    scripts = sorted((STATIC / "ohif").glob("*.js"))
    (script,) = (path for path in scripts if mended_script(path) is not None)
    text = script.read_text()
    assert all(text.count(old) == 1 for old in MENDED if "config.infer" not in old)
    assert text.count("config.infer[model] ? config.infer[model] : {}") == 3  # of its three ways to segment
    reply = client.get(f"/ohif/{script.name}")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/javascript")
    assert all(new in reply.text for new in MENDED.values())
    assert "onChangeStrategy" not in reply.text and "MONAILABEL_SERVER_URL', 'http" not in reply.text
    other = next(path for path in scripts if path != script)
    assert client.get(f"/ohif/{other.name}").content == other.read_bytes()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize(
    ("stats", "pressed", "bar", "words"),
    [
        ({}, False, "0%", "Not Running"),
        ({}, True, "0%", "starting"),
        ({"epoch": 9, "total_epochs": 9, "total_time": "0:01:00"}, True, "0%", "starting"),  # the one before
        ({"total_epochs": 10, "state": "preparing phantoms"}, True, "0%", "preparing phantoms"),
        ({"epoch": 3, "total_epochs": 10, "state": "training"}, True, "30%", "3/10 epochs completed"),
        ({"epoch": 3, "total_epochs": 10, "state": "stopped", "total_time": "stopped"}, False, "0%", "Not Running"),
    ],
)
def test_what_the_panel_says_of_a_training(tmp_path, stats, pressed, bar, words):
    (text,) = filter(None, map(mended_script, sorted((STATIC / "ohif").glob("*.js"))))
    (tmp_path / "panel.js").write_text(text)
    subprocess.run(["node", "--check", tmp_path / "panel.js"], check=True, timeout=60)
    begin = text.index("const ts = this.props.info.data.train_stats")
    body = text[begin : text.index("const accuracy = ", begin)]
    panel = {"props": {"info": {"data": {"train_stats": {"ctsam3d": stats}}}}, "state": {"training": pressed}}
    shown = f"(function () {{ {body}; return [training, trainingTip]; }}).call({json.dumps(panel)})"
    said = subprocess.run(["node", "-p", f"JSON.stringify({shown})"], capture_output=True, text=True, timeout=60)
    assert json.loads(said.stdout) == [bar, words], said.stderr
