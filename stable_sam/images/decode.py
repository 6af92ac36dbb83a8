"""Decodes image files of cameras, scanners and annotation tools to upright 8-bit RGB pixels."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from stable_sam.bases import Fit
from stable_sam.errors import ImageError, one_line
from stable_sam.images.orientation import orientation, stored_size, turned_hw
from stable_sam.storage.file_kinds import beginning

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Raster formats that Pillow decodes itself. For others, such as PostScript, it would start programs on files that
nobody has checked."""
MAX_IMAGE_BYTES = 512 * 2**20
"""Largest image file in bytes, as a file is held in memory whole: more than an uncompressed image of 100 megapixels in
four channels."""
SIXTEEN_BIT_MAX = 65_535
_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""TIFF tags of the width and height of a file's tiles."""
STRIP_PIXELS = 2**18
"""Pixels that are converted at a time. Pillow's copies of so few stay in the processor's caches and use the same memory
again: for an image of 100 megapixels there is one copy besides Pillow's, not five."""
REDUCED_SCALES = (2, 4)
"""Pixels of the file, along each axis, that become one decoded pixel. libjpeg's 8 is left out: it blurs, because each
pixel is the mean of a block, and it saves only a tenth of the time that 4 takes."""
REDUCED_MARGIN = 1.9
"""A JPEG decoded at a reduced scale keeps at least this many times the model's pixels along each axis. The model's
input then differs by half a grey level on average (docs/performance.md). Half of 4,000 pixels are enough for SAM's
1,024."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An upright image that was decoded for a model, perhaps with fewer pixels than its file has."""

    pixels: NDArray[np.uint8]
    """RGB pixels (h, w, 3)."""
    original_hw: tuple[int, int]
    """(height, width) in pixels of the upright image in its file, in which prompts, masks and declared sizes are."""
    scale: int = 1
    """Pixels of the file, along each axis, that became one of `pixels`: 1, 2 or 4. The last row and column may stand
    for fewer."""
    orientation: int = 1
    """The EXIF orientation by which the stored pixels were turned upright; 1 when they are stored upright."""


def decode_image(data: bytes, *, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file's bytes to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Grey values of 16 bits are scaled by their bit depth. Wider integers and floats have no agreed white: floats within
    0..1 or 0..255 are scaled from that range, all others from their own minimum and maximum. Transparent pixels are
    drawn on white. Of several frames or pages, the first is decoded.

    name: how errors name the image.
    Raises `ImageError` for a file that is no image, is damaged, or has more than `max_pixels` pixels. The header is
    checked before anything is decoded. Pillow's own limit of 179 million pixels holds as well.
    """
    return decode_for_input(data, name=name, max_pixels=max_pixels).pixels


def decode_for_input(
    data: bytes, *, name: str, max_pixels: int, side: int | None = None, fit: Fit = "pad"
) -> DecodedImage:
    """Decode a file's bytes as `decode_image` does, for a model into whose square input of this `side` in pixels the
    image will `fit`.

    A JPEG whose longest side is at least twice `REDUCED_MARGIN` times `side` is decoded at 1/2 or 1/4 of its size,
    which takes libjpeg a fraction of the time and memory; of a JPEG to be stretched it is the shortest side. A JPEG
    that EXIF turns is reduced only when its size is a multiple of the scale. Every other image, and every image when
    `side` is None, has all pixels of its file.

    max_pixels: limits the pixels of the file. Raises `ImageError` as `decode_image` does.
    """
    image = _opened(data, name, max_pixels)
    # Decoders raise all kinds of errors for a damaged file, from OSError to IndexError.
    try:
        stored_hw, turn = stored_size(image)
        scale = 1 if side is None else _reduce(image, side, fit)
        image.load()
        upright = _upright(image)
        if upright is None:  # EXIF cannot be used
            upright, turn = image, 1
        return DecodedImage(_to_rgb(upright), turned_hw(stored_hw, turn), scale, turn)
    except Exception as error:
        raise ImageError(f"{name}: the image is damaged: {one_line(error)}") from error


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode to (H, W, 3) uint8 RGB, by the rules of `decode_image`."""
    return _to_rgb(_upright(image) or image)


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Open an image and check its size by its header alone. Raises `ImageError`."""
    if not data:
        raise ImageError(f"{name}: the image file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns from half of its own limit on; here `max_pixels` decides what is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: the image is too large: {one_line(error)}") from None
    except Exception as error:
        raise ImageError(
            f"{name}: not an image: expected one of {', '.join(FORMATS)}, got {beginning(data)} ({len(data)} bytes)"
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


def _reduce(image: Image.Image, side: int, fit: Fit) -> int:
    """Make Pillow decode a JPEG, not yet loaded, at the smallest size that a model with this input side and fit allows.

    Returns how many of the file's pixels along each axis become one decoded pixel: 1, 2 or 4.
    """
    if not isinstance(image, JpegImageFile):
        return 1
    longest = max(image.size)
    fitted = longest if fit == "pad" else min(image.size)
    scale = max((scale for scale in REDUCED_SCALES if fitted >= scale * REDUCED_MARGIN * side), default=1)
    if scale > 1 and orientation(image) != 1:
        # Turning would make the last row or column, which may stand for fewer pixels of the file, the first one.
        scale = gcd(scale, *image.size)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
    return round(longest / max(image.size))


def _tile(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles. A tile is unpacked as a whole, even when it is far larger than the image."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _upright(image: Image.Image) -> Image.Image | None:
    """Return the image turned by its EXIF orientation; None when Pillow cannot rewrite its unreadable EXIF."""
    try:
        return image if orientation(image) == 1 else ImageOps.exif_transpose(image)
    except Exception:
        return None


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
    """Scale (H, W) of any number type to (H, W) uint8 by the rules of `decode_image`. Not-a-number becomes 0."""
    if np.issubdtype(gray.dtype, np.integer) and gray.min() >= 0 and gray.max() <= SIXTEEN_BIT_MAX:
        # A table is used because such images are large, and a copy in floats would be eight times the result.
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
