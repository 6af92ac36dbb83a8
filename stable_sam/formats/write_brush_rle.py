"""Label Studio's brush masks: RGBA bytes, packed as bits by thi.ng's rle-pack, as a list of byte values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.brush_rle import CHANNELS

LENGTH_BITS = (4, 8, 12, 16)
"""Of a run's length, one of these for each run."""
_LONGEST = 2 ** LENGTH_BITS[-1]
_HEADER = "{:032b}" + f"{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)
"""Number of bytes, bits of a value, bits of the four kinds of length."""


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
