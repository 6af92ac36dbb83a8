"""The masks of chosen tokens of each prompt, upscaled as matrix products.

The reference is `modeling.decoder.read_masks`, which upscales for all mask tokens by transposed convolutions. Results
differ by rounding.
"""

from __future__ import annotations

from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from stable_sam.modeling.features import FineFeatures


def mask_kernels(decoder: MaskDecoder, queries: Tensor, chosen: Tensor) -> Tensor:
    """Return the kernels (P, K, C/8) of the K masks of each prompt whose tokens are `chosen` (P, K).

    queries: the mask tokens (P, 4, C), or only the first (P, 1, C).
    """
    mlps = list(decoder.output_hypernetworks_mlps)[: queries.shape[1]]
    kernels = torch.stack([mlp(query) for mlp, query in zip(mlps, queries.unbind(1), strict=True)], dim=1)
    return kernels[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]


def mask_logits(decoder: MaskDecoder, features: Tensor, fine: FineFeatures | None, kernels: Tensor) -> Tensor:
    """Return the logits (P, K, 4H, 4W) that `kernels` (P, K, C/8) read from the upscaled `features` (P, N, C)."""
    first, norm, _, second, _ = decoder.output_upscaling
    prompts, cells, _ = features.shape
    side = isqrt(cells)
    x = upscaled(first, features)
    if fine is not None:
        x = x.add_(fine[1])
    x = upscaled(second, F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)))
    if fine is not None:
        x = x.add_(fine[0])
    x = F.gelu(x)  # (P, N, 4, 4, C/8): prompt, cell, quarter of the cell, quarter of that quarter, channel
    quarters = (kernels @ x.flatten(1, 3).mT).view(prompts, -1, side, side, 2, 2, 2, 2)
    return quarters.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(prompts, -1, 4 * side, 4 * side)


def quarters_of(grid: Tensor, halvings: int) -> Tensor:
    """Reorder (1, C, H * 2^n, W * 2^n) to (H * W, 4, ..., 4, C): the cell, then n times the quarter, n = `halvings`."""
    parts = (-1,) + (2,) * halvings
    split = torch.unflatten(torch.unflatten(grid[0], 2, parts), 1, parts)  # channel, parts of rows, parts of columns
    rows, columns = range(1, 2 + halvings), range(2 + halvings, 3 + 2 * halvings)
    order = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    return split.permute(*order, 0).reshape(-1, *(4,) * halvings, grid.shape[1])


def upscaled(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a transposed convolution with a 2 x 2 kernel and stride 2: (..., C) to (..., 4, C')."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * C', C)
    return torch.unflatten(F.linear(x, weight, cast(Tensor, layer.bias).repeat(4)), -1, (4, -1))
