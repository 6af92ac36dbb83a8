"""The two frames of an image, original pixels and the model's square input, and SAM's way between them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One image in the model's square: longest side `side`, in the top left corner, padded below or to the right."""

    original_hw: tuple[int, int]
    side: int
    """Side of the model's input in pixels."""

    @property
    def resized_hw(self) -> tuple[int, int]:
        """The image's size inside the square; SAM's rounding, but never 0 for a very long image."""
        scale = self.side / max(self.original_hw)
        height, width = self.original_hw
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def to_model_xy(self, points_xy: NDArray[np.float64]) -> NDArray[np.float32]:
        """Points (..., 2) from original pixels to pixels of the model's input."""
        resized_h, resized_w = self.resized_hw
        height, width = self.original_hw
        scaled: NDArray[np.float64] = points_xy * np.array([resized_w / width, resized_h / height])
        return scaled.astype(np.float32)

    def to_model_xyxy(self, boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float32]:
        """Boxes (..., 4) from original pixels to pixels of the model's input."""
        corners = boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)
        return self.to_model_xy(corners).reshape(boxes_xyxy.shape)

    def to_original_xy(self, points_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points (..., 2) from pixels of the model's input to original pixels; those in the padding land outside."""
        resized_h, resized_w = self.resized_hw
        height, width = self.original_hw
        original: NDArray[np.float64] = points_xy * np.array([width / resized_w, height / resized_h])
        return original

    def to_input(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (h, w) of the decoder to the image's part of the model's input (resized_hw): SAM's first step."""
        resized_h, resized_w = self.resized_hw
        return _resize(logits, (self.side, self.side))[:resized_h, :resized_w]

    def to_original(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (h, w) of the decoder to original pixels (H, W): SAM's two steps, both bilinear.

        OpenCV's resize does the same arithmetic as torch's `interpolate`, several times faster. The result is in
        Fortran order, as run-length encoding wants it: the work is done on transposed arrays.
        """
        height, width = self.original_hw
        return _resize(self.to_input(logits).T, (width, height)).T


def _resize(array: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    resized = cv2.resize(np.ascontiguousarray(array), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)
