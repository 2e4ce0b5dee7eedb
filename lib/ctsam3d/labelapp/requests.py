"""The request of a MONAI Label client, turned once into a checked, frozen `ClickRequest`. Pure: no files, no server.

Two dialects reach the same value:

* ``deepedit`` (model ``ctsam3d``): one key per label of the model, each with a list of clicks, and ``background``.
  Every label with clicks is a structure to segment; clicks of the other labels and of ``background`` are its negatives.
* ``deepgrow`` (model ``ctsam3d_points``): ``foreground`` and ``background`` for one structure of any name in ``label``.

Values in the reply: with a list of labels, the position in that list, from 1. That is what both viewers expect: OHIF
looks a value up in the ``labels`` of ``/info/``, Slicer takes the value-th name of ``label_names`` ordered by value, so
``label_names`` names every label of the model, whether it is in the reply or not. A structure of any name is 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ctsam3d.volume import check_click_ijk

BACKGROUND = "background"
EXTENSIONS = (".nrrd", ".nii.gz", ".nii")
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
MAX_CLICKS = 1000
MAX_WORK = 4000  # structures times clicks: every click of one structure is a negative of each other one
MAX_LABELS = 255  # values of a uint8 reply
MAX_NAME = 200
UNNAMED = "structure"

# What the viewers send beside clicks, and what MONAI Label adds. The address of the request decides on model, image,
# session and device, and nothing in its parameters can: those keys are read nowhere.
OPTION_KEYS = frozenset(
    "model image save session session_id device description label client_id expand result_extension result_dtype "
    "result_compress result_write_to_file result_box suggest restore_label_idx save_label label_tag label_info roi "
    "slice reset_state logging images gpus multi_gpu max_workers max_batch_size".split()
)

IJK = tuple[int, int, int]


class RequestError(ValueError):
    """A request that cannot be answered for a reason that lies with the client; `status` is the HTTP status."""

    def __init__(self, detail: str, status: int = 400):
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Structure:
    """One structure to segment: its clicks as voxel indices (i, j, k), and its value in the reply."""

    name: str
    value: int
    positive: tuple[IJK, ...]
    negative: tuple[IJK, ...]


@dataclass(frozen=True)
class ReplyOptions:
    """How the label map is written.

    Attributes:
        extension, dtype: of the file; NumPy's name of the type.
        compress: whether a .nrrd is gzipped, which ITK and so Slicer read; .nii.gz always is, .nii never.
        write_file: whether a file is wanted at all.
        box_only: whether it holds the smallest box with all labels, at its place in the world, not the whole image.
    """

    extension: str = ".nii.gz"
    dtype: str = "uint8"
    compress: bool = True
    write_file: bool = True
    box_only: bool = False


@dataclass(frozen=True)
class ClickRequest:
    """What a client asks for.

    Attributes:
        structures: in the order of their values, at least one, each with at least one positive click.
        label_names: (name, value) of every value that the reply may hold, in the order of the values.
        client: whose clicks these are; sessions are held per client.
        expand: whether a mask may grow into neighbouring patches.
        reply: how the label map is written.
        suggest: whether the reply says how sure the model is, and where least.
    """

    structures: tuple[Structure, ...]
    label_names: tuple[tuple[str, int], ...]
    client: str
    expand: bool
    reply: ReplyOptions
    suggest: bool = False


def decode_params(text: str | None) -> dict:
    """The form field ``params``, a JSON object; an absent or empty field counts as one without keys.

    Raises:
        ValueError: no JSON, or JSON that is no object.
    """
    if not text:
        return {}
    try:
        params = json.loads(text)
    except RecursionError as error:
        raise ValueError("params must be JSON, got brackets nested too deep") from error
    except ValueError as error:
        raise ValueError(f"params must be JSON, got {_short(text)}: {error}") from error
    if not isinstance(params, dict):
        raise ValueError(f"params must be a JSON object, got {_short(params)}")
    return params


def wants_saving(params: Mapping) -> bool:
    """Whether the label map of the reply is to be saved as the final label of the image, too.

    Raises:
        TypeError: neither true nor false.
    """
    return _flag(params, "save", False)


def parse_request(params: Mapping, labels: Sequence[str], shape_ijk: IJK, client: str) -> ClickRequest:
    """The checked request.

    Args:
        params: what the client sent, from JSON.
        labels: labels of the model, in order; empty: a structure of any name from ``foreground`` and ``background``.
        shape_ijk: shape of the image; every click must lie inside.
        client: token or address of the sender, used where `params` holds no ``client_id``.

    Raises:
        TypeError, ValueError: names key, rule and value.
    """
    structures = _labelled(params, labels, shape_ijk) if labels else (_named(params, shape_ijk),)
    names = labels or [structures[0].name]
    if params.get("save_label") in (True, "true", "True"):
        raise ValueError("save_label must not be set: use save, or PUT /datastore/label")
    return ClickRequest(
        structures=structures,
        label_names=tuple((name, value) for value, name in enumerate(names, start=1)),
        client=_client(params.get("client_id"), client),
        expand=_flag(params, "expand", True),
        reply=_reply_options(params),
        suggest=_flag(params, "suggest", False),
    )


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels of a model: at least one, distinct, and none that is a key of its own in a request.

    Raises:
        ValueError: names the label and the rule.
    """
    names = tuple(str(label).strip() for label in labels)
    if not any(names):
        raise ValueError("labels must hold at least one name, got none")
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"labels must hold no empty name, got {', '.join(map(repr, names))}")
        if name in names[:index]:
            raise ValueError(f"labels must be distinct, got {name!r} twice")
        if name in OPTION_KEYS or name in (BACKGROUND, "foreground"):
            raise ValueError(f"labels must not hold {name!r}, which has another meaning in a request")
    if len(names) > MAX_LABELS:
        raise ValueError(f"labels must hold at most {MAX_LABELS} names, got {len(names)}")
    return names


