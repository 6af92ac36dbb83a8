"""Robust training strategy (RTS): from prompts of mixed quality, the mask that people drew."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.ops import box_iou

from stable_sam.modeling.decoder import DecoderOutput, decode_prompts, trace_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.modeling.plugin import PLUGIN_LAYER, PluginHost
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.train_base import multimask_loss
from stable_sam.training.training_config import PluginTraining

WORTH = 0.02
"""IoU that the deformed path must gain on average for alpha to open."""
HARM = 2.0
"""How much heavier a loss of IoU weighs than a gain: a prompt that was good must not pay for the bad ones."""


def plugin_loss(
    sam: Sam, settings: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator, progress: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a step: every object by a box of random noise, the first of each picture also by points.

    progress: part of the run that is done, from 0 to 1; up to `quality_alone` the boxes' quality alone is taught.
    """
    boxes, points = drawn_prompts(sam, settings, batch, generator)
    if progress < settings.quality_alone:
        assert boxes.boxes is not None
        loss = quality_loss(trace_prompts(sam, boxes.features, boxes.boxes).quality, boxes.quality)
        return loss, {"quality_loss": loss.item()}
    loss, figures = _calibration_loss(sam, boxes, settings)
    point_loss, point_figures = _calibration_loss(sam, points, settings)
    return loss + 0.5 * point_loss, {**figures, **point_figures}


class PromptBatch:
    """P prompts of one kind, with what they are compared with."""

    def __init__(
        self, name: str, features: ImageFeatures, coverage: Tensor, near: Tensor, quality: Tensor, *,
        boxes: Tensor | None = None, points: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.features, self.coverage, self.near = name, features, coverage, near
        self.quality = quality
        """(P,), the IoU of a box with the tight one, or `points_quality`."""
        self.boxes, self.points = boxes, points
        self.ambiguous = points is not None and points[0].shape[1] == 1

    def decode(self, sam: Sam) -> DecoderOutput:
        """The masks of the prompts."""
        return decode_prompts(sam, self.features, boxes=self.boxes, points=self.points)

    def iou(self, output: DecoderOutput) -> Tensor:
        """(P,), of the masks that inference would choose."""
        if not self.ambiguous:
            return mask_iou(output.logits[:, 0], self.coverage)
        chosen = output.iou[:, 1:].argmax(dim=1) + 1
        return mask_iou(output.logits[torch.arange(len(chosen)), chosen], self.coverage)

    @torch.no_grad()
    def gain(self, sam: Sam, output: DecoderOutput) -> Tensor:
        """(P,), the IoU of the deformed path's masks, `output`, less that of SAM's own."""
        host = plugin_host(sam)
        host.enabled = False
        own = self.iou(self.decode(sam))
        host.enabled = True
        return self.iou(output) - own


def drawn_prompts(
    sam: Sam, settings: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator
) -> tuple[PromptBatch, PromptBatch]:
    """The prompts of a step: a noisy box for every object, and points for the first one of each picture."""
    objects, size = batch.boxes.shape[1], sam.image_encoder.img_size
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)
    true_boxes = batch.boxes.flatten(0, 1)
    boxes = mixed_boxes(true_boxes, settings.noise_scales, size, generator)
    by_box = PromptBatch(
        "box", batch.features.repeat(objects), batch.coverage.flatten(0, 1), near.flatten(0, 1),
        box_iou(boxes, true_boxes).diagonal(), boxes=boxes,
    )  # fmt: skip
    count = settings.point_counts[int(torch.randint(len(settings.point_counts), (), generator=generator))]
    xy = batch.points[:, 0, :count]
    quality = torch.full((len(xy),), points_quality(count), device=xy.device)
    by_points = PromptBatch(
        f"points{count}", batch.features, batch.coverage[:, 0], near[:, 0], quality,
        points=(xy, torch.ones(xy.shape[:2], device=xy.device)),
    )  # fmt: skip
    return by_box, by_points


def plugin_host(sam: Sam) -> PluginHost:
    """Layer 2's host; raises `ValueError` when there is none."""
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    if not isinstance(host, PluginHost):
        raise ValueError("the model hosts no plugin")
    return host


def mixed_boxes(boxes: Tensor, scales: tuple[float, ...], size: int, generator: torch.Generator) -> Tensor:
    """Each box (P, 4) XYXY with the noise of `prompt_noise.noisy_box` at a scale drawn for it; sides at least 4
    pixels before the image clips them."""
    chosen = torch.tensor(scales)[torch.randint(len(scales), (len(boxes), 1), generator=generator)]
    sides = boxes[:, 2:] - boxes[:, :2]
    move = (torch.rand(boxes.shape, generator=generator) * 2.0 - 1.0) * chosen
    move = move.to(boxes.device)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 + move[:, :2] * sides / 2
    half = (sides * (1.0 + move[:, 2:])).clamp_min(4.0) / 2
    return torch.cat((center - half, center + half), dim=1).clamp(0, size)


def points_quality(count: int) -> float:
    """Quality of a prompt of `count` points, on the scale of a box's IoU: 0 for the ambiguous one, near 1 for many."""
    return 1.0 - 1.0 / count


def quality_loss(estimated: Tensor | None, quality: Tensor) -> Tensor:
    """Squared error of the estimated quality (P,) against the prompts' own (P,)."""
    if estimated is None:
        raise ValueError("the plugin estimates no quality")
    return (estimated - quality).square().mean()


def routing_loss(alpha: Tensor, gain: Tensor) -> Tensor:
    """How wrong alpha_1 (P,) is about the gain (P,), the IoU of the deformed path less that of SAM's path.

    Cross-entropy of alpha_1 with "the gain is worth it", weighted by how much is at stake: of prompts that look alike
    the best alpha_1 is above a half exactly where the mean of what they gain beyond `WORTH`, losses `HARM` times, is
    above 0.
    """
    stake = gain - WORTH
    weight = torch.where(stake > 0, stake, -HARM * stake)
    error = F.binary_cross_entropy(alpha.float(), (stake > 0).float(), reduction="none")
    return (error * weight).sum() / weight.sum().clamp_min(1e-6)


def _calibration_loss(sam: Sam, prompts: PromptBatch, settings: PluginTraining) -> tuple[Tensor, dict[str, float]]:
    output, name = prompts.decode(sam), prompts.name
    trace = output.trace
    if trace is None:
        raise ValueError("the model hosts no enabled plugin")
    loss = mask_loss(output.logits[:, 0], prompts.coverage, prompts.near).mean()
    if prompts.ambiguous:
        loss = loss + multimask_loss(output, prompts.coverage, prompts.near)[0]
    figures = {
        f"{name}_iou": prompts.iou(output).mean().item(), f"{name}_offset": trace.offsets.abs().mean().item(),
        f"{name}_alpha": trace.alpha[:, 0].mean().item(),
    }  # fmt: skip
    if trace.quality is not None:
        loss = loss + settings.quality_weight * quality_loss(trace.quality, prompts.quality)
    return loss, figures
