"""Checkpoints: weights with everything needed to use them, in one safetensors file; import of the published ones."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
PEAK_THRESHOLD = 0.5  # of weights that say nothing of it: half the height of a click's map
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
        feedback: how often a session shows S its own answer as previous mask before it takes it. A click reaches about
            25 voxels in one pass, as the stages that see it are the fine ones; the published network has no more. With
            any such pass the last one of a clicked patch also sees three mirrors, see `Segmenter.decode`.
        peak_threshold: the height of a peak of P's heatmap from which on it counts as a click.
        sha256: of the tensors, independent of how the file lays them out.
        notes: anything else that should travel along (data, schedule, figures, left-out parameters).
    """

    network: SAM3D
    hu_window: tuple[float, float]
    spacing_mm: float = SPACING_MM
    labels: tuple[str, ...] = NAMES
    version: str = "unversioned"
    feedback: int = 0
    peak_threshold: float = PEAK_THRESHOLD
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
        "feedback": json.dumps(checkpoint.feedback),
        "peak_threshold": json.dumps(checkpoint.peak_threshold),
        "sha256": digest,
        "notes": json.dumps(checkpoint.notes),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return digest


@dataclass(frozen=True)
class About:
    """What a file says of its weights; see `Checkpoint`."""

    version: str
    sha256: str
    notes: dict


