"""Images that are bombs, damaged or too large, in bounded memory."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_sam.errors import ImageError, StorageError
from stable_sam.images.decode import decode_image
from stable_sam.storage import files as storage
from tests.unit.formats.hostile import png


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000, b""),
        png(10_001, 10_000, zlib.compress(b"\0")),
        png(16, 16, b"", (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 50_000_000))),
        png(16, 16, b"", (b"iCCP", b"a\0\0" + zlib.compress(b"x" * 50_000_000))),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",",
        b"P6 20000 20000 255\n",
        b"P1 99999999999999999999 1\n",
    ],
    ids=["20000^2", "a row above the limit", "text", "profile", "bmp", "gif", "ppm", "digits"],
)
def test_bombs_are_refused_in_little_memory(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as raised:
        decode_image(data, name="bomb", max_pixels=100_000_000)
    assert str(raised.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_pixels_beyond_the_header_are_never_unpacked() -> None:
    data = png(16, 16, zlib.compress(bytes(50_000_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data, name="x", max_pixels=1000).shape == (16, 16, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024


def tiff(tile_side: int) -> bytes:
    """9 x 7 pixels in one tile."""
    tile = zlib.compress(bytes(1000))
    tags = {256: 9, 257: 7, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile_side, 323: tile_side, 324: 134, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile


def test_a_tile_larger_than_its_image_is_never_unpacked() -> None:
    assert decode_image(tiff(16), name="x", max_pixels=1000).shape == (7, 9, 3)
    with pytest.raises(ImageError, match="expected tiles of at most 1000000 pixels, got 16384 x 16384 for an image of"):
        decode_image(tiff(16384), name="x", max_pixels=1_000_000)


DECODE = """
import resource, sys
from stable_sam.images.decode import decode_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = decode_image(open(sys.argv[1], "rb").read(), name="x", max_pixels=100_000_000)
assert pixels.shape == (10_000, 10_000, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_hundred_megapixels_take_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (10_000, 10_000), "teal").save(path, quality=50)
    done = subprocess.run([sys.executable, "-c", DECODE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 900, "MiB: 300 of the result, 400 of Pillow's own"


def test_strips_make_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    for mode in ("RGBA", "RGB", "L", "LA", "CMYK", "P"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(buffer, "TIFF")
        whole = decode_image(buffer.getvalue(), name="x", max_pixels=10_000)
        monkeypatch.setattr("stable_sam.images.decode.STRIP_PIXELS", 100)
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), name="x", max_pixels=10_000), whole)
        monkeypatch.undo()


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert storage.read_bytes(str(path), max_bytes=5) == b"12345"
    with pytest.raises(StorageError, match="x: cannot read: expected at most 4 bytes, got a larger file"):
        storage.read_bytes(str(path), max_bytes=4)
