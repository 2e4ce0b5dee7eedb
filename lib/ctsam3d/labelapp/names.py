"""What a client may call things: ids of images, tags of labels, ids of sessions, names of files. Pure.

Everything that becomes part of a path passes here. An id is never a path; a new one, which names a file, is held to
plain characters, while one that only looks something up may be any single name, as the folder may hold such files.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Sequence

from ctsam3d.labelapp.requests import RequestError

STORED_SUFFIXES = (".nii.gz", ".nii", ".nrrd")  # of images and labels in the studies folder; one file each
FINAL = "final"
MAX_ID_BYTES = 200  # a file name has at most 255, and temporary names add to it
_MAX_TAG = 64
_MAX_DEPTH = 50

_PLAIN_ID = re.compile(r"\w[\w .,:=@+()\[\]-]*", re.UNICODE)
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_image_id(image: str, argument: str = "image") -> str:
    """An id that may be looked up: one name, no path.

    Raises:
        RequestError: empty, too long, hidden, with a separator, or with characters that cannot be printed.
    """
    if not image:
        raise RequestError(f"{argument} must be the id of an image, got none")
    if len(image.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise RequestError(f"{argument} must be the id of an image of at most {MAX_ID_BYTES} bytes, got {len(image)}")
    if image.startswith(".") or any(c in "/\\" or not c.isprintable() for c in image):
        raise RequestError(f"{argument} must be the id of an image, not a path, got {image!r}")
    return image


def check_new_id(image: str, argument: str = "image") -> str:
    """An id that may name a new file.

    Raises:
        RequestError: as `check_image_id`, or with characters beyond letters, digits, spaces and ``_.,:=@+()[]-``.
    """
    check_image_id(image, argument)
    if not _PLAIN_ID.fullmatch(image) or ".." in image or image != image.rstrip(" ."):
        raise RequestError(f"{argument} must be letters, digits, spaces and _.,:=@+()[]-, got {image!r}")
    if image.lower().endswith(STORED_SUFFIXES):
        raise RequestError(f"{argument} must be an id without the extension of a file, got {image!r}")
    return image


def check_tag(tag: str) -> str:
    """The tag of a label, which names a folder; an empty one is `FINAL`.

    Raises:
        RequestError: anything but letters, digits, ``_`` and ``-``, or too long.
    """
    if not tag:
        return FINAL
    if not _TAG.fullmatch(tag) or len(tag) > _MAX_TAG:
        raise RequestError(f"tag must be at most {_MAX_TAG} letters, digits, _ and -, got {tag[:80]!r}")
    return tag


def check_session_id(session_id: str) -> str:
    """An id as the server gives them out.

    Raises:
        RequestError: status 404, it cannot be one.
    """
    with contextlib.suppress(ValueError):
        if str(uuid.UUID(session_id)) == session_id:
            return session_id
    raise RequestError(f"session_id must be that of a session in use, got {session_id[:80]!r}", status=404)


def suffix_of(filename: str | None, suffixes: Sequence[str], argument: str) -> str:
    """The extension of an uploaded file, in lower case: all of its name that is ever used.

    Clients send whole paths of their own; that is harmless, but a name that climbs upwards is no accident.

    Raises:
        RequestError: another extension, ``..`` in the path, or characters that cannot be printed.
    """
    name = filename or ""
    if ".." in re.split(r"[/\\]", name) or not name.isprintable():
        raise RequestError(f"{argument} must have an ordinary file name, got {name[:80]!r}")
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise RequestError(f"{argument} must end with one of {', '.join(suffixes)}, got {name[:80]!r}")
    return suffix


def decode_object(text: str | None, argument: str) -> dict:
    """A JSON object that can be stored and sent again; an absent or empty one has no keys.

    Raises:
        RequestError: no JSON, or what `check_object` refuses.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise RequestError(f"{argument} must be JSON, got brackets nested too deep") from error
    except ValueError as error:
        raise RequestError(f"{argument} must be JSON, got {text[:80]!r}: {error}") from error
    return check_object(value, argument)


def check_object(value: object, argument: str) -> dict:
    """`value` from JSON, where it is an object that can be written as strict JSON again.

    Raises:
        RequestError: no object, NaN or infinity, text that is no Unicode, or nested more than 50 deep.
    """
    if not isinstance(value, dict):
        raise RequestError(f"{argument} must be a JSON object, got {str(value)[:80]!r}")
    _check_depth(value, argument)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError as error:  # also of text that cannot be encoded
        raise RequestError(f"{argument} must be strict JSON: {error}") from error
    return value


def _check_depth(value: dict, argument: str) -> None:
    level, rest = 0, [value]
    while rest:
        level += 1
        if level > _MAX_DEPTH:
            raise RequestError(f"{argument} must be nested at most {_MAX_DEPTH} deep")
        rest = [
            inner
            for outer in rest
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
