"""HQ-SAM (Ke et al. 2023, arXiv 2306.01567, Figure 2): the branch that it adds to a frozen SAM.

An HQ output token passes SAM's decoder after the mask tokens. Its mask is read from the decoder's features fused with
the image embedding and with early features of the image encoder, in which borders are still sharp. The logits of the
final mask are the sum of those of SAM's mask and of the HQ mask.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from stable_sam.modeling.bases.base import EMBEDDING_STRIDE, BaseSam
from stable_sam.modeling.features import ImageFeatures


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


def build_hq(sam: BaseSam) -> HqBranch:
    """Build an untrained branch that fits `sam` without attaching it; raises `ConfigError` for a base without one."""
    early = sam.early_layer
    return HqBranch(sam.prompt_encoder.embed_dim, early.channels, early.stride)


def attach_hq(sam: BaseSam, branch: HqBranch) -> HqBranch:
    """Freeze `sam`, set `sam.hq` to `branch`, whose parameters alone learn, and return `branch`."""
    sam.requires_grad_(False)
    branch.requires_grad_(True).train(sam.training)
    sam.hq = branch
    return branch


def encode_with_early(sam: BaseSam, images: Tensor) -> ImageFeatures:
    """Run the image encoder once and keep the early features (B, E, h, w) that HQ-SAM fuses.

    images: (B, 3, S, S), normalised.
    """
    kept: list[Tensor] = []
    early = sam.early_layer
    handle = early.layer.register_forward_hook(lambda _layer, _inputs, output: kept.append(output))
    try:
        features = sam.features(images)
    finally:
        handle.remove()
    return replace(features, early=kept[0].permute(0, 3, 1, 2) if early.channels_last else kept[0])
