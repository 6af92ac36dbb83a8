"""Masks of many prompts of one picture, with the plugin on or off, for measuring: the encoder runs once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_sam.config import RefinerConfig
from stable_sam.data.images import decode_image
from stable_sam.errors import ImageError
from stable_sam.evaluation.metrics import Mask
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.load import LoadedModel


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """embedding (1, C, h, w); scale_xy takes pixels of the picture to pixels of the model's input."""

    embedding: Tensor
    size_hw: tuple[int, int]
    input_hw: tuple[int, int]
    scale_xy: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """One mask (H, W) at the size of the picture."""

    mask: Mask
    predicted_iou: float
    dsp_weight: float


class MaskPredictor:
    """A loaded model that can switch its plugin."""

    def __init__(self, loaded: LoadedModel, config: RefinerConfig) -> None:
        self.sam, self.host, self.config = loaded.sam, loaded.host, config
        self.device = next(self.sam.parameters()).device

    @torch.inference_mode()
    def encode(self, path: Path, size_hw: tuple[int, int]) -> EncodedImage:
        """Read and encode a picture; raises `ImageError` when it cannot be read or is not of the size `size_hw`."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: cannot read: {error.strerror}") from None
        pixels = decode_image(data, name=str(path), max_pixels=self.config.max_image_pixels)
        if pixels.shape[:2] != size_hw:
            raise ImageError(f"{path}: expected height and width {list(size_hw)}, got {list(pixels.shape[:2])}")
        side = self.sam.image_encoder.img_size
        scale = side / max(size_hw)
        height, width = (int(length * scale + 0.5) for length in size_hw)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(pixels, (width, height), interpolation=method)
        tensor = torch.from_numpy(resized).permute(2, 0, 1)[None].to(self.device)
        embedding = self.sam.image_encoder(self.sam.preprocess(tensor))
        return EncodedImage(embedding, size_hw, (height, width), np.array([width / size_hw[1], height / size_hw[0]]))

    @torch.inference_mode()
    def predict(self, image: EncodedImage, prompts: NDArray[np.float64], *, plugin: bool) -> Iterator[Answer]:
        """Answer the prompts in order: boxes (P, 4) XYXY, or points on the object (P, N, 2), in pixels of the picture."""
        if self.host is not None:
            self.host.enabled = plugin
        for start in range(0, len(prompts), self.config.prompt_chunk_size):
            chunk = prompts[start : start + self.config.prompt_chunk_size]
            scaled = torch.from_numpy(chunk.reshape(len(chunk), -1, 2) * image.scale_xy).float().to(self.device)
            is_box = prompts.ndim == 2
            output = decode_prompts(
                self.sam,
                image.embedding.expand(len(chunk), -1, -1, -1),
                boxes=scaled.flatten(1) if is_box else None,
                points=None if is_box else (scaled, torch.ones(scaled.shape[:2], device=self.device)),
            )
            # One point is ambiguous: SAM then answers with the best of its three masks (as its authors do).
            ambiguous = not is_box and scaled.shape[1] == 1
            token = output.iou[:, 1:].argmax(1) + 1 if ambiguous else torch.zeros(len(chunk), dtype=torch.long)
            rows = torch.arange(len(chunk))
            logits = output.logits[rows, token].cpu().numpy()
            quality = output.iou[rows, token].tolist()
            weight = [0.0] * len(chunk) if output.trace is None else output.trace.alpha[:, 0].tolist()
            for index in range(len(chunk)):
                yield Answer(_full_size(logits[index], image) > 0, quality[index], weight[index])


def _full_size(logits: NDArray[np.float32], image: EncodedImage) -> NDArray[np.float32]:
    height, width = image.input_hw
    side = logits.shape[0] * 4
    upscaled = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)[:height, :width]
    return cv2.resize(upscaled, image.size_hw[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]
