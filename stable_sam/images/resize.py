"""Resizes an image to the size that the model takes, for training, evaluation and refining alike."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stable_sam.images.frames import Frame


def resize_image(pixels: NDArray[np.uint8], frame: Frame, scale: int = 1) -> NDArray[np.uint8]:
    """Resize the RGB `pixels` (H, W, 3) of the frame's view to `frame.resized_hw`, (h, w, 3) uint8.

    The resize is antialiased and bilinear like Pillow's, with which SAM was trained; torch takes a fifth of its time.
    scale: original pixels along each axis that became one of `pixels`, as in `DecodedImage.scale`.
    """
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    (height, width), (resized_h, resized_w) = frame.region_hw, frame.resized_hw
    if height % scale == 0 and width % scale == 0:
        resized = F.interpolate(image, (resized_h, resized_w), mode="bilinear", antialias=True, align_corners=False)
    else:
        # The last row or column reaches beyond the original, so resizing by sizes would squeeze the image a little.
        # Torch rounds the product of size and factor down; 1e-9 more makes sure that the last pixel is there.
        factors = (1 + 1e-9) * scale * resized_h / height, (1 + 1e-9) * scale * resized_w / width
        resized = F.interpolate(image, scale_factor=factors, mode="bilinear", antialias=True, align_corners=False)
        resized = resized[..., :resized_h, :resized_w]
    # Torch returns one plane for each colour; OpenCV interleaves them twenty times faster than NumPy copies the view.
    return np.asarray(cv2.merge(list(resized[0].numpy())), dtype=np.uint8)