# ---- clicks --------------------------------------------------------------------------------------------------------


def _labelled(params: Mapping, labels: Sequence[str], shape_ijk: IJK) -> tuple[Structure, ...]:
    """Structures of the deepedit dialect, in the order of `labels`."""
    _check_keys(params, {*labels, BACKGROUND}, f"a label of this model ({_some(labels)}) or {BACKGROUND}")
    clicks = {label: _clicks(params, label, shape_ijk) for label in (*labels, BACKGROUND) if params.get(label)}
    _check_counts(clicks)
    background = clicks.pop(BACKGROUND, ())
    if not clicks:
        raise ValueError(f"params must hold at least one positive click under a label ({_some(labels)}), got none")
    work = len(clicks) * (sum(map(len, clicks.values())) + len(background))
    if work > MAX_WORK:
        raise ValueError(f"params must hold at most {MAX_WORK} clicks times structures, got {work}")
    structures = []
    for value, label in enumerate(labels, start=1):
        if label in clicks:
            others = [click for other in clicks if other != label for click in clicks[other]]
            structures.append(Structure(label, value, clicks[label], (*others, *background)))
    return tuple(structures)


def _named(params: Mapping, shape_ijk: IJK) -> Structure:
    """The structure of the deepgrow dialect."""
    _check_keys(params, {"foreground", BACKGROUND}, f"foreground or {BACKGROUND}")
    clicks = {key: _clicks(params, key, shape_ijk) for key in ("foreground", BACKGROUND) if params.get(key)}
    _check_counts(clicks)
    if "foreground" not in clicks:
        raise ValueError("foreground must hold at least one positive click, got none")
    name = params.get("label")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"label must be the name of a structure, got {_short(name)}")
    if name and len(name) > MAX_NAME:
        raise ValueError(f"label must have at most {MAX_NAME} characters, got {len(name)}")
    return Structure(name or UNNAMED, 1, clicks["foreground"], clicks.get(BACKGROUND, ()))


def _check_keys(params: Mapping, known: set[str], rule: str) -> None:
    """No key beside `known` and the options may hold what looks like clicks: a wrong name must not lose them."""
    for key, value in params.items():
        if key not in known and key not in OPTION_KEYS and isinstance(value, (list, tuple)) and value:
            raise ValueError(f"key {_short(key)} must be {rule}, as it holds a list: {_short(value)}")


def _clicks(params: Mapping, key: str, shape_ijk: IJK) -> tuple[IJK, ...]:
    value = params[key]
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{key} must be a list of clicks [i, j, k], got {_short(value)}")
    if len(value) > MAX_CLICKS:
        raise ValueError(f"{key} must hold at most {MAX_CLICKS} clicks, got {len(value)}")
    return tuple(check_click_ijk(click, shape_ijk, f"click {key}[{n}]") for n, click in enumerate(value))


def _check_counts(clicks: Mapping[str, tuple[IJK, ...]]) -> None:
    """At most `MAX_CLICKS` in all, and no voxel that two keys claim."""
    total = sum(map(len, clicks.values()))
    if total > MAX_CLICKS:
        raise ValueError(f"params must hold at most {MAX_CLICKS} clicks, got {total}")
    owners: dict[IJK, str] = {}
    for key, points in clicks.items():
        for index, click in enumerate(points):
            owner = owners.setdefault(click, key)
            if owner != key:
                raise ValueError(f"click {key}[{index}] {click} must belong to one key, it is also in {owner}")


# ---- options -------------------------------------------------------------------------------------------------------


def _client(client_id, fallback: str) -> str:
    if client_id is None or client_id == "":
        return fallback
    if isinstance(client_id, bool) or not isinstance(client_id, (str, int)):
        raise TypeError(f"client_id must be a string, got {_short(client_id)}")
    if len(str(client_id)) > MAX_NAME:
        raise ValueError(f"client_id must have at most {MAX_NAME} characters, got {len(str(client_id))}")
    return f"id:{client_id}"


def _reply_options(params: Mapping) -> ReplyOptions:
    extension = params.get("result_extension") or ReplyOptions.extension
    if extension not in EXTENSIONS:
        raise ValueError(f"result_extension must be one of {', '.join(EXTENSIONS)}, got {_short(extension)}")
    dtype = params.get("result_dtype") or ReplyOptions.dtype
    if dtype not in DTYPES:
        raise ValueError(f"result_dtype must be one of {', '.join(DTYPES)}, got {_short(dtype)}")
    compress = _flag(params, "result_compress", ReplyOptions.compress)
    write_file, box_only = _flag(params, "result_write_to_file", True), _flag(params, "result_box", False)
    return ReplyOptions(extension, dtype, compress, write_file, box_only)


def _flag(params: Mapping, key: str, default: bool) -> bool:
    value = params.get(key)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise TypeError(f"{key} must be true or false, got {_short(value)}")
    return value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, … {len(names)} in all"


def _short(value, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
