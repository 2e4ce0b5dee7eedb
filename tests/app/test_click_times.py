"""Click times over HTTP and in a sample app's way, on a coarse version of the large scan. No test bounds a time."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctsam3d.data.io import write_volume
from ctsam3d.labelapp.click_times import STRUCTURES, benchmark_http, make_large_scan
from ctsam3d.labelapp.local_server import copy_app
from ctsam3d.labelapp.sample_app import sample_app_click
from ctsam3d.segmenter import load

APP = Path(__file__).parents[2] / "apps" / "ctsam3d"


@pytest.fixture(scope="module")
def scan():
    return make_large_scan(zoom=1)


def test_large_scan_is_the_same_body_on_a_finer_grid(scan):
    assert scan.volume.shape_ijk == (128, 128, 150)
    assert scan.volume.spacing_ijk_mm == pytest.approx((3.12, 3.12, 4.0))
    assert scan.volume.array_ijk.dtype == np.int16
    fine = make_large_scan(zoom=2)
    assert fine.volume.shape_ijk == (256, 256, 300)
    assert fine.volume.spacing_ijk_mm == pytest.approx((1.56, 1.56, 2.0))
    assert np.array_equal(fine.volume.array_ijk, make_large_scan(zoom=2).volume.array_ijk)
    noise = fine.volume.array_ijk[::2, ::2, ::2].astype(int) - scan.volume.array_ijk
    assert 0 < np.abs(noise).max() <= 40
    assert set(scan.clicks_ijk) == set(STRUCTURES)
    for name, clicks in scan.clicks_ijk.items():
        assert len(set(clicks)) == 2
        assert fine.clicks_ijk[name] == tuple(tuple(2 * v + 1 for v in click) for click in clicks)
        for click in clicks:
            assert -60 < scan.volume.array_ijk[click] < 300, name  # soft tissue, bowel contents or contrast


def test_sample_app_click_puts_its_patch_back_onto_the_scan(scan, tmp_path):
    path, click = tmp_path / "scan.nii.gz", scan.clicks_ijk["liver"][0]
    write_volume(path, scan.volume)
    file, seconds = sample_app_click(load("default"), path, click)
    image = nib.load(file)
    labels = np.asanyarray(image.dataobj)
    file.unlink()
    assert labels.shape == scan.volume.shape_ijk and set(np.unique(labels)) == {0, 1}
    assert np.allclose(image.affine, scan.volume.affine_ras_mm, atol=1e-4)
    found = np.argwhere(labels)
    assert np.abs((found - click) * scan.volume.spacing_ijk_mm).max() <= 48 + 4  # half a patch, and rounding
    assert labels[click] == 1
    steps = {step: value for step, value in seconds.items() if step != "total"}
    assert list(steps) == ["load", "resample", "infer", "restore", "write"]
    assert seconds["total"] == pytest.approx(sum(steps.values()))


@pytest.mark.long
def test_rows_over_http(tmp_path):
    app = copy_app(APP, tmp_path / "app")
    with open(app / "main.py", "a", encoding="utf-8") as main:
        main.write("\nfrom ctsam3d import expansion\nexpansion.BUDGET = 3\n")  # patches a click, to be done sooner
    tables = benchmark_http(app, repeats=1, zoom=1)
    kinds = ["first, image not read", "first", "next", "no new click"]
    assert {(row["expand"], row["click"]) for row in tables["http"]} == {(e, k) for e in (False, True) for k in kinds}
    voxels_mb = 128 * 128 * 150 / 1e6
    for row in tables["http"]:
        assert 0 < row["decode s"] < row["click s"] or row["click"] == "no new click"
        assert 0 < row["reply MB"] < voxels_mb / 10
    assert [row["structures"] for row in tables["memory"]] == [0, 1, 5] * 2
    assert all(row["RSS MB"] > 100 for row in tables["memory"])
    (row,) = tables["sample app"]
    first = next(r for r in tables["http"] if not r["expand"] and r["click"] == "first")
    assert row["over first click, one patch x"] == pytest.approx(row["total s"] / first["click s"])
