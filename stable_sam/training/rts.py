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
from stable_sam.modeling.plugin import PLUGIN_LAYER, PluginHost, PluginTrace
from stable_sam.training.base import multimask_loss
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.settings import PluginTraining

WORTH = 0.005
"""IoU that the deformed path must gain on average for alpha to open: less is within the noise of its own training."""


def plugin_loss(
    sam: Sam, settings: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator, progress: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a step: every object by a box of random noise, the first of each picture also by points.

    progress: part of the run that is done, from 0 to 1; up to `quality_alone` the boxes' quality alone is taught.
    """
    objects = batch.boxes.shape[1]
    size = sam.image_encoder.img_size
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = mixed_boxes(batch.boxes.flatten(0, 1), settings.noise_scales, size, generator)
    quality = box_iou(boxes, batch.boxes.flatten(0, 1)).diagonal()
    features = batch.features.repeat(objects)
    if progress < settings.quality_alone:
        loss = quality_loss(trace_prompts(sam, features, boxes), quality)
        return loss, {"quality_loss": loss.item()}
    prompts = _Prompts(features, batch.coverage.flatten(0, 1), near.flatten(0, 1), quality, boxes=boxes)
    loss, figures = _calibration_loss(sam, prompts, settings, "box")

    count = settings.point_counts[int(torch.randint(len(settings.point_counts), (), generator=generator))]
    xy = batch.points[:, 0, :count]
    points = (xy, torch.ones(xy.shape[:2], device=xy.device))
    quality = torch.full((len(xy),), points_quality(count), device=xy.device)
    prompts = _Prompts(batch.features, batch.coverage[:, 0], near[:, 0], quality, points=points)
    point_loss, point_figures = _calibration_loss(sam, prompts, settings, f"points{count}")
    return loss + 0.5 * point_loss, {**figures, **point_figures}


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


def quality_loss(trace: PluginTrace, quality: Tensor) -> Tensor:
    """Squared error of the estimated quality against the prompts' own (P,)."""
    if trace.quality is None:
        raise ValueError("the plugin estimates no quality")
    return (trace.quality - quality).square().mean()


def routing_loss(alpha: Tensor, gain: Tensor) -> Tensor:
    """How wrong alpha_1 (P,) is about the gain (P,), the IoU of the deformed path less that of SAM's path.

    Cross-entropy of alpha_1 with "the gain is worth it", weighted by how much is at stake: the best alpha_1 is above a
    half exactly where the expected gain is above `WORTH`, whatever its spread.
    """
    stake = gain - WORTH
    error = F.binary_cross_entropy(alpha.float(), (stake > 0).float(), reduction="none")
    return (error * stake.abs()).sum() / stake.abs().sum().clamp_min(1e-6)


class _Prompts:
    """P prompts of one kind, with what they are compared with."""

    def __init__(
        self, features: ImageFeatures, coverage: Tensor, near: Tensor, quality: Tensor, *,
        boxes: Tensor | None = None, points: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.features, self.coverage, self.near, self.quality = features, coverage, near, quality
        self.boxes, self.points = boxes, points
        self.ambiguous = points is not None and points[0].shape[1] == 1

    def decode(self, sam: Sam) -> DecoderOutput:
        return decode_prompts(sam, self.features, boxes=self.boxes, points=self.points)

    def iou(self, output: DecoderOutput) -> Tensor:
        """(P,), of the masks that inference would choose."""
        if not self.ambiguous:
            return mask_iou(output.logits[:, 0], self.coverage)
        chosen = output.iou[:, 1:].argmax(dim=1) + 1
        return mask_iou(output.logits[torch.arange(len(chosen)), chosen], self.coverage)


def _calibration_loss(
    sam: Sam, prompts: _Prompts, settings: PluginTraining, name: str
) -> tuple[Tensor, dict[str, float]]:
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    if not isinstance(host, PluginHost):
        raise ValueError("the model hosts no plugin")
    output = prompts.decode(sam)
    trace = host.trace
    if trace is None:
        raise ValueError("the model hosts no enabled plugin")
    loss = mask_loss(output.logits[:, 0], prompts.coverage, prompts.near).mean()
    if prompts.ambiguous:
        loss = loss + multimask_loss(output, prompts.coverage, prompts.near)[0]
    iou = prompts.iou(output)
    figures = {f"{name}_iou": iou.mean().item(), f"{name}_offset": trace.offsets.abs().mean().item()}
    if trace.quality is not None:
        loss = loss + settings.quality_weight * quality_loss(trace, prompts.quality)
    if settings.routing_weight > 0:
        host.enabled = False
        with torch.no_grad():
            gain = iou - prompts.iou(prompts.decode(sam))
        host.enabled = True
        alpha = trace.alpha[:, 0]
        loss = loss + settings.routing_weight * routing_loss(alpha, gain)
        routed = torch.where(alpha >= 0.5, gain, 0).mean().item()
        figures |= {
            f"{name}_gain": gain.mean().item(), f"{name}_routed_gain": routed,
            f"{name}_best_gain": gain.clamp_min(0).mean().item(), f"{name}_alpha": alpha.mean().item(),
        }  # fmt: skip
    return loss, figures
