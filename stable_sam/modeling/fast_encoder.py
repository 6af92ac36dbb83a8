"""SAM's vision transformer without its largest arrays, for inference.

`segment_anything` keeps the scores of all cells with all cells, 800 MB in each of vit_b's global layers at 1024 pixels,
and passes over them five times. Here the queries go through torch's fused attention in parts, whose relative positions
stay in a processor's cache. The sums are the same, in another order.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor

SCORES_AT_A_TIME = 2**21
"""Largest number of scores whose relative positions exist at a time: 8 MB."""


def encode(sam: Sam, images: Tensor) -> Tensor:
    """The embedding (B, C, S/16, S/16) of images (B, 3, S, S), normalised, by any encoder of the registry."""
    encoder = sam.image_encoder
    if not isinstance(encoder, ImageEncoderViT):
        return cast(Tensor, encoder(images))
    x = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        x = x + _attended(block, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return cast(Tensor, encoder.neck(x.permute(0, 3, 1, 2)))


def _attended(block: Block, x: Tensor) -> Tensor:
    if block.window_size == 0:
        return _attention(block.attn, x)
    windows, padded = window_partition(x, block.window_size)
    return cast(Tensor, window_unpartition(_attention(block.attn, windows), block.window_size, padded, x.shape[1:3]))


def _attention(attention: Attention, x: Tensor) -> Tensor:
    """`attention(x)`, x: (B, H, W, C)."""
    if not attention.use_rel_pos:
        return cast(Tensor, attention(x))
    batch, height, width, _ = x.shape
    qkv = attention.qkv(x).view(batch, height * width, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H * W, C / heads)
    grid = q.unflatten(2, (height, width))
    down = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, attention.rel_pos_h))
    across = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, attention.rel_pos_w))
    # A part is some windows, or some rows of the one image.
    scores_of_row = attention.num_heads * width * height * width
    images = max(1, SCORES_AT_A_TIME // (scores_of_row * height))
    rows = max(1, min(height, SCORES_AT_A_TIME // scores_of_row))
    out = torch.empty(batch, height * width, attention.num_heads, q.shape[3], dtype=q.dtype, device=q.device)
    for image in range(0, batch, images):
        some = slice(image, image + images)
        for row in range(0, height, rows):
            part, cells = slice(row, row + rows), slice(row * width, (row + rows) * width)
            bias = down[some, :, part, :, :, None] + across[some, :, part, :, None, :]
            read = F.scaled_dot_product_attention(
                q[some, :, cells], k[some], v[some], attn_mask=bias.flatten(4, 5).flatten(2, 3), scale=attention.scale
            )
            out[some, cells] = read.transpose(1, 2)
    return cast(Tensor, attention.proj(out.view(x.shape)))
