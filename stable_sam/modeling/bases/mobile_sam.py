"""MobileSAM (Zhang et al. 2023, arXiv 2306.14289): a TinyViT of timm in front of SAM's prompt encoder and mask decoder.

`state_dict` and `load_state_dict` use the names of the published files, so that every check speaks of a file's own
names, and all of its tensors have a place here, the head of TinyViT's classifier too, which nothing calls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self, cast

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from stable_sam.modeling.bases.base import EMBEDDING_STRIDE, BaseSam, EarlyLayer
from stable_sam.modeling.bases.parts import sam_parts
from stable_sam.modeling.fast.tiny_vit import encode_tiny_vit
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.weights import load_strictly, read_checkpoint

SIDE = 1024
"""Side of the square input in pixels."""
EMBED_DIM = 256
STAGE_CHANNELS = (64, 128, 160, 320)
"""Channels of the trunk's four stages, whose strides are 4, 8, 16 and 16."""
DEPTHS = (2, 2, 6, 2)
"""Blocks of each stage."""


class MobileSam(BaseSam):
    """A SAM whose image encoder is a TinyViT."""

    def fast_features(self, images: Tensor) -> ImageFeatures:
        """Compute `features` with the batch norms folded into the convolutions."""
        return ImageFeatures(encode_tiny_vit(self.image_encoder, images))

    @property
    def early_layer(self) -> EarlyLayer:
        """The layer that brings the second stage's output to stride 16, which Light HQ-SAM fuses."""
        return EarlyLayer(self.image_encoder.trunk.stages[2].downsample, STAGE_CHANNELS[2], EMBEDDING_STRIDE)


class TinyVitEncoder(nn.Module):
    """TinyViT-5M, whose last stage stays at stride 16, and the neck of SAM's vision transformer."""

    def __init__(self, img_size: int = SIDE, depths: Sequence[int] = DEPTHS) -> None:
        super().__init__()
        self.img_size = img_size
        """Side S of the square input in pixels; `segment_anything.Sam` reads it by this name."""
        self.trunk = TinyVit(
            embed_dims=STAGE_CHANNELS, depths=tuple(depths), num_heads=(2, 4, 5, 10), window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )  # fmt: skip
        self.trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(STAGE_CHANNELS[3], EMBED_DIM, 1, bias=False),
            LayerNorm2d(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            LayerNorm2d(EMBED_DIM),
        )
        self.register_state_dict_post_hook(_to_published_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_published_names)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the embedding (B, 256, S/16, S/16) of images (B, 3, S, S) normalised as SAM's are."""
        return cast(Tensor, self.neck(self.trunk.forward_features(images)))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is: this base is never trained, and in training mode each pass would
        change its running statistics."""
        return super().train(False)


def published_name(name: str) -> str:
    """Return the name in the published files of the tensor that `TinyVitEncoder` calls `name`."""
    name = name.removeprefix("trunk.").replace(".conv.", ".c.")
    name = re.sub(r"^patch_embed\.conv([12])", lambda found: f"patch_embed.seq.{2 * int(found[1]) - 2}", name)
    # timm begins a stage with the layer that ends the stage before in the published files.
    name = re.sub(r"^stages\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
    name = re.sub(r"^stages", "layers", name)
    return name.replace("head.norm", "norm_head").replace("head.fc", "head")


def _to_published_names(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    for name in [key.removeprefix(prefix) for key in state if key.startswith(f"{prefix}trunk.")]:
        state[prefix + published_name(name)] = state.pop(prefix + name)


def _from_published_names(module: TinyVitEncoder, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name in [f"trunk.{key}" for key in module.trunk.state_dict()]:
        if prefix + published_name(name) in state:
            state[prefix + name] = state.pop(prefix + published_name(name))
    module.eval()  # timm keeps the attention biases of the first pass until the mode is set again


def build_mobile_sam(side: int = SIDE, depths: Sequence[int] = DEPTHS) -> MobileSam:
    """Build an untrained MobileSAM for a square input of `side` pixels; published files are of the default size."""
    sam: MobileSam = MobileSam(TinyVitEncoder(side, depths), *sam_parts(side)).eval()
    return sam


def build(name: str) -> BaseSam:
    """Build `vit_t`, the only base of this family."""
    return build_mobile_sam()


def load(name: str, data: bytes, file: str) -> BaseSam:
    """Load a published checkpoint (.pt)."""
    sam = build(name)
    load_strictly(sam, read_checkpoint(data, file), file, name)
    return sam
