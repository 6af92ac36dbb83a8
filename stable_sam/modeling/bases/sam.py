"""SAM with a vision transformer (Kirillov et al. 2023): `vit_b`, `vit_l` and `vit_h`, built by segment_anything."""

from __future__ import annotations

from segment_anything import sam_model_registry
from torch import Tensor

from stable_sam.modeling.bases.base import EMBEDDING_STRIDE, BaseSam, EarlyLayer
from stable_sam.modeling.fast.encoder import encode_vit
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.weights import load_strictly, read_checkpoint


class VitSam(BaseSam):
    """A SAM of segment_anything's registry."""

    def fast_features(self, images: Tensor) -> ImageFeatures:
        """Compute `features` without the largest arrays of segment_anything's encoder."""
        return ImageFeatures(encode_vit(self.image_encoder, images))

    @property
    def early_layer(self) -> EarlyLayer:
        """The first block with global attention."""
        block = next(block for block in self.image_encoder.blocks if block.window_size == 0)
        return EarlyLayer(block, block.norm1.normalized_shape[0], EMBEDDING_STRIDE, channels_last=True)


def build(name: str) -> BaseSam:
    """Build `vit_b`, `vit_l` or `vit_h`, as `name` says."""
    built = sam_model_registry[name](checkpoint=None)
    sam: VitSam = VitSam(built.image_encoder, built.prompt_encoder, built.mask_decoder).eval()
    return sam


def load(name: str, data: bytes, file: str) -> BaseSam:
    """Load an official checkpoint (.pth)."""
    sam = build(name)
    load_strictly(sam, read_checkpoint(data, file), file, name)
    return sam
