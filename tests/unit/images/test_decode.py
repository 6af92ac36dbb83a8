"""Image files of every kind that annotation tools leave behind, and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from stable_sam.errors import ImageError
from stable_sam.images.decode import decode_image

LIMIT = 1_000_000
SRGB_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    pixels = decode_image(data, name="x", max_pixels=LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return pixels


def gradient(dtype: type, high: float, height: int = 20, width: int = 30) -> NDArray[Any]:
    return np.linspace(0, high, height * width).reshape(height, width).astype(dtype)


EXPECTED_GRADIENT = np.rint(gradient(np.float64, 255)).astype(np.int16)


def test_rgb_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(pixels))), pixels)


MODES_OF_FORMATS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"],
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB", "RGBA"],
    "WEBP": ["L", "RGB", "RGBA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "AVIF": ["L", "RGB", "RGBA"],
    "TGA": ["L", "LA", "P", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(
    ("format_", "mode"), [(format_, mode) for format_, modes in MODES_OF_FORMATS.items() for mode in modes]
)
def test_every_mode_becomes_rgb(format_: str, mode: str) -> None:
    color = (204, 51, 51)  # of the web palette, so that P holds it, too
    image = Image.new("RGB", (30, 20), color)
    if mode == "LAB":
        image = ImageCms.applyTransform(image, SRGB_TO_LAB)
    pixels = decoded(encoded(image if mode == "LAB" else image.convert(mode), format_))
    assert pixels.shape == (20, 30, 3)
    if mode in ("1", "L", "LA"):
        assert (np.ptp(pixels[10, 15]), mode == "1" or abs(int(pixels[10, 15, 0]) - 97) < 5) == (0, True)
    else:
        np.testing.assert_allclose(pixels[10, 15], color, atol=6)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(gradient(np.uint16, 65535)),
        Image.fromarray(gradient(np.int32, 65535)),
        Image.fromarray(gradient(np.int32, 2**31 - 1)),
        Image.fromarray(gradient(np.float32, 1)),
        Image.fromarray(gradient(np.float32, 255)),
        Image.fromarray(gradient(np.float32, 40_000)),
        Image.fromarray(gradient(np.float32, 40_000) - 20_000),
    ],
    ids=["uint16", "16 bits in int32", "int32", "float to 1", "float to 255", "float to 40000", "float below 0"],
)
def test_deep_gray_is_scaled_not_clipped(image: Image.Image) -> None:
    pixels = decoded(encoded(image, "TIFF")).astype(np.int16)
    assert np.abs(pixels - EXPECTED_GRADIENT[:, :, None]).max() <= 1


def test_16_bit_png_and_pgm_are_scaled_by_depth_even_when_dark() -> None:
    dark = gradient(np.uint16, 6553)
    pgm = b"P5 30 20 65535\n" + dark.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(dark)), pgm):
        assert decoded(data).max() in (25, 26)


def test_not_a_number_and_flat_images_become_black() -> None:
    pixels = gradient(np.float32, 1)
    pixels[0, :2] = [np.nan, np.inf]
    assert decoded(encoded(Image.fromarray(pixels), "TIFF"))[0, :2].max() == 0
    assert decoded(encoded(Image.fromarray(np.full((4, 4), 300, np.float32)), "TIFF")).max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(mode: str) -> None:
    assert decoded(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)).convert(mode))).min() == 255


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_color_that_stands_for_transparency_shows_white(mode: str) -> None:
    color = (7, 7, 7) if mode == "RGB" else 0
    assert decoded(encoded(Image.new(mode, (4, 4), color), transparency=color)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decoded(encoded(Image.fromarray(pixels), exif=exif))
    assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert upright[corners[orientation]].min() == 255
    assert int((upright == 255).sum()) == 8 * 8 * 3


def test_exif_orientation_of_16_bit_gray() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoded(encoded(Image.fromarray(gradient(np.uint16, 65535)), exif=exif)).shape == (30, 20, 3)


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.new("RGB", (30, 20), "white"), "JPEG")
    broken = b"Exif\0\0MM\0*\0\0\0"
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    assert decoded(data[:2] + segment + data[2:]).shape == (20, 30, 3)


def test_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decoded(data)[4, 4], (255, 0, 0), atol=3)


def noise(format_: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), format_)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_files_are_refused(format_: str, share: float) -> None:
    data = noise(format_)
    with pytest.raises(ImageError, match=r"^night/7\.jpg: (the image is damaged|not an image)") as raised:
        decode_image(data[: int(len(data) * share)], name="night/7.jpg", max_pixels=LIMIT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 100, b"%PDF-1.4"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(
        ImageError, match=r"^x: not an image: expected one of .*JPEG.*, got bytes that begin with .* \(\d+ bytes\)$"
    ):
        decode_image(data, name="x", max_pixels=LIMIT)


def test_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^x: the image file is empty \(0 bytes\)$"):
        decode_image(b"", name="x", max_pixels=LIMIT)


def png_header(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [1001, 10_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(ImageError, match=r"^x: the image is too large"):
        decode_image(png_header(side, side), name="x", max_pixels=LIMIT)


def test_limit_itself_is_allowed() -> None:
    data = encoded(Image.new("RGB", (100, 50)))
    assert decode_image(data, name="x", max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(ImageError, match="expected at most 4999 pixels, got 100 x 50 = 5000"):
        decode_image(data, name="x", max_pixels=4999)
