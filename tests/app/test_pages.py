"""OHIF's files as they are served: nothing in them that asks another host when a page opens; its panel mended."""

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
    application = FastAPI()
    application.include_router(pages_router(application, None, Monitor()))
    return TestClient(Guard(application, None, Monitor(), 10**6, hosts=["testserver"]))


def test_ohif_asks_nobody_for_fonts(client):
    files = [path.name for path in (STATIC / "ohif").glob("*.css")]
    asking = [name for name in (*files, "index.html") if "//fonts." in (STATIC / "ohif" / name).read_text()]
    assert "index.html" in asking and "app.bundle.css" in asking  # as MONAI Label brings them
    for name in (*asking, "monai-label"):
        reply = client.get(f"/ohif/{name}")
        assert reply.status_code == 200 and "//fonts." not in reply.text
        assert reply.headers["content-type"].startswith("text/css" if name.endswith(".css") else "text/html")
    assert '<div id="root"' in client.get("/ohif/viewer").text


def test_of_ohifs_scripts_one_is_mended_and_nothing_of_it_forgotten(client, tmp_path):
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
    if shutil.which("node"):
        (tmp_path / "panel.js").write_text(reply.text)
        subprocess.run(["node", "--check", tmp_path / "panel.js"], check=True, timeout=60)
