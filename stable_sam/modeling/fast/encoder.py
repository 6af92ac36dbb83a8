"""SAM's vision transformer without its largest arrays, for inference.

The reference is `segment_anything.modeling.ImageEncoderViT`. It stores the scores of all cells with all cells, 800 MB
in each of vit_b's global layers at 1024 pixels, and passes over them five times. This module uses torch's fused
attention instead: on a CPU for some of the queries at a time, so that their relative positions stay in its cache; on a
GPU for all at once, with the relative positions as more channels of queries and keys. The sums are the same, in another
order.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    window_partition,
    window_unpartition,
)
from torch import Tensor

SCORES_AT_A_TIME = 2**21
"""Largest number of scores whose relative positions are in memory at a time: 8 MB."""
ALIGNED_CHANNELS = 8
"""A GPU's fused kernels need heads whose number of channels is a multiple of this."""
Tables = tuple[Tensor, Tensor]
"""SAM's relative positions (H, H, D) for each pair of rows, of the query and the key, and (W, W, D) of columns."""


def encode_vit(encoder: ImageEncoderViT, images: Tensor) -> Tensor:
    """Compute `encoder(images)`, the embedding (B, 256, S/16, S/16) of normalised images (B, 3, S, S)."""
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
    """Compute `attention(x)` of x (B, H, W, C)."""
    if not attention.use_rel_pos:
        return cast(Tensor, attention(x))
    batch, height, width, _ = x.shape
    qkv = attention.qkv(x).view(batch, height * width, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H * W, C / heads)
    tables = _relative(attention.rel_pos_h, height), _relative(attention.rel_pos_w, width)
    read = read_in_parts if x.device.type == "cpu" else read_by_channels
    return cast(Tensor, attention.proj(read(q, k, v, tables, attention.scale).reshape(x.shape)))


def read_in_parts(q: Tensor, k: Tensor, v: Tensor, tables: Tables, scale: float) -> Tensor:
    """Compute attention of q to k and v, all (B, heads, H * W, D), with relative positions.

    It takes a part of the queries at a time, with their relative positions as the mask of torch's fused attention.
    Returns (B, H * W, heads, D).
    """
    batch, heads, _, channels = q.shape
    down, across = _relative_scores(q, tables)
    height, width = down.shape[2:4]
    # A part is several images or windows, or some rows of one of them.
    scores_of_row = heads * width * height * width
    images = max(1, SCORES_AT_A_TIME // (scores_of_row * height))
    rows = max(1, min(height, SCORES_AT_A_TIME // scores_of_row))
    out = torch.empty(batch, height * width, heads, channels, dtype=q.dtype, device=q.device)
    for image in range(0, batch, images):
        some = slice(image, image + images)
        for row in range(0, height, rows):
            part, cells = slice(row, row + rows), slice(row * width, (row + rows) * width)
            bias = down[some, :, part, :, :, None] + across[some, :, part, :, None, :]
            read = F.scaled_dot_product_attention(
                q[some, :, cells], k[some], v[some], attn_mask=bias.flatten(4, 5).flatten(2, 3), scale=scale
            )
            out[some, cells] = read.transpose(1, 2)
    return out


def read_by_channels(q: Tensor, k: Tensor, v: Tensor, tables: Tables, scale: float) -> Tensor:
    """Compute the result of `read_in_parts` without a mask, which would be 400 MB in a global layer of vit_b in
    bfloat16.

    The score of the relative position, down[query, row of key] + across[query, column of key], is the product of
    (down, across) with two unit vectors for the key's row and column. So queries and keys get H + W more channels.
    """
    channels = v.shape[3]
    height, width = (len(table) for table in tables)
    terms = [scores.flatten(2, 3) for scores in _relative_scores(q, (tables[0] / scale, tables[1] / scale))]
    rows = torch.eye(height, dtype=q.dtype, device=q.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=q.dtype, device=q.device).expand(height, -1, -1)
    places = torch.cat((rows, columns), dim=2).flatten(0, 1).expand(*k.shape[:2], -1, -1)
    longer = -(channels + height + width) % ALIGNED_CHANNELS
    q = F.pad(torch.cat((q, *terms), dim=3), (0, longer))
    k = F.pad(torch.cat((k, places), dim=3), (0, longer))
    if q.dtype != torch.float32:
        # Flash attention needs values with as many channels as queries; in float32 it does not exist.
        v = F.pad(v, (0, q.shape[3] - channels))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :channels].transpose(1, 2)


def _relative(table: Tensor, size: int) -> Tensor:
    """Look up SAM's table (2 * size - 1, D) for the distance of each query from each key: (size, size, D)."""
    steps = torch.arange(size, device=table.device)  # an index on another device would make a GPU wait
    return table[steps[:, None] - steps + size - 1]


def _relative_scores(q: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Return what relative positions add to the scores of q (B, heads, H * W, D): (B, heads, H, W, H) for the keys'
    rows and (B, heads, H, W, W) for their columns."""
    grid = torch.unflatten(q, 2, (len(tables[0]), len(tables[1])))
    down = torch.einsum("bnhwc,hkc->bnhwk", grid, tables[0])
    across = torch.einsum("bnhwc,wkc->bnhwk", grid, tables[1])
    return down, across
