"""The real server over HTTP, driven with MONAI Label's own client, on a real abdomen where it is there."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import NAMES, VALUE_OF
from ctsam3d.volume import Volume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def organs(server):
    return server.scans["organs"]


@pytest.fixture(scope="module")
def clicks(organs):
    """Of the spleen: two voxels in it, and one in the liver, where it is not."""
    return organs.inside("spleen"), organs.inside("spleen", 0.4), organs.inside("liver")


def spleen(positive, negative=()):
    return {"spleen": list(positive), "background": list(negative), "expand": False}


# ---- what a client finds, and what it gets -------------------------------------------------------------------------


def test_info_offers_both_models(server):
    info = MONAILabelClient(server.url).info()
    assert info["name"] == "CT-SAM3D"
    named, points = info["models"]["ctsam3d"], info["models"]["ctsam3d_points"]
    assert (named["type"], named["dimension"], named["labels"]) == ("deepedit", 3, list(NAMES))
    assert (points["type"], points["dimension"], points["labels"]) == ("deepgrow", 3, [])
    assert info["labels"] == list(NAMES)
    assert {"random", "first"} <= set(info["strategies"])


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz"])
def test_reply_has_the_image_shape_and_affine(server, organs, clicks, extension):
    path, reply = server.infer("organs", {**spleen([clicks[0]]), "result_extension": extension}, "shape")
    assert path.endswith(extension)
    image = sitk.ReadImage(path)
    labels = sitk.GetArrayFromImage(image).T
    affine_lps_mm = np.diag([-1.0, -1.0, 1.0, 1.0]) @ organs.volume.affine_ras_mm
    assert labels.shape == organs.volume.shape_ijk
    assert labels.dtype == np.uint8
    assert np.allclose(image.GetOrigin(), affine_lps_mm[:3, 3], rtol=0, atol=1e-4)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), affine_lps_mm[:3, :3], atol=1e-6)
    assert set(np.unique(labels)) == {0, VALUE_OF["spleen"]}
    assert labels[tuple(clicks[0])] == VALUE_OF["spleen"]
    assert reply["label_names"] == VALUE_OF


def test_reply_tells_latencies_version_and_patches(server, clicks):
    begin = time.monotonic()
    _, reply = server.click("organs", spleen([clicks[1]]), "latencies")
    elapsed = time.monotonic() - begin
    stages = reply["latencies"]
    assert {"read", "crop", "features", "decode", "write", "merge", "reply", "total"} <= set(stages)
    assert all(seconds >= 0 for seconds in stages.values())
    assert stages["decode"] > 0
    assert stages["total"] <= elapsed
    assert sum(seconds for stage, seconds in stages.items() if stage != "total") <= stages["total"] + 0.01
    assert reply["version"]
    assert reply["patches"] >= 1


def test_every_output_of_the_original_route(server, clicks):
    params = json.dumps({**spleen([clicks[0]]), "result_extension": ".nrrd"})
    alone = server.post(params=params, query={"output": "image"})
    assert alone.headers["content-type"] == "application/octet-stream"
    assert alone.headers["content-disposition"].endswith('.nrrd"')
    assert alone.content.startswith(b"NRRD")
    values = server.post(params=params, query={"output": "json"})
    assert values.headers["content-type"] == "application/json"
    assert values.json()["label_names"]["spleen"] == 1
    for query in ({}, {"output": "all"}):
        both = server.post(params=params, query=query)
        assert both.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert b'name="params"' in both.content
        assert alone.content in both.content
    no_file = server.post(params=json.dumps({**spleen([clicks[0]]), "result_write_to_file": False}))
    assert no_file.json().keys() == values.json().keys()


def test_a_large_file_is_small_on_the_wire(server, clicks):
    """Uncompressed, as OHIF asks for it: browsers, and `requests`, undo the content coding."""
    params = {**spleen([clicks[0]]), "result_extension": ".nrrd", "result_compress": False, "result_dtype": "float64"}
    for query in ({"output": "image"}, {}):
        plain = server.post(params=json.dumps(params), query=query, headers={"accept-encoding": "identity"})
        coded = server.post(params=json.dumps(params), query=query)
        assert coded.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
        assert int(coded.headers["content-length"]) < len(coded.content) / 20
        file = slice(coded.content.find(b"NRRD"), coded.content.rfind(b"\r\n--") if not query else None)
        assert len(coded.content[file]) > 8e6 and coded.content[file] in plain.content


def test_nothing_is_left_behind(server, clicks):
    server.click("organs", spleen([clicks[0]]), "temporary")
    server.infer("", spleen([clicks[0]]), "temporary", file=str(server.scans["organs"].path))
    server.post(params='{"spleen": []}', image="", files={"file": ("x.nii.gz", b"broken")})
    for _ in range(50):  # files are deleted after they are sent
        left = list(server.temporary.glob("ctsam3d-server-*/ctsam3d-*/*"))
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert list(server.temporary.glob("ctsam3d-server-*")) != []  # where all of the server's own files are
    assert list(server.temporary.rglob("ctsam3d-upload-*")) == []


# ---- the mask depends on the click lists alone ---------------------------------------------------------------------


def test_undo_equals_never_having_clicked(server, clicks):
    inside, more, outside = clicks
    first, _ = server.click("organs", spleen([inside]), "undo")
    second, _ = server.click("organs", spleen([inside, more]), "undo")
    third, _ = server.click("organs", spleen([inside, more], [outside]), "undo")
    assert not np.array_equal(first, second) or not np.array_equal(second, third)
    assert np.array_equal(server.click("organs", spleen([inside, more]), "undo")[0], second)
    assert np.array_equal(server.click("organs", spleen([inside]), "undo")[0], first)
    assert np.array_equal(server.click("organs", spleen([inside, more], [outside]), "redo in one")[0], third)
    assert np.array_equal(server.click("organs", spleen([inside]), "never clicked more")[0], first)


def test_a_list_that_is_no_extension(server, clicks):
    inside, more, outside = clicks
    expected, _ = server.click("organs", spleen([more], [outside]), "fresh")
    server.click("organs", spleen([inside, more]), "replaced")
    assert np.array_equal(server.click("organs", spleen([more], [outside]), "replaced")[0], expected)


def steps(scan, first, second):
    """Three requests in a row: a click, another one, and a negative one."""
    inside, more = scan.inside(first), scan.inside(first, 0.4)
    sequence = [([inside], []), ([inside, more], []), ([inside, more], [scan.inside(second)])]
    return [{first: positive, "background": negative} for positive, negative in sequence]


@pytest.mark.parametrize("images", [("organs", "other"), ("organs", "organs")])
def test_two_clients_at_once_get_what_they_get_alone(server, images):
    plans = [
        steps(server.scans[images[0]], "spleen", "liver"),
        steps(server.scans[images[1]], "kidney_left", "liver"),
    ]

    def run(image, plan, client):
        return [server.click(image, params, client)[0] for params in plan]

    name = "-".join(images)
    alone = [run(image, plan, f"{name} alone {n}") for n, (image, plan) in enumerate(zip(images, plans))]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, image, plan, f"{name} both {n}") for n, (image, plan) in enumerate(zip(images, plans))]
        together = [future.result() for future in both]
    for one, other in zip(alone, together):
        assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_one_client_in_two_threads(server, clicks):
    """The same client sends two lists at once: each reply is that of its own list."""
    inside, more, outside = clicks
    lists = [spleen([inside]), spleen([inside, more]), spleen([more], [outside])]
    alone = [server.click("organs", params, f"list {n}")[0] for n, params in enumerate(lists)]
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda params: server.click("organs", params, "hasty")[0], lists * 2))
    for expected, found in zip(alone * 2, replies):
        assert np.array_equal(expected, found)


def test_a_client_without_id_is_its_token_or_its_address(server, clicks):
    inside = clicks[0]
    expected = server.click("organs", spleen([inside]), "named")[0]
    assert np.array_equal(server.click("organs", spleen([inside]))[0], expected)
    for token in ("one", "two"):
        reply = server.post(
            params=json.dumps(spleen([inside])),
            query={"output": "json"},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert reply.json()["latencies"]["decode"] > 0  # a session of its own had to run the click
    again = server.post(
        params=json.dumps(spleen([inside])), query={"output": "json"}, headers={"Authorization": "Bearer one"}
    )
    assert again.json()["latencies"]["decode"] == 0  # the first one's is still there


def test_one_click_spreads_and_goes_on_after_the_reply(server):
    """The reply comes in time, and asking again with the same list brings what was found meanwhile."""
    params = {"kidney_right": [server.scans["other"].inside("kidney_right")], "background": []}
    alone, _ = server.click("other", {**params, "expand": False}, "spreading")
    sizes, end = [], time.monotonic() + 240
    while time.monotonic() < end:
        labels, reply = server.click("other", {**params, "expand": True}, "spreading")
        sizes.append(int((labels > 0).sum()))
        if reply["expansion"]["kidney_right"]["ended"] != "time budget":
            break
        time.sleep(1)
    told = reply["expansion"]["kidney_right"]
    assert told["ended"] in ("quiet", "patch budget")
    assert told["proposed"] == told["segmented"] + told["rejected"] >= told["segmented"] == reply["patches"] - 1 > 0
    assert sizes[-1] > (alone > 0).sum() and labels[tuple(params["kidney_right"][0])] == VALUE_OF["kidney_right"]
    assert np.array_equal(server.click("other", {**params, "expand": False}, "spreading")[0], alone)


# ---- structures and dialects ---------------------------------------------------------------------------------------


def test_two_structures_in_one_request(server, organs):
    points = {name: [organs.inside(name)] for name in ("spleen", "liver")}
    labels, reply = server.click("organs", {**points, "background": []}, "two")
    assert set(np.unique(labels)) == {0, reply["label_names"]["spleen"], reply["label_names"]["liver"]}
    assert all(labels[tuple(points[name][0])] == VALUE_OF[name] for name in points)
    masks = {
        name: server.click("organs", {name: points[name], "background": points[other]}, "one by one")[0] > 0
        for name, other in (("spleen", "liver"), ("liver", "spleen"))
    }
    assert np.array_equal(labels > 0, masks["spleen"] | masks["liver"])
    for name, mask in masks.items():
        assert mask[labels == VALUE_OF[name]].all()


def test_both_dialects_give_one_mask(server, clicks):
    inside, more, outside = clicks
    labels, _ = server.click("organs", spleen([inside, more], [outside]), "dialects")
    points = {"label": "my structure", "foreground": [inside, more], "background": [outside]}
    found, reply = server.click("organs", points, "dialects", model="ctsam3d_points")
    assert reply["label_names"] == {"my structure": 1}
    assert np.array_equal(found, (labels > 0).astype(np.uint8))
    whole_floats = {**points, "foreground": [[float(v) for v in inside], more]}
    assert np.array_equal(server.click("organs", whole_floats, "dialects", model="ctsam3d_points")[0], found)


def test_params_do_not_choose_the_image(server, clicks):
    expected, _ = server.click("organs", spleen([clicks[0]]), "chooser")
    hostile = {"image": "/etc/passwd", "model": "ctsam3d_points", "device": "cuda:7", "session": {"image": "other"}}
    assert np.array_equal(server.click("organs", {**spleen([clicks[0]]), **hostile}, "chooser")[0], expected)


def test_uploads_and_upload_sessions(server, organs, clicks):
    params = spleen([clicks[0]])
    expected, _ = server.click("organs", params, "upload")
    assert np.array_equal(server.click("", params, "upload", file=str(organs.path))[0], expected)
    client = MONAILabelClient(server.url, tmpdir=str(server.replies))
    session = client.create_session(str(organs.path))["session_id"]
    assert np.array_equal(server.click("organs", params, "upload", session_id=session)[0], expected)
    client.remove_session(session)
    gone = server.post(params=json.dumps(params), query={"session_id": session})
    assert (gone.status_code, session in gone.json()["detail"]) == (404, True)


# ---- bad input -----------------------------------------------------------------------------------------------------

GOOD = '{"spleen": [[5, 5, 5]]}'
BAD = {
    "unknown image": ({"image": "nobody"}, 404, ["image", "datastore", "'nobody'"]),
    "no image": ({"image": ""}, 400, ["image", "none"]),
    "unknown model": ({"model": "nothing"}, 404, ["model", "ctsam3d, ctsam3d_points", "'nothing'"]),
    "click outside": ({"params": '{"spleen": [[9000, 3, 4]]}'}, 400, ["click spleen[0]", "(9000, 3, 4)", "outside"]),
    "negative index": ({"params": '{"spleen": [[3, -1, 4]]}'}, 400, ["click spleen[0]", "(3, -1, 4)", "outside"]),
    "two numbers": ({"params": '{"spleen": [[3, 4]]}'}, 400, ["click spleen[0]", "three", "[3, 4]"]),
    "fraction": ({"params": '{"spleen": [[3.5, 4, 5]]}'}, 400, ["click spleen[0]", "whole", "3.5"]),
    "NaN": ({"params": '{"spleen": [[NaN, 4, 5]]}'}, 400, ["click spleen[0]", "finite", "nan"]),
    "string in a click": ({"params": '{"spleen": [["3", 4, 5]]}'}, 400, ["click spleen[0]", "numbers", "'3'"]),
    "string for clicks": ({"params": '{"spleen": "middle"}'}, 400, ["spleen", "list of clicks", "'middle'"]),
    "no click": ({"params": '{"spleen": [], "background": [[3, 4, 5]]}'}, 400, ["positive click", "none"]),
    "nothing": ({"params": "{}"}, 400, ["positive click", "none"]),
    "unknown label": ({"params": '{"splen": [[3, 4, 5]]}'}, 400, ["'splen'", "label of this model"]),
    "no JSON": ({"params": "{spleen: 3"}, 400, ["params", "JSON", "{spleen: 3"]),
    "JSON list": ({"params": "[[3, 4, 5]]"}, 400, ["params", "object", "[[3, 4, 5]]"]),
    "2D image": ({"image": "flat"}, 400, ["image 'flat'", "3D", "(20, 20)"]),
    "4D image": ({"image": "four"}, 400, ["image 'four'", "3D", "(9, 9, 9, 3)"]),
    "truncated image": ({"image": "truncated"}, 400, ["image 'truncated'", "damaged"]),
    "empty image": ({"image": "empty"}, 400, ["image 'empty'", "damaged"]),
    "path upwards": ({"image": "../organs"}, 400, ["image", "not a path", "'../organs'"]),
    "absolute path": ({"image": "/etc/passwd"}, 400, ["image", "not a path", "'/etc/passwd'"]),
    "session by path": ({"query": {"session_id": "../../etc"}}, 404, ["session_id", "'../../etc'"]),
    "unknown output": ({"query": {"output": "movie"}}, 400, ["output", "image, json, all", "'movie'"]),
    "SEG of a file": ({"query": {"output": "dicom_seg"}}, 400, ["output", "DICOM archive"]),
    "label file": ({"files": {"label": ("l.nii.gz", b"x")}}, 400, ["label", "'l.nii.gz'"]),
    "no scan uploaded": ({"image": "", "files": {"file": ("a.txt", b"x")}}, 400, ["file", ".nii.gz", "'a.txt'"]),
    "broken upload": ({"image": "", "files": {"file": ("a.nii.gz", b"x")}}, 400, ["image 'a.nii.gz'", "damaged"]),
    "extension": ({"params": '{"spleen": [[5, 5, 5]], "result_extension": "/../x"}'}, 400, ["result_extension"]),
    "whole slide": ({"model": "wsi/ctsam3d", "image": "/etc/passwd"}, 404, ["model", "whole-slide"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_words_and_the_server_goes_on(server, clicks, case):
    request, status, words = BAD[case]
    reply = server.post(**{"params": GOOD, **request})
    assert reply.status_code == status, reply.text
    detail = reply.json()["detail"]
    assert all(word in detail for word in words), detail
    assert str(server.studies) not in detail
    good = server.post(params=json.dumps(spleen([clicks[0]])), query={"output": "json"})
    assert good.status_code == 200


def test_a_refused_click_changes_nothing(server, clicks):
    before, _ = server.click("organs", spleen([clicks[0]]), "refused")
    bad = json.dumps({**spleen([clicks[0], clicks[1], [1, 2]]), "client_id": "refused"})
    assert server.post(params=bad).status_code == 400
    both = json.dumps({**spleen([clicks[0]], [clicks[0]]), "client_id": "refused"})
    assert server.post(params=both).status_code == 400
    assert np.array_equal(server.click("organs", spleen([clicks[0]]), "refused")[0], before)


def test_an_image_of_another_size_under_an_old_name(server):
    other = server.scans["other"]
    path = server.studies / "swapped.nii.gz"
    shutil.copyfile(other.path, path)
    for _ in range(100):  # the server watches the folder
        if "swapped" in MONAILabelClient(server.url).datastore()["objects"]:
            break
        time.sleep(0.1)
    click = other.inside("liver")
    before, _ = server.click("swapped", {"liver": [click]}, "swapping")
    assert before.shape == other.volume.shape_ijk

    small = Volume(np.ascontiguousarray(other.volume.array_ijk[:, :, : click[2]]), other.volume.affine_ras_mm)
    write_volume(path, small)
    reply = server.post(image="swapped", params=json.dumps({"liver": [click], "client_id": "swapping"}))
    assert reply.status_code == 400
    assert f"outside the volume {small.shape_ijk}" in reply.json()["detail"]
    inside = [*click[:2], click[2] // 2]
    assert server.click("swapped", {"liver": [inside]}, "swapping")[0].shape == small.shape_ijk

    shutil.copyfile(other.path, path)  # and back
    assert np.array_equal(server.click("swapped", {"liver": [click]}, "swapping")[0], before)
    os.unlink(path)
    gone = server.post(image="swapped", params=json.dumps({"liver": [click]}))
    assert (gone.status_code, "'swapped'" in gone.json()["detail"]) == (404, True)


# ---- a server that goes on -----------------------------------------------------------------------------------------


def test_info_answers_while_a_click_runs(server, organs):
    params = {name: [organs.inside(name)] for name in ("kidney_left", "liver", "spleen", "aorta")}
    ends = []

    def run():
        server.click("organs", params, "long")
        ends.append(time.monotonic())

    thread = threading.Thread(target=run)
    answered = []
    thread.start()
    while thread.is_alive():
        assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
        answered.append(time.monotonic())
    thread.join()
    assert sum(end < ends[0] for end in answered) >= 3


def test_no_error_of_the_server_itself(server):
    log = server.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:6000]
    assert nib.load(server.scans["organs"].path).shape == server.scans["organs"].volume.shape_ijk
