"""Encodes and decodes Label Studio's brush masks: RGBA values packed by thi.ng's rle-pack, as a list of bytes.

The bytes are a stream of bits. It begins with 32 bits for the number of values, 5 bits for the size of a value in bits
minus 1, and 4 times 4 bits for four sizes of a length in bits, each minus 1. Runs follow. A run is 1 bit (1: one value
that repeats, 0: different values), 2 bits that choose one of the four sizes, the length minus 1 in so many bits, and
the value or the values. The values are red, green, blue and alpha of each pixel, row by row. A pixel counts as painted
when it is at least half opaque, because the editor's brush has soft edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import PromptError

CHANNELS = 4
OPAQUE = 128
"""Least alpha of a painted pixel."""
LENGTH_BITS = (4, 8, 12, 16)
"""The four sizes of a length, in bits, that `encode_brush` uses."""
_LONGEST = 2 ** LENGTH_BITS[-1]
_HEADER = "{:032b}" + f"{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Return the packed bytes of `mask` (H, W), with a white opaque object on a transparent background."""
    pixels = mask.ravel(order="C")
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=pixels.size) * CHANNELS
    bits = [_HEADER.format(pixels.size * CHANNELS)]
    for value, length in zip(pixels[starts].tolist(), lengths.tolist(), strict=True):
        colour = "11111111" if value else "00000000"
        for run in [_LONGEST] * (length // _LONGEST) + [length % _LONGEST]:
            if run:
                kind = next(k for k, width in enumerate(LENGTH_BITS) if run <= 2**width)
                bits.append(f"1{kind:02b}{run - 1:0{LENGTH_BITS[kind]}b}{colour}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the painted pixels as a mask (H, W); raises `PromptError` unless `rle` is packed bytes of this size."""
    runs = list(_painted_runs(rle, size_hw))
    mask = np.zeros(size_hw, np.bool_)
    pixels = mask.reshape(-1)
    for first, behind in runs:
        pixels[first:behind] = True
    return mask


def painted_box(rle: Any, size_hw: tuple[int, int]) -> list[int] | None:
    """Return the box (XYXY pixels) around the painted pixels, None when nothing is painted.

    No mask is allocated. Raises what `decode_brush` raises.
    """
    width = size_hw[1]
    box: list[int] | None = None
    for start, behind in _painted_runs(rle, size_hw):
        first, last = start // width, (behind - 1) // width
        left, right = (start % width, (behind - 1) % width + 1) if first == last else (0, width)
        part = [left, first, right, last + 1]
        box = part if box is None else [*map(min, box[:2], part[:2]), *map(max, box[2:], part[2:])]
    return box


def _painted_runs(rle: Any, size_hw: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield runs of painted pixels in row-major order: the index of the first pixel and that after the last."""
    if not isinstance(rle, list) or not all(type(value) is int and 0 <= value < 256 for value in rle):
        raise PromptError("expected brush strokes as a list of bytes, got something else")
    height, width = size_hw
    bits = _Bits(rle)
    count = bits.take(32)
    if count != height * width * CHANNELS:
        raise PromptError(f"expected brush strokes on {width} x {height} pixels, got {count} values")
    value_bits = bits.take(5) + 1
    if value_bits != 8:
        raise PromptError(f"expected brush strokes of 8 bits a value, got {value_bits}")
    sizes = [bits.take(4) + 1 for _ in range(4)]
    yield from _painted(bits, count, sizes)


def _painted(bits: _Bits, count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < count:
        same = bits.take(1)
        end = min(at + bits.take(sizes[bits.take(2)]) + 1, count)
        if same:
            first, behind = at // CHANNELS, end // CHANNELS
            if bits.take(8) >= OPAQUE and first < behind:
                yield first, behind
        else:
            for place in range(at, end):
                if bits.take(8) >= OPAQUE and place % CHANNELS == CHANNELS - 1:
                    yield place // CHANNELS, place // CHANNELS + 1
        at = end


class _Bits:
    """Reads bits from a list of bytes, the highest bit of each byte first."""

    def __init__(self, data: list[int]) -> None:
        self._data, self._at = bytes(data), 0

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number; raises `PromptError` at the end of the bytes."""
        end = self._at + count
        if end > 8 * len(self._data):
            raise PromptError("expected whole brush strokes, got bytes that end too early")
        last = -(-end // 8)
        word = int.from_bytes(self._data[self._at // 8 : last])
        self._at = end
        return (word >> (8 * last - end)) & ((1 << count) - 1)
