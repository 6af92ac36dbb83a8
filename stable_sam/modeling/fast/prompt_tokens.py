"""SAM's prompt tokens without picking points by their labels: a GPU need not say how many there are of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor


def prompt_tokens(encoder: PromptEncoder, boxes: Tensor | None, points: tuple[Tensor, Tensor] | None) -> Tensor:
    """The tokens (P, T, C) that `encoder(points, boxes, masks=None)` gives first, the same numbers.

    boxes: (P, 4) XYXY, and points: (P, N, 2) with labels (P, N): 1 object, 0 background, -1 padding. One of both at
    least; points without a box get a padding point more, as in SAM.
    """
    tokens = []
    if points is not None:
        xy, labels = points
        if boxes is None:
            xy, labels = F.pad(xy, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        places = encoder.pe_layer.forward_with_coords(xy + 0.5, encoder.input_image_size)
        background, thing = (embedding.weight for embedding in encoder.point_embeddings[:2])
        kind = labels[..., None]
        places = torch.where(kind == 0, places + background, torch.where(kind == 1, places + thing, places))
        tokens.append(torch.where(kind == -1, encoder.not_a_point_embed.weight, places))
    if boxes is not None:
        corners = encoder.pe_layer.forward_with_coords(boxes.view(-1, 2, 2) + 0.5, encoder.input_image_size)
        tokens.append(corners + torch.cat([embedding.weight for embedding in encoder.point_embeddings[2:]]))
    return torch.cat(tokens, dim=1)
