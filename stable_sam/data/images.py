"""Image files to pixels: any file a camera, a scanner or an annotation tool leaves, as upright 8-bit RGB."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from stable_sam.errors import ImageError, one_line

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Raster formats that Pillow decodes itself; others (PostScript, for one) would start programs on a stranger's file."""
SIXTEEN_BIT_MAX = 65_535
_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""TIFF tags."""
STRIP_PIXELS = 2**22
"""Converted at a time: of a picture of 100 megapixels one copy is in memory beside Pillow's, not five."""


def decode_image(data: bytes, *, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file's bytes to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Gray of 16 bits is scaled by its bit depth. Wider integers and floats have no agreed white: floats within 0..1 or
    0..255 are taken as such, anything else is stretched from its own minimum to its own maximum. Transparent pixels
    show white behind them. Of several frames or pages the first counts.

    `name` is what the error calls the image. Raises `ImageError` for what is no image, is damaged, or has more than
    `max_pixels` pixels (seen in the header, before anything is decoded; above Pillow's own limit of 179 million pixels
    an image is refused whatever `max_pixels` says).
    """
    if not data:
        raise ImageError(f"{name}: the image file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns of half of what it refuses; `max_pixels` says what is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: the image is too large: {one_line(error)}") from None
    except Exception as error:
        raise ImageError(
            f"{name}: not an image: expected one of {', '.join(FORMATS)}, "
            f"got {len(data)} bytes that begin with {data[:8]!r}"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: the image is too large: expected at most {max_pixels} pixels, "
            f"got {width} x {height} = {width * height}"
        )
    tile_width, tile_height = _tile(image)
    if tile_width * tile_height > max_pixels:
        raise ImageError(
            f"{name}: the image is too large: expected tiles of at most {max_pixels} pixels, "
            f"got {tile_width} x {tile_height} for an image of {width} x {height}"
        )
    # Decoders raise whatever a damaged file makes them stumble over, from OSError to IndexError.
    try:
        image.load()
        return upright_rgb(image)
    except Exception as error:
        raise ImageError(f"{name}: the image is damaged: {one_line(error)}") from error


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode to (H, W, 3) uint8 RGB, by the same rules as `decode_image`."""
    return _to_rgb(_upright(image))


def _tile(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles: one is unpacked as a whole, however much larger than the image it is."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        # Unreadable EXIF says nothing of the orientation, and the pixels are good: every viewer shows them as stored.
        return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = _gray_to_8_bit(np.asarray(image))
        return np.repeat(gray[:, :, None], 3, axis=2)
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if strip.has_transparency_data:
            rgba = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb[top : top + rows] = np.asarray(strip.convert("RGB"))
    return rgb


def _gray_to_8_bit(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(H, W) of any number type to (H, W) uint8, as `decode_image` documents. Not-a-number becomes black."""
    if np.issubdtype(gray.dtype, np.integer) and gray.min() >= 0 and gray.max() <= SIXTEEN_BIT_MAX:
        # By table: the pictures of this kind are big, and a copy in floats would be eight times the result.
        eight_bits = np.rint(np.arange(SIXTEEN_BIT_MAX + 1) * (255 / SIXTEEN_BIT_MAX)).astype(np.uint8)
        scaled: NDArray[np.uint8] = eight_bits[gray]
        return scaled
    values = np.nan_to_num(gray.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(gray.dtype, np.floating) and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    values -= low
    values *= 255.0 / (high - low) if high > low else 0.0
    return np.rint(values, out=values).astype(np.uint8)
