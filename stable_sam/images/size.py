"""The size of an image by its header: one request for the first bytes, instead of the whole file."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

from PIL import Image

from stable_sam.errors import ImageError, NotFoundError
from stable_sam.images.decode import FORMATS, SIDEWAYS, orientation
from stable_sam.storage import files as storage

HEAD_BYTES = (2**16, 2**20, 2**28)
"""Tried in turn: most headers are within the first; some cameras put a preview before the size, and some formats keep
their description at the end."""


def image_size_of(uri: str) -> tuple[int, int]:
    """(height, width) in pixels of the upright image; raises `ImageError` for what is no image, `StorageError`."""
    for length in HEAD_BYTES:
        try:
            head = storage.read_head(uri, length)
        except NotFoundError:
            raise ImageError(f"{uri}: the image does not exist") from None
        with suppress(Exception):  # decoders raise whatever half a file makes them stumble over
            return _size(head)
        if len(head) < length:
            break
    raise ImageError(f"{uri}: its size is needed, expected an image, got bytes that begin with {head[:8]!r}")


def _size(head: bytes) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(head), formats=FORMATS)
        width, height = image.size
        return (width, height) if orientation(image) >= SIDEWAYS else (height, width)
