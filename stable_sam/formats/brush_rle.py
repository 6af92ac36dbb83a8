"""Label Studio's brush run lengths: the runs of painted pixels, and the box around them.

A stream of bits: 32 of the number of values, 5 of the size of a value less 1, four times 4 of the sizes of a length
less 1; then runs. A run is a bit (1: one value that repeats, 0: different values), 2 bits that choose a size, the
length less 1 in so many bits, and the value or the values. The values are red, green, blue and alpha of each pixel, by
rows; what is painted is at least half opaque, for the editor's brush has soft edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stable_sam.errors import PromptError

CHANNELS = 4
OPAQUE = 128


def painted_box(rle: Any, height: int, width: int) -> list[int] | None:
    """XYXY around the painted pixels, None when nothing is painted; raises `PromptError` for other content.

    Nothing is decoded to pixels.
    """
    box: list[int] | None = None
    try:
        for start, end in painted_runs(rle, height, width):
            first, last = start // width, (end - 1) // width
            left, right = (start % width, (end - 1) % width + 1) if first == last else (0, width)
            part = [left, first, right, last + 1]
            box = part if box is None else [*map(min, box[:2], part[:2]), *map(max, box[2:], part[2:])]
    except ValueError as error:
        raise PromptError(str(error)) from None
    return box


def painted_runs(rle: Any, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Runs of painted pixels, counted by rows: the first pixel, and the one behind the last.

    rle: a list of bytes. Raises ValueError for other content or another size, and while iterating for a broken run.
    """
    if not isinstance(rle, list) or not all(type(value) is int and 0 <= value < 256 for value in rle):
        raise ValueError("expected brush strokes as a list of bytes")
    bits = _Bits(rle)
    count = bits.take(32)
    if count != height * width * CHANNELS:
        raise ValueError(f"expected brush strokes on {width} x {height} pixels, got {count} values")
    value_bits = bits.take(5) + 1
    if value_bits != 8:
        raise ValueError(f"expected brush strokes of 8 bits a value, got {value_bits}")
    return _painted(bits, count, sizes=[bits.take(4) + 1 for _ in range(4)])


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
            raise ValueError("expected brush strokes, got a part of them")
        last = -(-end // 8)
        word = int.from_bytes(self._data[self._at // 8 : last])
        self._at = end
        return (word >> (8 * last - end)) & ((1 << count) - 1)
