"""Label Studio's brush masks read back: see `write_brush_rle`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = 4
OPAQUE = 128
"""Alpha from which a pixel belongs to the object: the editor's brush has soft edges."""


def decode_brush(packed: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of packed bytes (a list of numbers 0..255); raises ValueError when they are none of that size."""
    if not isinstance(packed, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in packed):
        raise ValueError("expected a list of bytes as rle")
    stream = _Bits(bytes(packed))
    height, width = size_hw
    count = stream.read(32)
    if count != height * width * CHANNELS:
        raise ValueError(f"expected a brush mask of {width} x {height} pixels, got one of {count} bytes")
    value_bits = stream.read(5) + 1
    length_bits = [stream.read(4) + 1 for _ in range(4)]
    if value_bits != 8:
        raise ValueError(f"expected 8 bits a value in a brush mask, got {value_bits}")
    values = np.zeros(count, np.uint8)
    at = 0
    while at < count:
        repeated = stream.read(1)
        end = min(at + stream.read(length_bits[stream.read(2)]) + 1, count)
        values[at:end] = stream.read(8) if repeated else stream.read_bytes(end - at)
        at = end
    mask: NDArray[np.bool_] = values.reshape(height, width, CHANNELS)[:, :, 3] >= OPAQUE
    return mask


class _Bits:
    """Bytes read bit by bit."""

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self._text = self._bits.tobytes().translate(bytes.maketrans(b"\0\1", b"01")).decode("ascii")
        self._at = 0

    def read(self, bits: int) -> int:
        return int(self._text[self._taken(bits) : self._at], 2)

    def read_bytes(self, count: int) -> NDArray[np.uint8]:
        return np.packbits(self._bits[self._taken(8 * count) : self._at])

    def _taken(self, bits: int) -> int:
        start = self._at
        self._at += bits
        if self._at > len(self._text):
            raise ValueError("expected a whole brush mask, got one that ends early")
        return start
