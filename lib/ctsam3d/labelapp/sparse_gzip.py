"""Gzip streams of mostly zeros, made without looking at the zeros.

Deflate output that ends with a full flush ends on a byte, and what follows refers to nothing before it (RFC 1951; zlib
manual, ``Z_FULL_FLUSH``). So the piece for a run of zeros is compressed once per length and repeated, and the stream
stays one ordinary member (RFC 1952) that every gzip reader takes. The CRC-32 of the trailer is carried over a run by
linear algebra: zeros change the CRC register linearly over GF(2).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import BinaryIO

_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 255])  # deflate; no name, no time; fastest; any system
_LAST_BLOCK = b"\x03\x00"  # empty and final
_LEVEL = 1  # a label map shrinks to a hundredth at any level; this one is the fastest
_RUN = 2**20  # bytes of the longest run of zeros that is compressed in one piece
_MASK = 0xFFFFFFFF  # a CRC-32 is its register with every bit turned


class SparseGzip:
    """Writes a gzip stream of data and runs of zeros; `close` ends the stream and leaves the file open.

    Args:
        file: where to, from its present position.
        itemsize: bytes per number of the data; single bytes are compressed as runs, which is smaller for labels.
    """

    def __init__(self, file: BinaryIO, itemsize: int = 1):
        strategy = zlib.Z_RLE if itemsize == 1 else zlib.Z_DEFAULT_STRATEGY
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        self._file = file
        self._crc = self._size = 0
        file.write(_HEADER)

    def write(self, data) -> None:
        """Appends `data`, anything that shows its bytes in C order."""
        self._file.write(self._deflate.compress(data) + self._deflate.flush(zlib.Z_FULL_FLUSH))
        self._crc = zlib.crc32(data, self._crc)
        self._size += memoryview(data).nbytes

    def zeros(self, count: int) -> None:
        """Appends `count` zero bytes."""
        pieces, rest = divmod(count, _RUN)
        for _ in range(pieces):
            self._file.write(_packed_zeros(_RUN))
        self._file.write(_packed_zeros(rest))
        self._crc = crc32_after_zeros(self._crc, count)
        self._size += count

    def close(self) -> None:
        self._file.write(_LAST_BLOCK + struct.pack("<II", self._crc, self._size & _MASK))


@lru_cache(maxsize=64)
def _packed_zeros(count: int) -> bytes:
    """At most `_RUN` zero bytes, deflated, on their own."""
    if count == 0:
        return b""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(bytes(count)) + deflate.flush(zlib.Z_FULL_FLUSH)


# ---- CRC-32 over zeros ---------------------------------------------------------------------------------------------


def crc32_after_zeros(crc: int, count: int) -> int:
    """``zlib.crc32(bytes(count), crc)``, in a time that grows with the logarithm of `count`."""
    register = crc ^ _MASK
    for power in _bits(count):
        register = _applied(_zero_bytes(power), register)
    return register ^ _MASK


@lru_cache(maxsize=64)
def _zero_bytes(power: int) -> tuple[int, ...]:
    """What 2**power zero bytes do to the CRC register, a matrix over GF(2): the image of each of its 32 bits."""
    if power == 0:
        return tuple(zlib.crc32(b"\0", 1 << bit ^ _MASK) ^ _MASK for bit in range(32))
    half = _zero_bytes(power - 1)
    return tuple(_applied(half, image) for image in half)


def _applied(matrix: tuple[int, ...], register: int) -> int:
    image = 0
    for bit in _bits(register):
        image ^= matrix[bit]
    return image


def _bits(number: int) -> Iterable[int]:
    """Places of the ones of `number`, the lowest first."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
