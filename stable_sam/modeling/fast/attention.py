"""SAM's attention between tokens and cells, with its projections moved from the many cells to the few tokens.

q.(W x) = (W'q).x, and sum a_i (W x_i) = W (sum a_i x_i). The reference is
`segment_anything.modeling.transformer.Attention`, whose results these functions give but for rounding.
"""

from __future__ import annotations

from typing import cast

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor


def read_cells(attention: Attention, q: Tensor, positioned: Tensor, features: Tensor) -> Tensor:
    """Compute `attention` of tokens q (P, T, C) to cells: keys `positioned` and values `features`, both (P, N, C)."""
    # The bias of the keys adds the same number to the scores of all cells, and softmax ignores that.
    asked = asked_of_cells(per_token(attention.q_proj(q), attention), attention.k_proj.weight, attention)
    read = (asked @ positioned.mT).softmax(dim=-1) @ features  # (P, h * T, C)
    weight = per_head(attention.v_proj.weight, attention)
    value = torch.einsum("phtc,hdc->pthd", torch.unflatten(read, 1, (len(weight), -1)), weight)
    return cast(Tensor, attention.out_proj(value.flatten(2) + attention.v_proj.bias))


def asked_of_cells(query: Tensor, weight: Tensor, attention: Attention) -> Tensor:
    """Multiply query (P, T, h, D) by `weight` (h * D, C), which projects cells: the product (P, h * T, C) gives the
    scores of unprojected cells."""
    return torch.einsum("pthd,hdc->phtc", query, per_head(weight, attention)).flatten(1, 2)


def written_to_cells(attention: Attention, v: Tensor) -> Tensor:
    """Return the vectors (P, h * T, C) that each head would write into a cell that attends to one token of v (P, T, C)
    alone."""
    values = attention.v_proj(v).unflatten(2, (attention.num_heads, -1))
    weight = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1))
    written = torch.einsum("pthd,chd->phtc", values, weight).flatten(1, 2)
    # A cell's weights add up to 1 in each head, so equal parts of the bias for the heads add up to the whole bias.
    return cast(Tensor, written + attention.out_proj.bias / attention.num_heads)


def per_token(projected: Tensor, attention: Attention) -> Tensor:
    """Split (P, T, h * D) into heads (P, T, h, D) and divide by sqrt(D), as attention divides its scores."""
    query = torch.unflatten(projected, 2, (attention.num_heads, -1))
    return query * float(query.shape[-1] ** -0.5)


def per_head(weight: Tensor, attention: Attention) -> Tensor:
    """Split a weight (h * D, C) into heads (h, D, C)."""
    return torch.unflatten(weight, 0, (attention.num_heads, -1))
