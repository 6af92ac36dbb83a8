"""The mask that answers a prompt that is not ambiguous: the single mask, or in SAM 2 perhaps the best of three."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_sam.modeling.bases.base import BaseSam

STABILITY_OFFSET = 0.05
"""Logit offset of this stability, which is much smaller than that of SAM's stability score."""


def single_tokens(sam: BaseSam, logits: Tensor, iou: Tensor) -> Tensor:
    """Return the mask token (P,) of P prompts that are not ambiguous: 0, or 1 to 3 where a base with a
    `least_stability` replaces an unstable single mask.

    The stability is the IoU of the masks above +`STABILITY_OFFSET` and above -`STABILITY_OFFSET`; that of a mask with
    no logit above the latter is 1. logits: those of the single mask (P, h, w). iou: predicted IoU (P, 4).
    """
    if sam.least_stability is None:
        return torch.zeros_like(iou[:, 0], dtype=torch.long)
    inner, outer = ((logits > offset).sum(dim=(1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    stability = torch.where(outer > 0, inner / outer, 1.0)
    return torch.where(stability >= sam.least_stability, 0, best_multimask(iou))


def best_multimask(iou: Tensor) -> Tensor:
    """Return the token (P,), from 1 to 3, of the multimask with the highest predicted IoU (P, 4)."""
    return iou[:, 1:].argmax(dim=1) + 1
