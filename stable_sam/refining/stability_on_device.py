"""prompt_stability where the logits are: from a GPU a number for each prompt comes back instead of K masks' logits.

At 1024 pixels those are 262 kB a mask, 21 MB for ten prompts with K = 8, and counting them on the host's one core takes
longer than the GPU takes for the whole image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_sam.images.frames import Frame

PIXELS_AT_A_TIME = 2**26
"""Of the model's input, of all masks together: 270 MB of logits, 8 prompts with K = 8 at 1024 pixels."""


@torch.inference_mode()
def prompt_stabilities(logits: Tensor, frame: Frame) -> list[float]:
    """mSF of each of P prompts from logits (P, K, h, w) of its K jittered ones, on any device.

    The same as `stability.prompt_stability` of `Frame.masks_on_input`, but for pixels that rounding puts on the other
    side of 0.
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
