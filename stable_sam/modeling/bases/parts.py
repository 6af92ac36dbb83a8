"""SAM's prompt encoder and mask decoder, untrained, for bases with an image encoder of their own."""

from __future__ import annotations

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from stable_sam.modeling.bases.base import EMBEDDING_STRIDE


def sam_parts(
    side: int,
    *,
    channels: int = 256,
    mlp_dim: int = 2048,
    heads: int = 8,
    decoder: type[MaskDecoder] = MaskDecoder,
) -> tuple[PromptEncoder, MaskDecoder]:
    """Build both for a square input of `side` pixels and an embedding of `channels`; the defaults are SAM's."""
    grid = side // EMBEDDING_STRIDE
    return (
        PromptEncoder(
            embed_dim=channels, image_embedding_size=(grid, grid), input_image_size=(side, side), mask_in_chans=16
        ),
        decoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=heads, mlp_dim=mlp_dim),
        ),
    )