def read_about(path: str | os.PathLike) -> About:
    """What a checkpoint that `save` wrote says of itself; no tensor is read.

    Raises:
        ValueError: not one of ours, or not whole.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format must be {FORMAT!r}, got {metadata.get('format')!r}")
        notes = json.loads(metadata["notes"])
        return About(metadata["version"], metadata["sha256"], notes if isinstance(notes, dict) else {})
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error


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
    try:
        return _from_file(tensors, metadata, str(path))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"weights {path} must carry the metadata of {FORMAT!r}: {error!r}") from error


def _from_file(tensors: dict[str, torch.Tensor], metadata: dict[str, str], source: str) -> Checkpoint:
    digest = tensors_sha256(tensors)
    if digest != metadata["sha256"]:
        raise ValueError(f"weights {source} are damaged: SHA-256 {digest} is not the stored {metadata['sha256']}")
    network = build(NetworkConfig.from_dict(json.loads(metadata["config"])))
    _load_strictly(network, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, source)
    return Checkpoint(
        network=network.eval(),
        hu_window=check_hu_window(json.loads(metadata["hu_window"])),
        spacing_mm=float(json.loads(metadata["spacing_mm"])),
        labels=tuple(json.loads(metadata["labels"])),
        version=metadata["version"],
        feedback=int(json.loads(metadata.get("feedback", "0"))),  # files of 0.1.0 have none
        peak_threshold=float(json.loads(metadata.get("peak_threshold", json.dumps(PEAK_THRESHOLD)))),  # nor 0.2.0
        sha256=digest,
        notes=json.loads(metadata["notes"]),
    )


def combined(checkpoints: Sequence[Checkpoint], version: str) -> Checkpoint:
    """Networks beside each other whose logits are averaged (`model/members.py`); P and its threshold are the first's.

    Raises:
        ValueError: fewer than two, another HU window, spacing or number of feedback passes than the first's, or
            networks that have others beside them already.
    """
    if len(checkpoints) < 2:
        raise ValueError(f"checkpoints must be two or more, got {len(checkpoints)}")
    first = checkpoints[0]
    for name in ("hu_window", "spacing_mm", "feedback"):
        values = [getattr(own, name) for own in checkpoints]
        if len(set(values)) > 1:
            raise ValueError(f"checkpoints must have one {name}, got {values}")
    network = build(replace(first.network.config, beside=tuple(own.network.config for own in checkpoints[1:])))
    for part in ("encoder", "decoder"):
        for member, own in zip(getattr(network, part).members, checkpoints):
            member.load_state_dict(getattr(own.network, part).state_dict())
    network.cross_patch.load_state_dict(first.network.cross_patch.state_dict())
    labels = tuple(sorted({label for own in checkpoints for label in own.labels}))
    data = sorted({name for own in checkpoints for name in own.notes.get("data", ())})
    notes = {"data": data, "members": [{"version": own.version, "sha256": own.sha256} for own in checkpoints]}
    return replace(first, network=network.eval(), labels=labels, version=version, sha256="", notes=notes)


def path_of(weights: str | os.PathLike) -> Path:
    """The path of a .safetensors file, or of packaged weights by their name.

    Raises:
        FileNotFoundError: no weights of that name are packaged.
    """
    name = os.fspath(weights)
    return Path(name) if name.endswith(".safetensors") else packaged_path(name)


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
_UNUSED = {
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    *(f"mask_decoder.iou_prediction_head.layers.{n}.{kind}" for n in range(3) for kind in ("weight", "bias")),
}
_SECOND_MASK = ("mask_decoder.mask_prediction_head.0.weight", "mask_decoder.mask_prediction_head.0.bias")


def _published_prefixes() -> list[tuple[str, str]]:
    """(published, ours): the beginnings of the names of everything that is imported."""
    stem = "encoder.stages.0.embed."
    pairs = [(f"image_encoder.stem.proj.{n}.", f"{stem}{n}.") for n in (0, 1, 3, 4, 6)]
    pairs += [("image_encoder.stem.pos.pa_conv.", f"{stem}7.gate."), ("image_encoder.stem.norm.", f"{stem}8.")]
    for stage, blocks in enumerate(PRESETS["base"].blocks):
        published, ours = f"image_encoder.patch_{stage + 1}.", f"encoder.stages.{stage}.embed."
        if stage:
            parts = {"proj.": "0.", "pos.pa_conv.": "1.gate.", "norm.": "2."}
            pairs += [(published + theirs, ours + own) for theirs, own in parts.items()]
        for block in range(blocks):
            published, ours = f"image_encoder.stage{stage + 1}.{block}.", f"encoder.stages.{stage}.blocks.{block}."
            pairs += [(published + theirs, ours + own) for theirs, own in _BLOCK.items()]
        pairs.append((f"image_encoder.channel_mapper{stage + 1}.", f"encoder.skips.{stage}."))
    for stage in range(5):
        pairs.append((f"mask_decoder.upscale{stage + 1}.cna.", f"decoder.upscales.{stage}."))
        published, ours = f"mask_decoder.spade{stage + 1}.", f"decoder.blocks.{stage}."
        for n in (0, 1):
            pairs.append((f"{published}conv_{n}.", f"{ours}conv_{n + 1}."))
            for theirs, own in {"mlp_shared.0.": "shared.", "mlp_gamma.": "gamma.", "mlp_beta.": "beta."}.items():
                pairs.append((f"{published}norm_{n}.{theirs}", f"{ours}modulate_{n + 1}.{own}"))
    pairs.append(("mask_decoder.mask_prediction_head.0.", "decoder.head."))
    return [*pairs, ("cpp_predictor.", "cross_patch.unet.")]


_BLOCK = {
    "norm1.": "attention_norm.",
    "attn.q.": "attention.query.",
    "attn.kv.": "attention.key_value.",
    "attn.sr.": "attention.reduce.",
    "attn.sr_norm.": "attention.reduce_norm.",
    "attn.up_norm.": "attention.value_norm.",
    "attn.proj.": "attention.project.",
    "norm2.": "mlp_norm.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.2.",
}
_PREFIXES = _published_prefixes()


def rename_published(name: str) -> str | None:
    """Our name of a published parameter; None where there is none."""
    return next((ours + name.removeprefix(theirs) for theirs, ours in _PREFIXES if name.startswith(theirs)), None)


def published_name(name: str) -> str:
    """The published name of a parameter of ours, the inverse of `rename_published`."""
    return next(theirs + name.removeprefix(ours) for theirs, ours in _PREFIXES if name.startswith(ours))


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
    ours, left_out = _select_published(published, network, str(path))
    network.load_state_dict(ours)
    notes = {"source": "published CT-SAM3D checkpoint", "hu_window": window_source, "left_out": left_out}
    digest = tensors_sha256(network.state_dict())
    return Checkpoint(network.eval(), window, version=f"published-{digest[:8]}", sha256=digest, notes=notes)


def _select_published(published: dict, network: SAM3D, source: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What `network` needs of the published parameters, under our names, and the names of what it does without.

    Raises:
        ValueError: a missing, surplus or misshapen parameter, by its published name.
    """
    expected = {published_name(name): (name, tensor.shape) for name, tensor in network.state_dict().items()}
    missing = sorted(expected.keys() - published.keys())
    surplus = sorted(published.keys() - expected.keys() - _UNUSED)
    if missing or surplus:
        raise ValueError(f"parameters of {source} must be the published ones: missing {missing}, surplus {surplus}")
    ours, left_out = {}, sorted(_UNUSED & published.keys())
    for theirs, (name, shape) in expected.items():
        tensor = published[theirs]
        wanted = (2, *shape[1:]) if theirs in _SECOND_MASK else tuple(shape)
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != wanted:
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{theirs} of {source} must be a tensor of shape {wanted}, got {got}")
        if theirs in _SECOND_MASK:
            left_out.append(f"{theirs}[1:]")
            tensor = tensor[:1]
        if theirs.endswith("mlp_shared.0.weight"):
            tensor = tensor[:, [1, 2, 0]]  # published order of the prompts [Y, P, N], ours [P, N, Y]
        ours[name] = tensor.float() if tensor.is_floating_point() else tensor
    return ours, left_out


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
