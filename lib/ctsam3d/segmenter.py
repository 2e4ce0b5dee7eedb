"""The network on a device, with its preprocessing: patches in HU go in, probabilities and heatmaps come out."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from ctsam3d import checkpoint
from ctsam3d.model.build import PATCH_SIZE
from ctsam3d.model.prompts import previous_map, prompt_maps
from ctsam3d.resample import scale_hu
from ctsam3d.session import Session
from ctsam3d.volume import Box, Volume

FEATURE_BYTES = 256 * 2**20  # of the patches whose features are kept, over all scans
BATCH = {"cpu": 1, "cuda": 26}  # neighbours that P looks at at once; on a CPU more are no faster

PRECISIONS = ("auto", "float32")
MIRRORS = ((), (2,), (3,), (4,))  # axes of a volume (B, C, D, H, W) that a view of it has reversed; the first is itself

Features = tuple[Tensor, ...]  # four, of one view or of all `MIRRORS`, (V, C, d, h, w) each


def load(weights: str | os.PathLike = "default", device: str = "cpu", precision: str = "auto") -> Segmenter:
    """A segmenter from packaged weights (by name) or from a .safetensors file.

    Args:
        precision: see `Segmenter`.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights that cannot be used, a device that is not there, or an unknown precision.
    """
    check_precision(precision)
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu' or 'cuda[:n]', got {device!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device must be 'cpu' or an available 'cuda[:n]', got {str(device)!r}")
    return Segmenter(checkpoint.load(checkpoint.path_of(weights)), device, precision)


def click_passes(feedback: int) -> int:
    """Passes of the decoder that a click takes, the mirrors among them, with the weights' `feedback`."""
    return 1 + feedback + (len(MIRRORS) - 1 if feedback else 0)


def check_precision(precision: str) -> str:
    """Raises ValueError where it is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def fast_type(device: torch.device) -> torch.dtype:
    """What S is fastest in: bfloat16 where the device computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


