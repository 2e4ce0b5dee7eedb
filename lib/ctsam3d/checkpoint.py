"""Checkpoints: weights with everything needed to use them, in one safetensors file; import of the published ones."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ctsam3d.data.files import atomic_path
from ctsam3d.data.labels import NAMES
from ctsam3d.model.build import PRESETS, SPACING_MM, NetworkConfig, build
from ctsam3d.model.sam3d import SAM3D

FORMAT = "ctsam3d-1"
PUBLISHED_HU_WINDOW = (-125.0, 225.0)  # in a third party's copy of the published config.py


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network and how to feed it.

    Attributes:
        network: in eval mode, float32.
        hu_window: HU that become 0 and 1; what lies outside is clipped.
        spacing_mm: edge of a model voxel.
        labels: names that the weights were trained on.
        version: a name for these weights, given by whoever saved them.
        sha256: of the tensors, independent of how the file lays them out.
        notes: anything else that should travel along (data, schedule, figures, left-out parameters).
    """

    network: SAM3D
    hu_window: tuple[float, float]
    spacing_mm: float = SPACING_MM
    labels: tuple[str, ...] = NAMES
    version: str = "unversioned"
    sha256: str = ""
    notes: dict = field(default_factory=dict)


def check_hu_window(hu_window) -> tuple[float, float]:
    """The window as two floats.

    Raises:
        ValueError: not two finite numbers, or not increasing.
    """
    try:
        low, high = (float(v) for v in hu_window)
    except (TypeError, ValueError):
        raise ValueError(f"hu_window must be two numbers (low, high) in HU, got {hu_window!r}") from None
    if not (-1e6 < low < high < 1e6):
        raise ValueError(f"hu_window must be finite and increasing, got {(low, high)}")
    return low, high


def save(path: str | os.PathLike, checkpoint: Checkpoint, half: bool = False) -> str:
    """Write `checkpoint` to `path` (atomically) and return the SHA-256 of its tensors.

    Args:
        half: store floating-point tensors as float16, half the size.
    """
    tensors = {}
    for name, tensor in checkpoint.network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor.clone()
    digest = tensors_sha256(tensors)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(checkpoint.network.config.as_dict()),
        "hu_window": json.dumps(list(check_hu_window(checkpoint.hu_window))),
        "spacing_mm": json.dumps(checkpoint.spacing_mm),
        "labels": json.dumps(list(checkpoint.labels)),
        "version": checkpoint.version,
        "sha256": digest,
        "notes": json.dumps(checkpoint.notes),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return digest


