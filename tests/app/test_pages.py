"""OHIF's files as they are served: nothing in them that asks another host when a page opens."""

from fastapi import FastAPI
from starlette.testclient import TestClient

from ctsam3d.labelapp.guard import Guard
from ctsam3d.labelapp.monitor import Monitor
from ctsam3d.labelapp.pages import STATIC, pages_router


def test_ohif_asks_nobody_for_fonts():
    application = FastAPI()
    application.include_router(pages_router(application, None, Monitor()))
    client = TestClient(Guard(application, None, Monitor(), 10**6, hosts=["testserver"]))
    files = [path.name for path in (STATIC / "ohif").glob("*.css")]
    asking = [name for name in (*files, "index.html") if "//fonts." in (STATIC / "ohif" / name).read_text()]
    assert "index.html" in asking and "app.bundle.css" in asking  # as MONAI Label brings them
    for name in (*asking, "monai-label"):
        reply = client.get(f"/ohif/{name}")
        assert reply.status_code == 200 and "//fonts." not in reply.text
        assert reply.headers["content-type"].startswith("text/css" if name.endswith(".css") else "text/html")
    assert '<div id="root"' in client.get("/ohif/viewer").text
