"""A base model as every other module sees it: segment_anything's `Sam`, and what the families do in their own way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from stable_sam.errors import ConfigError
from stable_sam.modeling.features import ImageFeatures

EMBEDDING_STRIDE = 16
"""Side, in input pixels, of a cell of the image embedding; it is the same for all bases."""
MASK_STRIDE = 4
"""Side, in input pixels, of a cell of SAM's mask prompts and mask logits; it is the same for all bases."""
Points = tuple[Tensor, Tensor]
"""Points (P, N, 2) XY in pixels of the model's square input, and labels (P, N): 1 is object, 0 background, -1
padding."""


@dataclass(frozen=True, slots=True)
class EarlyLayer:
    """The layer of an image encoder whose output HQ-SAM fuses."""

    layer: nn.Module
    channels: int
    stride: int
    """Side of a cell in input pixels."""
    channels_last: bool = False
    """Whether the output is (B, h, w, E) instead of (B, E, h, w)."""


class BaseSam(Sam):  # type: ignore[misc]  # segment_anything has no types
    """A base: image encoder, prompt encoder and mask decoder, with the names of segment_anything's `Sam`.

    A family overrides what differs from SAM; everything else in this project knows the bases by these members alone.
    """

    iou_token: int = 0
    """Index of the IoU token among the decoder's output tokens; the tokens of the four masks follow it."""
    least_stability: float | None = None
    """Stability of the single mask below which inference takes the best of the three multimasks instead, as
    `modeling.single_mask` says; None for a base that always keeps its single mask."""

    @property
    def input_side(self) -> int:
        """Side S of the square input in pixels."""
        return int(self.image_encoder.img_size)

    def set_input_side(self, side: int) -> None:
        """Set the side of the square input in pixels; raises `ConfigError` unless the encoder takes this side."""
        if side != self.input_side:
            raise ConfigError(f"size: this base takes an input of {self.input_side} pixels only, got {side}")

    def features(self, images: Tensor) -> ImageFeatures:
        """Compute the features of normalised images (B, 3, S, S)."""
        return ImageFeatures(self.image_encoder(images))

    def fast_features(self, images: Tensor) -> ImageFeatures:
        """Compute `features` for inference, equal but for rounding, in less time where the family knows how."""
        return self.features(images)

    @property
    def early_layer(self) -> EarlyLayer:
        """The layer whose output HQ-SAM fuses; raises `ConfigError` for a base that HQ-SAM does not know."""
        raise ConfigError("hq_uri: HQ-SAM is not defined for this base")

    @property
    def output_tokens(self) -> Tensor:
        """The decoder's output tokens (T, C)."""
        return torch.cat((self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight))

    def padded_points(self, boxes: Tensor | None, points: Points | None) -> Points | None:
        """Return the points of P prompts with the padding points that the base adds to prompts with these boxes."""
        return points

    def embed_prompts(self, boxes: Tensor | None, points: Points | None) -> tuple[Tensor, Tensor]:
        """Return the prompt tokens (P, N, C) of P prompts, and what is added to the image features for each,
        (P, C, S/16, S/16). boxes: (P, 4) XYXY in pixels of the square input."""
        sparse, dense = self.prompt_encoder(points=self.padded_points(boxes, points), boxes=boxes, masks=None)
        return sparse, dense

    @property
    def draws_prompts(self) -> bool:
        """Whether `mask_prompts` makes mask prompts."""
        return False

    def mask_prompts(self, boxes: Tensor | None, points: Points | None) -> Tensor | None:
        """Return the mask prompts (P, 1, S/4, S/4) that the base makes of the prompts itself; None for a base that
        makes none."""
        return None

    def predicted_iou(self, token: Tensor) -> Tensor:
        """Return the predicted IoU (P, 4) of the four masks. token: (P, C), the decoder's output for the IoU token."""
        iou: Tensor = self.mask_decoder.iou_prediction_head(token)
        return iou
