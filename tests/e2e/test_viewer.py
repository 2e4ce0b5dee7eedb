"""The browser page in Chromium, against the real server: where things are drawn, and a study from sign-in to saved."""

import gzip
import json
import re

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk

from ctsam3d.data.io import write_volume
from ctsam3d.data.labels import VALUE_OF

pytestmark = pytest.mark.e2e

SHAPE = (44, 40, 36)
BLOCK = (slice(9, 19), slice(22, 31), slice(6, 17))
CENTRE = [13, 26, 11]  # of no axis of symmetry
WINDOW = (-160, 240)  # HU of black and white
TURN = np.deg2rad(20)
OBLIQUE = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0.1], [0, -0.1, 1]])
# Columns: where the file's i, j and k lead, in RAS.
AFFINES = {
    "ras": np.diag([1.5, 1.5, 2.0]),
    "lps": np.diag([-1.5, -1.5, 2.0]),
    "pir": np.array([[0, 0, 1.5], [-1.5, 0, 0], [0, -2.0, 0]]),
    "asl": np.array([[0, 0, -2.0], [1.5, 0, 0], [0, 1.5, 0]]),
    "oblique": OBLIQUE @ np.diag([-1.5, -1.5, 2.0]),
    "nrrd": OBLIQUE @ np.array([[0, 0, 1.5], [-1.5, 0, 0], [0, -2.0, 0]]),
}


def write_blocks(studies):
    """A bright block in noise as a scan of each orientation; their voxels."""
    rng = np.random.default_rng(5)
    hu = rng.normal(-40, 30, SHAPE)
    hu[BLOCK] += 180
    hu = np.rint(hu).astype(np.int16)
    for name, directions in AFFINES.items():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = directions, (12.5, -30, 47)
        if name == "nrrd":
            image = sitk.GetImageFromArray(hu.T)
            lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
            spacing = np.linalg.norm(lps[:, :3], axis=0)
            image.SetSpacing(spacing.tolist())
            image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
            image.SetOrigin(lps[:, 3].tolist())
            sitk.WriteImage(image, str(studies / f"{name}.nrrd"), useCompression=True)
        else:
            nib.save(nib.Nifti1Image(hu, affine), studies / f"{name}.nii.gz")
    return hu


def server_mask(site, image, clicks, name, model="ctsam3d"):
    """The mask that the server gives another client for the same clicks, on the whole scan."""
    positive, negative = ([c[:3] for c in clicks if c[3] == kind] for kind in (True, False))
    asked = {name: positive} if model == "ctsam3d" else {"foreground": positive, "label": name}
    params = {**asked, "background": negative, "expand": False, "result_extension": ".nii.gz", "client_id": "other"}
    reply = requests.post(
        f"{site.url}/infer/{model}",
        params={"image": image, "output": "image"},
        data={"params": json.dumps(params)},
        headers=site.headers,
        timeout=300,
    )
    assert reply.ok, reply.text
    return np.asanyarray(nib.Nifti1Image.from_bytes(gzip.decompress(reply.content)).dataobj) > 0


def saved_label(site, image):
    """The final label in the studies folder, and what was said about it."""
    said = requests.get(
        f"{site.url}/datastore/label/info", params={"label": image, "tag": "final"}, headers=site.headers, timeout=60
    ).json()
    path = site.studies / "labels" / "final" / f"{image}.nii.gz"
    return nib.load(path), said


def marks(picture):
    """Pixels in the green of positive clicks."""
    pixels = matplotlib.image.imread(picture)[..., :3] * 255
    return (np.abs(pixels - (31, 174, 91)).max(axis=-1) < 3).sum()


def colours_at(picture, places):
    """(N, 3) from 0 to 255 at places (N, 2) in pixels."""
    pixels = matplotlib.image.imread(picture)[..., :3] * 255
    x, y = np.floor(places).astype(int).T
    return pixels[y, x]


@pytest.fixture(scope="module")
def blocks(site):
    return write_blocks(site.studies)


