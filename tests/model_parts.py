"""What tests ask of a model beside what the library does with it."""

from __future__ import annotations

from torch import nn

from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.plugin import ImageStreamHost, PluginHost


def detach_plugin(sam: BaseSam) -> None:
    """Give `sam` its own attentions back; nothing happens when it hosts no plugin."""
    for block in sam.mask_decoder.transformer.layers:
        if isinstance(block.cross_attn_token_to_image, PluginHost):
            block.cross_attn_token_to_image = block.cross_attn_token_to_image.attention
        if isinstance(block.cross_attn_image_to_token, ImageStreamHost):
            block.cross_attn_image_to_token = block.cross_attn_image_to_token.attention


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
