"""Losses of the decoder's logits; their target is the part of each cell that the object covers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.25
"""Distance from a box, as a part of its sides, up to which cells outside it count as near."""


def mask_loss(logits: Tensor, coverage: Tensor, near: Tensor) -> Tensor:
    """Compute the binary cross-entropy (BCE) plus the dice loss of each mask, (...).

    logits and coverage: (..., h, w). near: (..., h, w), 1 for cells in and around the object's box, else 0. The BCE is
    the mean over the near cells plus the mean over the others, so that a small object weighs as much as a large one.
    """
    coverage = coverage.expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, coverage, reduction="none")
    far = 1.0 - near
    inside = (bce * near).sum((-2, -1)) / near.sum((-2, -1)).clamp_min(1.0)
    outside = (bce * far).sum((-2, -1)) / far.sum((-2, -1)).clamp_min(1.0)
    probability = logits.sigmoid()
    overlap = (probability * coverage).sum((-2, -1))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum((-2, -1)) + coverage.sum((-2, -1)) + 1.0)
    return inside + outside + dice


def near_cells(boxes: Tensor, cells: int, stride: int) -> Tensor:
    """Return 1 for cells whose centre lies in the box, grown by `MARGIN` of its sides and one cell, else 0.

    boxes: (..., 4) XYXY in input pixels. stride: input pixels of a cell's side. Returns (..., cells, cells).
    """
    grown = boxes / stride
    sides = (grown[..., 2:] - grown[..., :2]) * MARGIN + 1.0
    low, high = grown[..., :2] - sides, grown[..., 2:] + sides
    centers = torch.arange(cells, device=boxes.device, dtype=boxes.dtype) + 0.5
    in_x = (centers >= low[..., 0:1]) & (centers <= high[..., 0:1])
    in_y = (centers >= low[..., 1:2]) & (centers <= high[..., 1:2])
    return (in_y[..., :, None] & in_x[..., None, :]).to(boxes.dtype)


def mask_iou(logits: Tensor, coverage: Tensor) -> Tensor:
    """Return the IoU (...) of thresholded masks (..., h, w) on the decoder's grid; 0 when both are empty."""
    predicted, actual = logits > 0, coverage > 0.5
    overlap = (predicted & actual).sum((-2, -1))
    union = (predicted | actual).sum((-2, -1))
    return overlap / union.clamp_min(1)
