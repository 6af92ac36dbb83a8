"""SAM's prompt tokens without selecting points by label, which would make a GPU wait for the number of each.

The reference is `segment_anything.modeling.PromptEncoder`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor


def prompt_tokens(encoder: PromptEncoder, boxes: Tensor | None, points: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the sparse embeddings (P, T, C) of `encoder(points, boxes, masks=None)`, number for number.

    boxes: (P, 4) XYXY. points: xy (P, N, 2) and labels (P, N), where 1 is object, 0 background and -1 padding. At least
    one of both is given. Points without a box get one more padding point, as in SAM.
    """
    tokens = []
    if points is not None:
        xy, labels = points
        if boxes is None:
            xy, labels = F.pad(xy, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        places = encoder.pe_layer.forward_with_coords(xy + 0.5, encoder.input_image_size)
        background, foreground = (embedding.weight for embedding in encoder.point_embeddings[:2])
        kind = labels[..., None]
        places = torch.where(kind == 0, places + background, torch.where(kind == 1, places + foreground, places))
        tokens.append(torch.where(kind == -1, encoder.not_a_point_embed.weight, places))
    if boxes is not None:
        corners = encoder.pe_layer.forward_with_coords(boxes.view(-1, 2, 2) + 0.5, encoder.input_image_size)
        tokens.append(corners + torch.cat([embedding.weight for embedding in encoder.point_embeddings[2:]]))
    return torch.cat(tokens, dim=1)
