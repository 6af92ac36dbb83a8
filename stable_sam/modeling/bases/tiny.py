"""`tiny`: a base with random weights of a fixed seed, which builds and runs in milliseconds, for tests."""

from __future__ import annotations

import torch
from torch import nn

from stable_sam.modeling.bases.base import EMBEDDING_STRIDE, BaseSam, EarlyLayer
from stable_sam.modeling.bases.parts import sam_parts

TINY_SIDE = 64


class TinySam(BaseSam):
    """A Sam whose image encoder is one layer."""

    @property
    def early_layer(self) -> EarlyLayer:
        """The only layer."""
        patches = self.image_encoder.patches
        return EarlyLayer(patches, patches.out_channels, EMBEDDING_STRIDE)


class TinyImageEncoder(nn.Module):
    """An image encoder that is one convolution of 16 x 16 pixels at stride 16."""

    def __init__(self, img_size: int, out_channels: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.patches = nn.Conv2d(3, out_channels, EMBEDDING_STRIDE, stride=EMBEDDING_STRIDE)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the embedding (B, out_channels, S/16, S/16) of an image (B, 3, S, S)."""
        return self.patches(image)  # type: ignore[no-any-return]


def build_tiny(side: int = TINY_SIDE) -> TinySam:
    """Build `tiny` for a square input of `side` pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TinyImageEncoder(side, out_channels=32)
        sam: TinySam = TinySam(encoder, *sam_parts(side, channels=32, mlp_dim=64, heads=4)).eval()
    return sam


def build(name: str) -> BaseSam:
    """Build `tiny`, the only base of this family."""
    return build_tiny()


def load(name: str, data: bytes, file: str) -> BaseSam:
    """Build `tiny`, which has no file."""
    return build_tiny()
