"""Counts and times as Prometheus reads them, and what the server says of its health."""

import json
import re

import pytest
import requests

from ctsam3d.labelapp.health import Health
from ctsam3d.labelapp.infer import Usage
from ctsam3d.labelapp.monitor import Monitor


def test_requests_are_counted_by_route_and_status():
    monitor = Monitor()
    for status in (200, 200, 404):
        monitor.request("GET", "/infer/{model}", status, 0.02)
    monitor.request("BREW", 'a"b\\c\n', 405, 0.1)
    monitor.refused()
    lines = monitor.text().splitlines()
    assert 'ctsam3d_requests_total{method="GET",route="/infer/{model}",status="200"} 2' in lines
    assert 'ctsam3d_requests_total{method="GET",route="/infer/{model}",status="404"} 1' in lines
    assert 'ctsam3d_requests_total{method="other",route="a\\"b\\\\c\\n",status="405"} 1' in lines
    assert "ctsam3d_refused_total 1" in lines


def test_a_histogram_counts_all_that_took_at_most_so_long():
    """By hand: 0.004 and 0.005 are at most 0.005, 0.3 is at most 0.5, 100 is beyond every bound."""
    monitor = Monitor()
    for seconds in (0.004, 0.005, 0.3, 100.0):
        monitor.click({"decode": seconds})
    lines = monitor.text().splitlines()
    bucket = 'ctsam3d_click_seconds_bucket{stage="decode",le="%s"} %d'
    for bound, count in (("0.005", 2), ("0.25", 2), ("0.5", 3), ("60.0", 3), ("+Inf", 4)):
        assert bucket % (bound, count) in lines
    assert 'ctsam3d_click_seconds_sum{stage="decode"} 100.309' in lines
    assert 'ctsam3d_click_seconds_count{stage="decode"} 4' in lines


class Engine:
    def __init__(self, *usage):
        self.found = Usage(*usage)

    def usage(self):
        return self.found


def test_gauges_and_health(tmp_path):
    health = Health(Engine("v1", 3, 1000, 2000, ""), tmp_path)
    assert health.problems() == [] and health.version() == "v1"
    lines = Monitor(health.gauges).text().splitlines()
    assert 'ctsam3d_cache_bytes{cache="images"} 1000' in lines and 'ctsam3d_cache_bytes{cache="sessions"} 2000' in lines
    assert "ctsam3d_click_sessions 3" in lines and 'ctsam3d_model_info{version="v1"} 1' in lines


def test_what_keeps_a_server_from_its_work(tmp_path, monkeypatch):
    assert Health(Engine("", 0, 0, 0, "no such file"), tmp_path).problems() == [
        "weights cannot be loaded: no such file"
    ]
    ok = Engine("v1", 0, 0, 0, "")
    assert Health(ok, tmp_path / "gone").problems() == ["the studies folder cannot be read and written"]
    monkeypatch.setattr("ctsam3d.labelapp.health._LEAST_DISK", 2**80)
    assert Health(ok, tmp_path).problems() == ["the disk of the studies folder is full"]


@pytest.mark.slow
def test_the_server_counts_its_requests_and_clicks(server):
    click = {"spleen": [server.scans["organs"].inside("spleen")], "expand": False}
    before = samples(server)
    assert server.post(params=json.dumps(click), query={"output": "json"}).ok
    assert server.post(params="{}").status_code == 400
    assert requests.get(f"{server.url}/nowhere/at/all", timeout=60).status_code == 404
    after = samples(server)
    infer = 'ctsam3d_requests_total{method="POST",route="/infer/{model}",status="%d"}'
    for name, more in (
        (infer % 200, 1),
        (infer % 400, 1),
        ('ctsam3d_requests_total{method="GET",route="other",status="404"}', 1),
        ('ctsam3d_click_seconds_count{stage="decode"}', 1),
        ('ctsam3d_click_seconds_count{stage="total"}', 1),
    ):
        assert after[name] == before.get(name, 0) + more, name
    assert after["ctsam3d_click_sessions"] >= 1 and after["ctsam3d_resident_bytes"] > 10**8
    assert after['ctsam3d_cache_bytes{cache="images"}'] > 10**5
    assert any(name.startswith("ctsam3d_model_info") for name in after)


def samples(server) -> dict[str, float]:
    reply = requests.get(f"{server.url}/metrics", timeout=60)
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in reply.text.splitlines():
        if not line.startswith("#"):
            name, value = re.fullmatch(r"([a-z0-9_]+(?:{.*})?) (\S+)", line).groups()
            assert name not in found
            found[name] = float(value)
    return found


@pytest.mark.slow
def test_the_server_is_well_and_every_reply_has_an_id(server):
    reply = requests.get(f"{server.url}/healthz", timeout=60)
    assert (reply.status_code, reply.json()["status"]) == (200, "ok")
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    own = requests.get(f"{server.url}/nothing", headers={"x-request-id": "from-the-proxy-1"}, timeout=60)
    assert own.headers["x-request-id"] == own.json()["request_id"] == "from-the-proxy-1"
    for bad in ("x", "a b c d e f g", "y" * 100):
        assert (
            requests.get(f"{server.url}/healthz", headers={"x-request-id": bad}, timeout=60).headers["x-request-id"]
            != bad
        )
