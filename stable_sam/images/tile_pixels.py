"""The pixels of tiles: cut out of an image that is decoded in full, once the first of them is asked for."""

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
    """Cuts tiles out of one image; what it holds is at most one copy of all its pixels.

    Between processes travel the tiles that were cut ahead and the image's file, which is decoded again where another
    tile is asked for: one that an answer of the model makes necessary. Without a file all pixels travel.
    """

    def __init__(self, picture: DecodedImage, *, file: bytes = b"", name: str = "image", max_pixels: int = 0) -> None:
        """picture: the image as it was decoded for the model. The `file` has to be given where that is at a reduced
        scale; name, max_pixels: as for `decode_for_input`."""
        self._file = file
        self._name = name
        self._max_pixels = max_pixels
        self._whole = picture.pixels if picture.scale == 1 else None
        self._ahead: dict[Window, NDArray[np.uint8]] = {}

    def resized(self, frame: Frame) -> NDArray[np.uint8]:
        """The pixels (h, w, 3) of `frame.resized_hw`, RGB, of the tile of `frame`. Raises `ImageError`."""
        from stable_sam.images.resize import resize_image  # not above: whoever only finishes needs no torch

        if (ahead := self._ahead.get(frame.region_xywh)) is not None:
            return ahead
        x, y, width, height = frame.region_xywh
        whole = self._decoded()
        with timed("resize"):
            return resize_image(whole[y : y + height, x : x + width], frame)

    def cut_ahead(self, frames: Iterable[Frame]) -> None:
        """Have these tiles ready, also in another process. Raises `ImageError`."""
        self._ahead |= {frame.region_xywh: self.resized(frame) for frame in frames}

    def _decoded(self) -> NDArray[np.uint8]:
        if self._whole is None:
            with timed("decode"):
                self._whole = decode_for_input(self._file, name=self._name, max_pixels=self._max_pixels).pixels
        return self._whole

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_whole": None} if self._file else {})