def load(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of ours, damaged, or with a missing or surplus parameter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be an existing .safetensors file, got {path}")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {path} cannot be read as safetensors: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"weights {path} must have the format {FORMAT!r}, got {metadata.get('format')!r}")
    digest = tensors_sha256(tensors)
    if digest != metadata["sha256"]:
        raise ValueError(f"weights {path} are damaged: SHA-256 {digest} is not the stored {metadata['sha256']}")
    network = build(NetworkConfig.from_dict(json.loads(metadata["config"])))
    _load_strictly(network, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, str(path))
    return Checkpoint(
        network=network.eval(),
        hu_window=check_hu_window(json.loads(metadata["hu_window"])),
        spacing_mm=float(json.loads(metadata["spacing_mm"])),
        labels=tuple(json.loads(metadata["labels"])),
        version=metadata["version"],
        sha256=digest,
        notes=json.loads(metadata["notes"]),
    )


def packaged_path(name: str = "default") -> Path:
    """The path of weights that come with the package.

    Raises:
        FileNotFoundError: no weights of that name are packaged.
    """
    folder = Path(str(resources.files("ctsam3d"))) / "weights"
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"weights must be a .safetensors file or a packaged name ({known}), got {name!r}")
    return path


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_strictly(network: SAM3D, tensors: dict[str, torch.Tensor], source: str) -> None:
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise ValueError(f"parameters of {source} must match the network: missing {missing}, surplus {surplus}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise ValueError(f"{name} of {source} must have shape {tuple(expected[name])}, got {tuple(tensor.shape)}")
    network.load_state_dict(tensors)


# --- the published checkpoint ------------------------------------------------------------------------------------

# Parameters of the published network that take no part in the mask: left out by name, everything else must match.
_UNUSED = re.compile(r"prompt_encoder\.pe_layer\.|mask_decoder\.iou_prediction_head\.")
_SECOND_MASK = ("mask_decoder.mask_prediction_head.0.weight", "mask_decoder.mask_prediction_head.0.bias")

_RENAMES = [  # (pattern of the published name, ours); \1 - 1 where a number follows a "-"
    (r"image_encoder\.stem\.proj\.(\d)\.", r"encoder.stages.0.embed.\1."),
    (r"image_encoder\.stem\.pos\.pa_conv\.", r"encoder.stages.0.embed.7.gate."),
    (r"image_encoder\.stem\.norm\.", r"encoder.stages.0.embed.8."),
    (r"image_encoder\.patch_(\d)\.proj\.", r"encoder.stages.-\1.embed.0."),
    (r"image_encoder\.patch_(\d)\.pos\.pa_conv\.", r"encoder.stages.-\1.embed.1.gate."),
    (r"image_encoder\.patch_(\d)\.norm\.", r"encoder.stages.-\1.embed.2."),
    (r"image_encoder\.stage(\d)\.(\d)\.", r"encoder.stages.-\1.blocks.\2."),
    (r"image_encoder\.channel_mapper(\d)\.", r"encoder.skips.-\1."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.q\.", ".attention.query."),
    (r"\.attn\.kv\.", ".attention.key_value."),
    (r"\.attn\.sr\.", ".attention.reduce."),
    (r"\.attn\.sr_norm\.", ".attention.reduce_norm."),
    (r"\.attn\.up_norm\.", ".attention.value_norm."),
    (r"\.attn\.proj\.", ".attention.project."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
    (r"mask_decoder\.upscale(\d)\.cna\.", r"decoder.upscales.-\1."),
    (r"mask_decoder\.spade(\d)\.", r"decoder.blocks.-\1."),
    (r"\.norm_0\.", ".modulate_1."),
    (r"\.norm_1\.", ".modulate_2."),
    (r"\.conv_1\.(?=weight|bias)", ".conv_2."),
    (r"\.conv_0\.", ".conv_1."),
    (r"\.mlp_shared\.0\.", ".shared."),
    (r"\.mlp_gamma\.", ".gamma."),
    (r"\.mlp_beta\.", ".beta."),
    (r"mask_decoder\.mask_prediction_head\.0\.", "decoder.head."),
    (r"cpp_predictor\.", "cross_patch.unet."),
]


def import_published(
    path: str | os.PathLike, hu_window=None, config_path: str | os.PathLike | None = None
) -> Checkpoint:
    """The network of the paper's authors, from their ``params.pth``.

    Args:
        path: a file whose entry ``model_state_dict`` holds the parameters; no code in it is run.
        hu_window: (low, high) in HU. Default: read from `config_path`.
        config_path: the published ``config.py`` (parsed, never run). Default: the one beside `path`, if there is one;
            without any, (-125, 225) with a warning.

    Returns:
        A checkpoint of the preset "base"; ``notes["left_out"]`` lists the published parameters it does without.

    Raises:
        FileNotFoundError, ValueError: unreadable, or a missing, surplus or misshapen parameter, named.
    """
    path = Path(path)
    published = _read_published(path)
    window, window_source = _published_window(path, hu_window, config_path)
    network = build(PRESETS["base"])
    ours, left_out = {}, []
    for name, tensor in published.items():
        if _UNUSED.match(name):
            left_out.append(name)
            continue
        if name in _SECOND_MASK:
            left_out.append(f"{name}[1:]")
            tensor = tensor[:1]
        if name.endswith("mlp_shared.0.weight"):
            tensor = tensor[:, [1, 2, 0]]  # published order of the prompts [Y, P, N], ours [P, N, Y]
        ours[rename_published(name)] = tensor.float() if tensor.is_floating_point() else tensor
    _load_strictly(network, ours, str(path))
    notes = {"source": "published CT-SAM3D checkpoint", "hu_window": window_source, "left_out": left_out}
    digest = tensors_sha256(network.state_dict())
    return Checkpoint(network.eval(), window, version=f"published-{digest[:8]}", sha256=digest, notes=notes)


def rename_published(name: str) -> str:
    """Our name of a published parameter; a name that is not known comes back as it is."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\.-(\d)\.", lambda match: f".{int(match[1]) - 1}.", name)


def _read_published(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"path must be an existing params.pth, got {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"path {path} cannot be read as PyTorch weights: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise ValueError(f"path {path} must hold a dictionary with the entry 'model_state_dict'")
    state = content["model_state_dict"]
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _published_window(path: Path, hu_window, config_path) -> tuple[tuple[float, float], str]:
    if hu_window is not None:
        return check_hu_window(hu_window), "given by the caller"
    beside = path.with_name("config.py")
    if config_path is None and not beside.is_file():
        warnings.warn(
            f"no hu_window given and no config.py beside {path}: taking {PUBLISHED_HU_WINDOW} HU", stacklevel=3
        )
        return PUBLISHED_HU_WINDOW, "assumed"
    config = Path(config_path) if config_path is not None else beside
    return read_config_window(config), f"read from {config.name}"


def read_config_window(config_path: str | os.PathLike) -> tuple[float, float]:
    """``dataset.normalization_params.min_value`` and ``max_value`` of a published config.py, which is not executed.

    Raises:
        ValueError: no Python syntax, or not exactly these two numbers in it.
    """
    path = Path(config_path)
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"config_path {path} is not readable Python: {error}") from error
    found: dict[str, float] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _collect_values(_dotted(target), node.value, found)
    bounds = [found.get(f"normalization_params.{name}") for name in ("min_value", "max_value")]
    if None in bounds:
        raise ValueError(f"config_path {path} must set normalization_params.min_value and .max_value to numbers")
    return check_hu_window(bounds)


def _dotted(node: ast.expr) -> list[str]:
    """``__C.dataset.x`` and ``cfg["dataset"].x`` as a list of names."""
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [*_dotted(node.value), str(node.slice.value)]
    return [node.id] if isinstance(node, ast.Name) else []


def _collect_values(names: list[str], value: ast.expr, found: dict[str, float]) -> None:
    """Note every number under its last two names, descending into dictionary literals and keyword calls."""
    if isinstance(value, ast.Dict):
        for key, item in zip(value.keys, value.values):
            if isinstance(key, ast.Constant):
                _collect_values([*names, str(key.value)], item, found)
    elif isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg:
                _collect_values([*names, keyword.arg], keyword.value, found)
        for item in value.args:
            _collect_values(names, item, found)
    else:
        try:
            number = ast.literal_eval(value)
        except ValueError:
            return
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            found[".".join(names[-2:])] = float(number)
