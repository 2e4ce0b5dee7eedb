"""Replies on the wire: large uncompressed files travel gzipped where the client's HTTP library undoes that by itself.

OHIF asks for an uncompressed NRRD, 157 MB at 512 x 512 x 600, and browsers accept gzip as content coding of any reply.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import BinaryIO

from fastapi import Request, Response
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder

from ctsam3d.labelapp.sparse_gzip import SparseGzip

WORTH_IT = 4 * 2**20  # bytes of a file; compressed label maps are smaller
_READ = 2**20  # bytes at a time
_MARK = b"the file's bytes come here"


def takes_gzip(http: Request) -> bool:
    """Whether a client accepts gzip as content coding (RFC 9110, section 12.5.3)."""
    for part in http.headers.get("accept-encoding", "").lower().split(","):
        coding, _, quality = part.strip().partition(";")
        if coding.strip() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def gzipped(path: str | os.PathLike, reply: dict, alone: bool) -> Response:
    """A file, or a form of it and its parameters as MONAI Label sends them, gzipped.

    Args:
        path: its holes are not read.
        alone: only the file, as for ``output=image``.
    """
    path = Path(path)
    mime = get_mime_type(str(path))
    headers = {"content-encoding": "gzip", "vary": "accept-encoding"}
    if alone:
        head, tail = b"", b""
        headers["content-disposition"] = f'attachment; filename="{path.name}"'
    else:
        fields = {"params": (None, json.dumps(reply), "application/json"), "image": (path.name, _MARK, mime)}
        form = MultipartEncoder(fields=fields)
        head, _, tail = form.to_string().partition(_MARK)
        mime = form.content_type
    target = io.BytesIO()
    stream = SparseGzip(target, itemsize=2)  # of any kind of number
    stream.write(head)
    with open(path, "rb") as file:
        _copy(file, stream)
    stream.write(tail)
    stream.close()
    return Response(target.getvalue(), media_type=mime, headers=headers)


def _copy(file: BinaryIO, stream: SparseGzip) -> None:
    """The whole file; its holes as zeros, unread, where the system knows of them."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        start, stop = _next_data(file.fileno(), at, size)
        stream.zeros(start - at)
        file.seek(start)
        while start < stop:
            data = file.read(min(_READ, stop - start))
            stream.write(data)
            start += len(data)
        at = stop


def _next_data(descriptor: int, at: int, size: int) -> tuple[int, int]:
    """Where the next bytes that are no hole begin and end."""
    if not hasattr(os, "SEEK_DATA"):
        return at, size
    try:
        start = os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:  # nothing but a hole up to the end
        return size, size
    return start, os.lseek(descriptor, start, os.SEEK_HOLE)
