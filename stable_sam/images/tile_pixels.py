"""Cuts the pixels of tiles out of an image, which is decoded in full when the first tile is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.images.decode import DecodedImage, decode_for_input
from stable_sam.images.frames import Frame
from stable_sam.records import Window
from stable_sam.timing import timed


class TilePixels:
    """Cuts tiles out of one image, of whose pixels it holds at most one copy.

    Pickling it for another process keeps the tiles that were cut ahead and the image's file. The file is decoded again
    there for any other tile, which only an answer of the model makes necessary. Without a file all pixels are pickled.
    """

    def __init__(self, image: DecodedImage, *, file: bytes = b"", name: str = "image", max_pixels: int = 0) -> None:
        """Prepare to cut tiles out of `image` as it was decoded for the model.

        file: the bytes of the image's file; required when `image` was decoded at a reduced scale.
        name, max_pixels: as for `decode_for_input`.
        """
        self._file = file
        self._name = name
        self._max_pixels = max_pixels
        self._whole = image.pixels if image.scale == 1 else None
        self._ahead: dict[Window, NDArray[np.uint8]] = {}

    def resized(self, frame: Frame) -> NDArray[np.uint8]:
        """Return the RGB pixels (h, w, 3) of the frame's tile, resized to `frame.resized_hw`. Raises `ImageError`."""
        from stable_sam.images.resize import resize_image  # imported here: processes that never resize need no torch

        if (ahead := self._ahead.get(frame.region_xywh)) is not None:
            return ahead
        x, y, width, height = frame.region_xywh
        whole = self._decoded()
        with timed("resize"):
            return resize_image(whole[y : y + height, x : x + width], frame)

    def cut_ahead(self, frames: Iterable[Frame]) -> None:
        """Cut and resize these tiles now, so that they are ready here and in another process. Raises `ImageError`."""
        self._ahead |= {frame.region_xywh: self.resized(frame) for frame in frames}

    def _decoded(self) -> NDArray[np.uint8]:
        if self._whole is None:
            with timed("decode"):
                self._whole = decode_for_input(self._file, name=self._name, max_pixels=self._max_pixels).pixels
        return self._whole

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_whole": None} if self._file else {})