class Segmenter:
    """A network on a device, with the preprocessing that its weights ask for.

    Args:
        precision: "auto": S computes in `fast_type`; "float32": the same on every machine. P, whose heatmap is a small
            difference of large numbers, and random Fourier features always take float32.

    Attributes:
        info: the checkpoint: version, HU window, spacing, labels.
        dtype: what S computes in.
        batch: neighbours that P looks at at once.
    """

    def __init__(self, info: checkpoint.Checkpoint, device: torch.device | str = "cpu", precision: str = "auto"):
        self.info = info
        self.device = torch.device(device)
        exact = check_precision(precision) == "float32" or info.network.config.prompt == "rff"  # it blurs their phases
        self.dtype = torch.float32 if exact else fast_type(self.device)
        self.batch = BATCH.get(self.device.type, 1)
        network = info.network if self.dtype == torch.float32 else copy.deepcopy(info.network)  # `info` stays exact
        self.network = network.to(self.device, memory_format=torch.channels_last_3d).eval()
        for part in (self.network.encoder, self.network.decoder):
            part.to(self.dtype)
        self._features = _FeatureCache(FEATURE_BYTES)

    def session(self, volume: Volume, expand: bool = True) -> Session:
        """A new structure to click in `volume`.

        Args:
            expand: whether a click spreads to the patches around its own.
        """
        return Session(self, volume, expand)

    def warm_up(self) -> None:
        """Runs every part of the network once on an empty patch, so that the first click does not pay for beginning."""
        hu, click = np.zeros((PATCH_SIZE,) * 3, np.float32), (PATCH_SIZE // 2,) * 3
        self.decode(self.encode(hu), prompt_maps([click], [], None, hu.shape))
        self.propose(hu, hu > 0, hu, (0, 0, PATCH_SIZE // 2))

    @torch.inference_mode()
    def encode(self, hu_zyx: np.ndarray, mirrored: bool = False) -> Features:
        """Features of a patch (D, H, W) in HU.

        Args:
            mirrored: those of its mirrors too, where the weights take further passes; `decode` then uses them.
        """
        image = torch.from_numpy(scale_hu(hu_zyx, self.info.hu_window))[None, None]
        views = MIRRORS if mirrored and self.info.feedback else MIRRORS[:1]
        found = [self.network.encode(self._on_device(image.flip(axes)).to(self.dtype)) for axes in views]
        return tuple(torch.cat(stage) for stage in zip(*found))

    def features(
        self, volume: Volume, box_zyx: Box, crop: Callable[[], np.ndarray], mirrored: bool = False
    ) -> Features:
        """The features of a patch of a scan, kept for whoever clicks in it next, on whatever structure.

        Args:
            box_zyx: on the scan's model grid.
            crop: gives the patch in HU where its features are not there.
            mirrored: see `encode`.
        """
        mirrored = mirrored and bool(self.info.feedback)
        return self._features.get(volume, (box_zyx, mirrored), lambda: self.encode(crop(), mirrored))

    @torch.inference_mode()
    def decode(self, features: Features, prompts: Tensor) -> np.ndarray:
        """Probability (D, H, W), float32, from features and prompt maps (3, D, H, W).

        With as many further passes as the weights ask for, each with the answer before it as previous mask. The last
        pass sees every view that `features` has, and their logits are averaged.
        """
        maps = self._on_device(prompts[None])
        for _ in range(self.info.feedback):
            answer = torch.sigmoid(self._logits(features, maps, MIRRORS[:1]))
            maps = self._on_device(torch.cat([maps[:, :2], previous_map(answer)], dim=1))
        answer = torch.sigmoid(self._logits(features, maps, MIRRORS[: len(features[0])]))
        return answer[0, 0].cpu().numpy()

    def _logits(self, features: Features, maps: Tensor, views: Sequence[tuple[int, ...]]) -> Tensor:
        """Float32 (1, 1, D, H, W), the mean over the first views of `features`."""
        total = 0.0
        for number, axes in enumerate(views):
            own = tuple(stage[number : number + 1] for stage in features)
            logits = self.network.decode(own, self._on_device(maps.flip(axes)).to(self.dtype))
            total = total + logits.float().flip(axes)
        return total / len(views)

    def propose(
        self,
        hu_zyx: np.ndarray,
        mask_zyx: np.ndarray,
        neighbour_hu_zyx: np.ndarray,
        offset_zyx: tuple[int, int, int],
    ) -> np.ndarray:
        """P's raw heatmap (D, H, W) of a neighbour, from a patch in HU, its bool mask, and the neighbour in HU.

        Args:
            offset_zyx: voxels from the patch's first one to the neighbour's.
        """
        return self.propose_batch(hu_zyx, mask_zyx, [neighbour_hu_zyx], [offset_zyx])[0]

    @torch.inference_mode()
    def propose_batch(self, hu_zyx, mask_zyx, neighbours_hu_zyx: Sequence, offsets_zyx: Sequence) -> np.ndarray:
        """`propose` for several neighbours of one patch, (B, D, H, W)."""
        count = len(neighbours_hu_zyx)
        patches = np.stack([scale_hu(hu, self.info.hu_window) for hu in (hu_zyx, *neighbours_hu_zyx)])[:, None]
        image, others = torch.from_numpy(patches).split([1, count])
        mask = torch.from_numpy(mask_zyx.astype(np.float32))[None, None]
        whole = [tensor.expand(count, -1, -1, -1, -1) for tensor in (image, mask)]
        heatmaps = self.network.propose(*map(self._on_device, (*whole, others)), torch.tensor([*offsets_zyx]))
        return heatmaps[:, 0].float().cpu().numpy()

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device).contiguous(memory_format=torch.channels_last_3d)


class _FeatureCache:
    """Features by scan and what part of it, those used last; a scan that nobody holds any more takes its own along."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[tuple[int, Hashable], Features] = OrderedDict()
        self._scans: set[int] = set()
        self._lock = threading.RLock()  # a scan may be freed, and its finaliser run, at any moment

    def get(self, volume: Volume, part: Hashable, make: Callable[[], Features]) -> Features:
        """The features of a part of a scan; `make` gives them where they are not there."""
        key = id(volume), part
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        features = make()
        with self._lock:
            if id(volume) not in self._scans:
                self._scans.add(id(volume))
                weakref.finalize(volume, _forget, weakref.ref(self), id(volume))
            if key not in self._entries:
                self._entries[key] = features
                self._bytes += _nbytes(features)
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                gone = _nbytes(self._entries.popitem(last=False)[1])  # a finaliser may change the sum while this runs
                self._bytes -= gone
        return features

    def forget(self, scan: int) -> None:
        with self._lock:
            self._scans.discard(scan)
            for key in [key for key in self._entries if key[0] == scan]:
                gone = _nbytes(self._entries.pop(key))
                self._bytes -= gone


def _forget(cache: weakref.ref, scan: int) -> None:
    """Takes the features of a scan that is gone, where the cache is still there: a scan must not keep it alive."""
    if (own := cache()) is not None:
        own.forget(scan)


def _nbytes(features: Features) -> int:
    return sum(stage.nbytes for stage in features)
