"""Prompt stability computed on the GPU, so that one number for each prompt is copied to the host, not its K masks.

At 1024 pixels the logits are 262 kB for each mask, 21 MB for ten prompts with K = 8, and to count their pixels on one
core of the host takes longer than the GPU takes for the whole image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_sam.images.frames import Frame

PIXELS_AT_A_TIME = 2**26
"""Largest number of mask pixels, at the resolution of the model's input, in memory at a time: 270 MB of logits, which
are 8 prompts with K = 8 at 1024 pixels."""


@torch.inference_mode()
def prompt_stabilities(logits: Tensor, frame: Frame) -> list[float]:
    """Compute the mSF of each of P prompts from the logits (P, K, h, w) of its K jittered prompts, on any device.

    The result equals `stability.prompt_stability` of `Frame.masks_on_input`, except for pixels whose logit rounding
    moves across 0.
    """
    height, width = frame.resized_hw
    prompts = max(1, PIXELS_AT_A_TIME // (logits.shape[1] * frame.side**2))
    scores = []
    for some in torch.split(logits, prompts):
        values = F.interpolate(some, (frame.side, frame.side), mode="bilinear", align_corners=False)
        inside = values[..., :height, :width] > 0
        covered = inside.sum(dim=(1, 2, 3)).double()
        union = inside.any(dim=1).sum(dim=(1, 2))
        scores.append(covered / (logits.shape[1] * union.clamp(min=1)))
    stabilities: list[float] = torch.cat(scores).tolist()
    return stabilities
