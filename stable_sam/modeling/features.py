"""The features that an image encoder computes and the mask decoder reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FineFeatures = tuple[Tensor, Tensor]
"""Features (B, C/8, S/4, S/4) and (B, C/4, S/8, S/8), added inside the mask decoder's upscaling, as in SAM 2."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """The features of B images of S x S input pixels; C is the width of the decoder, 256."""

    embedding: Tensor
    """SAM's image embedding (B, C, S/16, S/16)."""
    fine: FineFeatures | None = None
    """Fine features; None for encoders without them, such as SAM's own."""
    early: Tensor | None = None
    """The encoder's early features (B, E, h, w), which HQ-SAM fuses; None when HQ-SAM is off."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return features whose tensors are the results of `change` on the tensors of these."""
        fine = None if self.fine is None else (change(self.fine[0]), change(self.fine[1]))
        return type(self)(change(self.embedding), fine, None if self.early is None else change(self.early))

    def repeat(self, count: int) -> Self:
        """Repeat each image's features `count` times in a row, once for each of its `count` prompts."""
        return self.map(lambda part: part.repeat_interleave(count, 0))


def stack_features(images: Sequence[ImageFeatures]) -> ImageFeatures:
    """Concatenate the features of several images, each a batch of one, into one batch."""
    named = [feature_names(image) for image in images]
    return named_features({name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})


def feature_names(features: ImageFeatures) -> dict[str, Tensor]:
    """Return the tensors of `features` by the names under which the embedding cache stores them."""
    tensors = {"embedding": features.embedding}
    if features.fine is not None:
        tensors |= {"fine4": features.fine[0], "fine8": features.fine[1]}
    return tensors if features.early is None else tensors | {"early": features.early}


def named_features(tensors: Mapping[str, Tensor]) -> ImageFeatures:
    """Build features from tensors named as by `feature_names`."""
    fine = (tensors["fine4"], tensors["fine8"]) if "fine4" in tensors else None
    return ImageFeatures(tensors["embedding"], fine, tensors.get("early"))
