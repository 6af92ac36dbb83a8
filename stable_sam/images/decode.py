"""Image files to pixels: any file a camera, a scanner or an annotation tool leaves, as upright 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from stable_sam.errors import ImageError, one_line

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Raster formats that Pillow decodes itself; others (PostScript, for one) would start programs on a stranger's file."""
SIXTEEN_BIT_MAX = 65_535
_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""TIFF tags."""
STRIP_PIXELS = 2**18
"""Converted at a time: the copies that Pillow makes of them stay in the processor's caches and use the same memory
again, and of a picture of 100 megapixels there is one copy beside Pillow's, not five."""
SIDEWAYS = 5
"""EXIF orientations from this one on swap width and height."""
REDUCED_SCALES = (2, 4)
"""Of libjpeg's; 1/8, which is the mean of each block, would blur, and spare a tenth of the time that 1/4 takes."""
REDUCED_MARGIN = 1.9
"""A JPEG is decoded at a reduced scale that leaves at least so many times the model's pixels along each axis: what the
model then sees differs by half a grey level on average (docs/performance.md). Of 4,000 pixels, half are enough for
SAM's 1,024."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An upright image as it is decoded for a model: perhaps with fewer pixels than its file has."""

    pixels: NDArray[np.uint8]
    """(h, w, 3), RGB."""
    original_hw: tuple[int, int]
    """Of the upright image in its file, in pixels: those of prompts, masks and declared sizes."""
    scale: int = 1
    """Pixels of the file that one of `pixels` stands for, along each axis; the last row and column may stand for
    fewer."""


def decode_image(data: bytes, *, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file's bytes to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Gray of 16 bits is scaled by its bit depth. Wider integers and floats have no agreed white: floats within 0..1 or
    0..255 are taken as such, anything else is stretched from its own minimum to its own maximum. Transparent pixels
    show white behind them. Of several frames or pages the first counts.

    `name` is what the error calls the image. Raises `ImageError` for what is no image, is damaged, or has more than
    `max_pixels` pixels (seen in the header, before anything is decoded; above Pillow's own limit of 179 million pixels
    an image is refused whatever `max_pixels` says).
    """
    return decode_for_input(data, name=name, max_pixels=max_pixels).pixels


def decode_for_input(data: bytes, *, name: str, max_pixels: int, side: int | None = None) -> DecodedImage:
    """The same for a model whose square input has this `side`, in pixels; None: with all pixels of the file.

    A JPEG whose longest side is at least twice `REDUCED_MARGIN` times `side` is decoded at 1/2 or 1/4 of its size,
    which libjpeg does in a fraction of the time and memory; one that EXIF turns only where its size is a multiple.
    Every other image has the pixels that `decode_image` gives.
    Raises as `decode_image`; `max_pixels` counts the file's pixels.
    """
    image = _opened(data, name, max_pixels)
    # Decoders raise whatever a damaged file makes them stumble over, from OSError to IndexError.
    try:
        width, height = image.size
        scale = 1 if side is None else _reduce(image, side)
        image.load()
        upright, sideways = _upright(image)
        return DecodedImage(_to_rgb(upright), (width, height) if sideways else (height, width), scale)
    except Exception as error:
        raise ImageError(f"{name}: the image is damaged: {one_line(error)}") from error


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode to (H, W, 3) uint8 RGB, by the same rules as `decode_image`."""
    return _to_rgb(_upright(image)[0])


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The image, of which only the header is read. Raises `ImageError`."""
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
    return image


def _reduce(image: Image.Image, side: int) -> int:
    """Have a JPEG, not yet loaded, decoded at the least scale that a model of this input side allows; returns how many
    of the file's pixels one of the decoded stands for, along each axis: 1, 2 or 4."""
    if not isinstance(image, JpegImageFile):
        return 1
    longest = max(image.size)
    scale = max((scale for scale in REDUCED_SCALES if longest >= scale * REDUCED_MARGIN * side), default=1)
    if scale > 1 and orientation(image) != 1:
        # A last row or column that stands for less than a whole pixel would be the first one when turned.
        scale = gcd(scale, *image.size)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    return round(longest / max(image.size))


def _tile(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles: one is unpacked as a whole, however much larger than the image it is."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def orientation(image: Image.Image) -> int:
    """As EXIF has it, 2 to 8; 1 is upright, and so is what EXIF does not know."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return next((known for known in range(2, 9) if value == known), 1)
    except Exception:
        # Unreadable EXIF says nothing of the orientation, and the pixels are good: every viewer shows them as stored.
        return 1


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image turned by its EXIF orientation, and whether that swapped its width and height."""
    turn = orientation(image)
    try:
        return (image, False) if turn == 1 else (ImageOps.exif_transpose(image), turn >= SIDEWAYS)
    except Exception:  # as above
        return image, False


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
        rgb[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
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
