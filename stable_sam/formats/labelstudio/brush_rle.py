"""Label Studio's brush masks: RGBA bytes, packed as bits by thi.ng's rle-pack, as a list of byte values.

A stream of bits: 32 with the number of values, 5 with the size of a value less 1, and four times 4 with the sizes of a
length less 1; then runs. A run is a bit (1: one value that repeats, 0: different values), 2 bits that choose a size,
the length less 1 in so many bits, and the value or the values. The values are red, green, blue and alpha of each pixel,
by rows. A pixel counts as painted when it is at least half opaque, because the editor's brush has soft edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import PromptError

CHANNELS = 4
OPAQUE = 128
"""Alpha from which a pixel is painted."""
LENGTH_BITS = (4, 8, 12, 16)
"""The sizes of a length that are written."""
_LONGEST = 2 ** LENGTH_BITS[-1]
_HEADER = "{:032b}" + f"{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """The packed bytes of `mask` (H, W): the object is white and opaque, the rest transparent."""
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
    """The painted pixels as a mask (H, W); raises `PromptError` for packed bytes that are none of that size."""
    runs = list(_painted_runs(rle, size_hw))
    mask = np.zeros(size_hw, np.bool_)
    pixels = mask.reshape(-1)
    for first, behind in runs:
        pixels[first:behind] = True
    return mask


def painted_box(rle: Any, size_hw: tuple[int, int]) -> list[int] | None:
    """XYXY around the painted pixels, None when nothing is painted; no pixel is decoded. Raises as `decode_brush`."""
    width = size_hw[1]
    box: list[int] | None = None
    for start, behind in _painted_runs(rle, size_hw):
        first, last = start // width, (behind - 1) // width
        left, right = (start % width, (behind - 1) % width + 1) if first == last else (0, width)
        part = [left, first, right, last + 1]
        box = part if box is None else [*map(min, box[:2], part[:2]), *map(max, box[2:], part[2:])]
    return box


def _painted_runs(rle: Any, size_hw: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Runs of painted pixels, counted by rows: the first pixel, and the one behind the last."""
    if not isinstance(rle, list) or not all(type(value) is int and 0 <= value < 256 for value in rle):
        raise PromptError("expected brush strokes as a list of bytes")
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
    """Bits of a list of bytes, from the highest of each."""

    def __init__(self, data: list[int]) -> None:
        self._data, self._at = bytes(data), 0

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        end = self._at + count
        if end > 8 * len(self._data):
            raise PromptError("expected brush strokes, got a part of them")
        last = -(-end // 8)
        word = int.from_bytes(self._data[self._at // 8 : last])
        self._at = end
        return (word >> (8 * last - end)) & ((1 << count) - 1)
