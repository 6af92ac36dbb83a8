"""HQ-SAM (Ke et al. 2023, arXiv 2306.01567, Figure 2): the branch that it adds to a frozen SAM.

An HQ output token passes SAM's decoder after the mask tokens. Its mask is read from the decoder's features fused with
the image embedding and with early features of the image encoder, in which borders are still sharp. The logits of the
final mask are the sum of those of SAM's mask and of the HQ mask.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.nano import STAGE_CHANNELS, NanoImageEncoder

EMBEDDING_STRIDE = 16
"""Side, in input pixels, of a cell of the image embedding; it is the same for all models."""


class HqBranch(nn.Module):
    """The learnable parts of HQ-SAM, with the names that the published files give them under `mask_decoder.`.

    `compress_vit_feat` upscales the early features to four times the resolution of the embedding. Early features of a
    ViT have stride 16 and pass two transposed convolutions, as published. Those of `nano` have stride 8, so its first
    layer is a 1 x 1 convolution. All other layers are as published.
    """

    def __init__(self, channels: int, early_channels: int, early_stride: int = EMBEDDING_STRIDE) -> None:
        """`channels` is the width of the embedding, 256; `early_channels` and `early_stride`, in input pixels, describe
        the early features."""
        super().__init__()
        self.enabled = True
        """Whether `predict` adds the HQ mask; False gives SAM's own masks on the same base."""
        factor = early_stride * 2 // EMBEDDING_STRIDE
        self.hf_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, channels // 8, 3)
        self.compress_vit_feat = _upscaling(early_channels, channels, channels // 8, factor)
        self.embedding_encoder = _upscaling(channels, channels // 4, channels // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(channels // 8, channels // 4, 3, padding=1),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 8, 3, padding=1),
        )

    def forward(self, embeddings: Tensor, early: Tensor, upscaled: Tensor, token: Tensor) -> Tensor:
        """Compute the logits of the HQ masks (P, 1, 4H, 4W), to be added to those of SAM's masks.

        embeddings: (P, C, H, W). early: (P, E, h, w), or (1, E, h, w) when all prompts share one image. upscaled:
        (P, C/8, 4H, 4W), the decoder's features that SAM's masks are read from. token: (P, C), the HQ token's output.
        """
        fused = self.embedding_encoder(embeddings[: len(early)]) + self.compress_vit_feat(early)
        features = self.embedding_maskfeature(upscaled) + fused
        kernel = self.hf_mlp(token)[:, None]  # (P, 1, C/8)
        return cast(Tensor, (kernel @ features.flatten(2)).unflatten(2, features.shape[-2:]))


def _upscaling(channels: int, hidden: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    # The first kernel is as large as its stride, so a factor of 1 makes it a 1 x 1 convolution.
    return nn.Sequential(
        nn.ConvTranspose2d(channels, hidden, factor, stride=factor),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, out_channels, 2, stride=2),
    )


def build_hq(sam: Sam) -> HqBranch:
    """Build an untrained branch that fits `sam`, which may be any model of the registry, without attaching it."""
    _, channels, stride = _early_layer(sam.image_encoder)
    return HqBranch(sam.prompt_encoder.embed_dim, channels, stride)


def attach_hq(sam: Sam, branch: HqBranch) -> HqBranch:
    """Freeze `sam`, set `sam.hq` to `branch`, whose parameters alone learn, and return `branch`."""
    sam.requires_grad_(False)
    branch.requires_grad_(True).train(sam.training)
    sam.hq = branch
    return branch


def encode_with_early(sam: Sam, images: Tensor) -> ImageFeatures:
    """Run the image encoder once and keep the early features that HQ-SAM fuses.

    images: (B, 3, S, S), normalised. The early features (B, E, h, w) of a ViT are the output of its first block with
    global attention, at stride 16; those of `nano` are the output of the backbone's stage at stride 8.
    """
    kept: list[Tensor] = []
    layer, _, _ = _early_layer(sam.image_encoder)
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: kept.append(output))
    try:
        encoder = sam.image_encoder
        nano = isinstance(encoder, NanoImageEncoder)
        features = encoder.features(images) if nano else ImageFeatures(encoder(images))
    finally:
        handle.remove()
    early = kept[0]
    return replace(features, early=early.permute(0, 3, 1, 2) if isinstance(encoder, ImageEncoderViT) else early)


def _early_layer(encoder: nn.Module) -> tuple[nn.Module, int, int]:
    """Return the layer whose output is the early features, its channels and its stride in input pixels."""
    if isinstance(encoder, ImageEncoderViT):
        block = next(block for block in encoder.blocks if block.window_size == 0)
        return block, block.norm1.normalized_shape[0], EMBEDDING_STRIDE
    if isinstance(encoder, NanoImageEncoder):
        return encoder.backbone.stage2, STAGE_CHANNELS[1], 8
    patches = cast(nn.Conv2d, encoder.patches)  # `tiny` has this one layer
    return patches, patches.out_channels, EMBEDDING_STRIDE
