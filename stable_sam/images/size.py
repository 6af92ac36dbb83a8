"""Reads the size and EXIF orientation of an image from its header, by one request for the first bytes of the file."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

from PIL import Image

from stable_sam.errors import ImageError, NotFoundError
from stable_sam.images.decode import FORMATS
from stable_sam.images.orientation import stored_size
from stable_sam.storage import files as storage
from stable_sam.storage.file_kinds import beginning

HEAD_BYTES_TRIED = (2**16, 2**20, 2**28)
"""Numbers of bytes to read, tried in turn. The first holds most headers, but some cameras put a preview before the size
and some formats keep their header at the end."""


def stored_size_of(uri: str) -> tuple[tuple[int, int], int]:
    """Return (height, width) in pixels as the file stores them, and the EXIF orientation that turns them upright.

    Raises `ImageError` for a missing file and for a file that is no image, and `StorageError`.
    """
    for length in HEAD_BYTES_TRIED:
        try:
            head = storage.read_head(uri, length)
        except NotFoundError:
            raise ImageError(f"{uri}: the image does not exist") from None
        with suppress(Exception):  # decoders raise all kinds of errors for the first part of a file
            return _size(head)
        if len(head) < length:
            break
    raise ImageError(f"{uri}: cannot read the image's size: expected an image, got {beginning(head)}")


def _size(head: bytes) -> tuple[tuple[int, int], int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stored_size(Image.open(io.BytesIO(head), formats=FORMATS))
