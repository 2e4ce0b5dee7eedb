"""A click the way that the sample apps of MONAI Label answer it: the whole volume at every click.

The steps are those of its radiology app (`segmentation_spleen.py`), with MONAI's transforms and MONAI Label's own
`Restored` and `Writer`; the network and the patch are ours, so that both ways run the same inference.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from monailabel.transform.post import Restored
from monailabel.transform.writer import Writer

from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import prompt_maps
from ctsam3d.segmenter import Segmenter

_REPLY = {"result_extension": ".nii.gz", "result_dtype": np.uint8, "logging": "WARNING"}


def sample_app_click(segmenter: Segmenter, image: str | os.PathLike, click_ijk) -> tuple[Path, dict[str, float]]:
    """Load, reorient, resample, infer, restore and write, all of the volume.

    Args:
        image: a NIfTI at least a patch (96 mm) long along each axis.
        click_ijk: a positive click, voxel index of the file.

    Returns:
        The label map's file (.nii.gz), which the caller deletes, and seconds per step and in all.
    """
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    data = {"image": str(image)}
    with step("load"):
        data = Compose([LoadImaged(keys="image"), EnsureChannelFirstd(keys="image")])(data)
    with step("resample"):
        spacing_mm = (segmenter.info.spacing_mm,) * 3
        data = Compose([Orientationd(keys="image", axcodes="RAS"), Spacingd(keys="image", pixdim=spacing_mm)])(data)
    with step("infer"):
        data["pred"] = _infer(segmenter, data["image"], click_ijk)
    with step("restore"):
        data = Restored(keys="pred", ref_image="image")(data)
    with step("write"):
        file, _ = Writer(label="pred")({**data, **_REPLY})
    return Path(file), {**seconds, "total": sum(seconds.values())}


def _infer(segmenter: Segmenter, image: MetaTensor, click_ijk) -> torch.Tensor:
    """The mask (1, X, Y, Z) of one patch around the click, put into the resampled volume (1, X, Y, Z).

    The patch keeps the axes of the volume; the network takes as long in any frame.
    """
    original = np.asarray(image.meta["original_affine"], np.float64)
    click = np.linalg.solve(np.asarray(image.affine, np.float64), original @ [*click_ijk, 1.0])[:3].round().astype(int)
    start = [min(max(c - PATCH_SIZE // 2, 0), n - PATCH_SIZE) for c, n in zip(click, image.shape[1:])]
    patch = (0, *(slice(a, a + PATCH_SIZE) for a in start))
    features = segmenter.encode(image.array[patch])
    click_in_patch = tuple(int(c) - a for c, a in zip(click, start))
    probability = segmenter.decode(features, prompt_maps([click_in_patch], [], None, (PATCH_SIZE,) * 3))
    out = torch.zeros(image.shape, dtype=torch.float32)
    out[patch] = torch.from_numpy((probability > 0.5).astype(np.float32))
    return out
