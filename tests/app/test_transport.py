"""Large files on the wire: the same bytes after the client's HTTP library has undone the coding."""

import gzip
from types import SimpleNamespace

import numpy as np
import pytest
from requests_toolbelt import MultipartDecoder

from ctsam3d.labelapp.transport import gzipped, takes_gzip


@pytest.fixture
def sparse_file(tmp_path):
    """A file of 6 MB with data at its beginning, in its middle and nowhere else, and the same bytes."""
    content = np.zeros(6 * 2**20, np.uint8)
    content[:300] = np.arange(300) % 251
    content[2_500_000:2_600_000] = np.random.default_rng(0).integers(0, 3, 100_000)
    path = tmp_path / "labels.nrrd"
    with open(path, "wb") as file:
        for start, stop in ((0, 300), (2_500_000, 2_600_000)):
            file.seek(start)
            file.write(content[start:stop].tobytes())
        file.truncate(len(content))
    return path, content.tobytes()


def test_a_file_alone(sparse_file):
    path, content = sparse_file
    response = gzipped(path, {}, alone=True)
    assert gzip.decompress(response.body) == content and len(response.body) < 60_000
    assert response.headers["content-encoding"] == "gzip" and response.headers["vary"] == "accept-encoding"
    assert response.headers["content-disposition"].endswith('"labels.nrrd"')


def test_a_form_of_parameters_and_file(sparse_file):
    path, content = sparse_file
    response = gzipped(path, {"label_names": {"spleen": 1}}, alone=False)
    params, image = MultipartDecoder(gzip.decompress(response.body), response.headers["content-type"]).parts
    assert params.text == '{"label_names": {"spleen": 1}}' and image.content == content
    assert b'filename="labels.nrrd"' in image.headers[b"Content-Disposition"]


def test_a_system_that_knows_no_holes(sparse_file, monkeypatch):
    path, content = sparse_file
    monkeypatch.delattr("os.SEEK_DATA")
    assert gzip.decompress(gzipped(path, {}, alone=True).body) == content


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [("gzip, deflate, br", True), ("br, GZIP;q=0.5", True), ("gzip; q=0", False), ("identity", False), (None, False)],
)
def test_who_takes_gzip(accepted, takes):
    headers = {} if accepted is None else {"accept-encoding": accepted}
    assert takes_gzip(SimpleNamespace(headers=headers)) is takes