def test_clicks_and_masks_lie_where_they_are_seen(site, drive, blocks):
    result = drive("viewer_places.mjs", studies=dict.fromkeys(AFFINES, CENTRE))
    grey = np.clip((blocks - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1) * 255
    for image, found in result["studies"].items():
        (structure,) = found["structures"]
        assert structure["clicks"] == [[*CENTRE, True]], image
        assert (found["asked"]["model"], found["asked"]["params"]["foreground"]) == ("ctsam3d_points", [CENTRE])
        mask = server_mask(site, image, structure["clicks"], "block", "ctsam3d_points")
        assert mask[tuple(CENTRE)] and structure["voxels"] == mask.sum(), image

        label, said = saved_label(site, image)
        assert np.array_equal(np.asanyarray(label.dataobj), mask * structure["value"]), image
        assert np.allclose(label.affine[:3, :3], AFFINES[image], atol=1e-5), image
        assert said["label_info"] == [{"name": "block", "idx": structure["value"]}]

        assert marks(result["out"] / f"{image}_mask.png") == 0  # the script has taken them away

        places = np.array(found["places"])
        for plane in range(3):
            rows = places[places[:, 0] == plane]
            ijk = tuple(rows[:, 3:].astype(int).T)
            assert len(rows) >= 36 * 40 * 0.9, (image, plane)
            seen = colours_at(result["out"] / f"{image}_scan.png", rows[:, 1:3]).mean(axis=1)
            assert np.corrcoef(seen, grey[ijk])[0, 1] > 0.97, (image, plane)
            tint = np.ptp(colours_at(result["out"] / f"{image}_mask.png", rows[:, 1:3]), axis=1) > 60
            assert 0 < mask[ijk].sum() < mask[ijk].size
            assert np.mean(tint == mask[ijk]) > 0.995, (image, plane)


@pytest.mark.parametrize("image", ["phantom", "ts_example"])
def test_a_study_from_sign_in_to_saved(site, drive, blocks, image):
    if image not in site.scans:
        pytest.skip("the real CT cases are not there")
    scan = site.scans[image]
    places = {"liver": scan.inside("liver"), "spleen": scan.inside("spleen"), "lesion": scan.inside("kidney_left")}
    one = server_mask(site, image, [[*places["liver"], True]], "liver")
    places["inside"] = [int(v) for v in np.argwhere(one)[one.sum() // 5]]
    write_volume(site.studies / f"after_{image}.nii.gz", scan.volume)
    result = drive("viewer_journey.mjs", image=image, **places)

    counts = result["counts"]
    assert marks(result["out"] / "clicked.png") > 100  # one in each plane
    both = server_mask(site, image, [[*places["liver"], True], [*places["inside"], False]], "liver")
    assert counts["one"] == one.sum() > 0
    assert re.search(r"\d s · server [\d.]+ s · 1 patch · confidence \d+ %", result["timing"])
    assert counts["two"] == both.sum() != counts["one"]
    assert (counts["undone"], counts["redone"], counts["nothing"]) == (counts["one"], counts["two"], 0)
    assert counts["again"] == counts["unspread"] == counts["one"]

    assert result["spreading"] == "liver: goes on spreading …"
    first, again = (asked["params"] for asked in result["asked"])
    assert first == again and first["expand"] is True

    assert result["model"] == "ctsam3d_points"
    assert "Begin my lesion with a positive click" in result["objection"]
    assert "click must be nice" in result["refused"] and "taken back" in result["refused"]
    assert "does not answer" in result["silent"] and result["taken_back"]

    saved, reloaded = ({s["name"]: s for s in result[key]} for key in ("saved", "reloaded"))
    assert result["status"] == "Saved 3 structures as the final label."
    assert reloaded.keys() == saved.keys() == {"liver", "spleen", "my lesion"}
    expected = np.zeros(scan.volume.shape_ijk, np.uint8)
    for name, structure in saved.items():  # the last one lies on top
        model = "ctsam3d" if name in VALUE_OF else "ctsam3d_points"
        expected[server_mask(site, image, structure["clicks"], name, model)] = structure["value"]
    label, said = saved_label(site, image)
    assert np.array_equal(np.asanyarray(label.dataobj), expected)
    assert np.allclose(label.affine, scan.volume.affine_ras_mm, atol=1e-4)
    assert {s["name"]: s["idx"] for s in said["label_info"]} == {
        "liver": VALUE_OF["liver"],
        "spleen": VALUE_OF["spleen"],
        "my lesion": len(VALUE_OF) + 1,
    }
    assert said["user"] == "reader"
    for name, structure in reloaded.items():
        assert structure["voxels"] == (expected == structure["value"]).sum() > 0
        assert {**structure, "voxels": 0} == {**saved[name], "voxels": 0}
    assert result["next"] != image
