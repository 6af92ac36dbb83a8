"""An image to the size that the model takes: the one resize of training, evaluation and refining."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stable_sam.images.frames import Frame


def resize_image(pixels: NDArray[np.uint8], frame: Frame, scale: int = 1) -> NDArray[np.uint8]:
    """`pixels` (H, W, 3) of the frame's view, RGB, to (h, w, 3) of `frame.resized_hw`.

    scale: pixels of the original that one of `pixels` stands for along each axis, as `DecodedImage.scale`.
    Antialiased bilinear, as Pillow's, with which SAM was trained; torch's does it in a fifth of the time.
    """
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    (height, width), (resized_h, resized_w) = frame.region_hw, frame.resized_hw
    if height % scale == 0 and width % scale == 0:
        resized = F.interpolate(image, (resized_h, resized_w), mode="bilinear", antialias=True, align_corners=False)
    else:
        # The last row or column reaches beyond the original: by sizes alone the image would be squeezed a little.
        # Torch cuts the product of size and factor to a whole number; a little more makes sure of the last pixel.
        factors = (1 + 1e-9) * scale * resized_h / height, (1 + 1e-9) * scale * resized_w / width
        resized = F.interpolate(image, scale_factor=factors, mode="bilinear", antialias=True, align_corners=False)
        resized = resized[..., :resized_h, :resized_w]
    # Torch gives one plane for each color; OpenCV interleaves them twenty times faster than a copy of the view.
    return np.asarray(cv2.merge(list(resized[0].numpy())), dtype=np.uint8)
