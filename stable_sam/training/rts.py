"""Robust training strategy (RTS): the plugin learns, from prompts of mixed quality, the masks that people drew."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from stable_sam.modeling.bases.base import MASK_STRIDE, BaseSam
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts, trace_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.plugin import PLUGIN_LAYER, PluginHost
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.train_base import multimask_loss
from stable_sam.training.training_config import PluginTraining

WORTH = 0.02
"""IoU that the deformed path must gain on average for alpha_1 to learn to choose it."""
HARM = 2.0
"""Weight of a lost IoU relative to a gained one, so that good prompts do not get worse for the sake of bad ones."""


def plugin_loss(
    sam: BaseSam, config: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator, progress: float
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a step and the figures to log.

    Every object is asked for by a box with random noise, and the first object of each image also by points. progress:
    the part of all steps that is done, from 0 to 1; up to `config.quality_alone` only the quality of boxes is taught.
    """
    boxes, points = drawn_prompts(sam, config, batch, generator)
    if progress < config.quality_alone:
        assert boxes.boxes is not None
        loss = quality_loss(trace_prompts(sam, boxes.features, boxes.boxes).quality, boxes.quality)
        return loss, {"quality_loss": loss.item()}
    loss, figures = _calibration_loss(sam, boxes, config)
    point_loss, point_figures = _calibration_loss(sam, points, config)
    return loss + 0.5 * point_loss, {**figures, **point_figures}


class PromptBatch:
    """P prompts of one kind, with their targets: coverage and near cells (P, h, w), and the quality of each prompt."""

    def __init__(
        self, name: str, features: ImageFeatures, coverage: Tensor, near: Tensor, quality: Tensor, *,
        boxes: Tensor | None = None, points: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.features, self.coverage, self.near = name, features, coverage, near
        self.quality = quality
        """Quality of each prompt (P,): the IoU of a box with the tight one, or `points_quality` of points."""
        self.boxes, self.points = boxes, points
        self.ambiguous = points is not None and points[0].shape[1] == 1

    def decode(self, sam: BaseSam) -> DecoderOutput:
        """Run the decoder on the prompts."""
        return decode_prompts(sam, self.features, boxes=self.boxes, points=self.points)

    def iou(self, output: DecoderOutput) -> Tensor:
        """Return the IoU (P,), on the decoder's grid, of the masks that inference would choose from `output`."""
        if not self.ambiguous:
            return mask_iou(output.logits[:, 0], self.coverage)
        chosen = output.iou[:, 1:].argmax(dim=1) + 1
        return mask_iou(output.logits[torch.arange(len(chosen)), chosen], self.coverage)

    @torch.no_grad()
    def gain(self, sam: BaseSam, output: DecoderOutput) -> Tensor:
        """Return the gain (P,): the IoU of the deformed path's masks, `output`, minus that of SAM's own masks."""
        host = plugin_host(sam)
        host.enabled = False
        own = self.iou(self.decode(sam))
        host.enabled = True
        return self.iou(output) - own


def drawn_prompts(
    sam: BaseSam, config: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator
) -> tuple[PromptBatch, PromptBatch]:
    """Draw the prompts of a step: a noisy box for every object, and points for the first object of each image."""
    objects, size = batch.boxes.shape[1], sam.input_side
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)
    true_boxes = batch.boxes.flatten(0, 1)
    boxes = mixed_boxes(true_boxes, config.noise_scales, size, generator)
    by_box = PromptBatch(
        "box", batch.features.repeat(objects), batch.coverage.flatten(0, 1), near.flatten(0, 1),
        box_iou(boxes, true_boxes).diagonal(), boxes=boxes,
    )  # fmt: skip
    count = config.point_counts[int(torch.randint(len(config.point_counts), (), generator=generator))]
    xy = batch.points[:, 0, :count]
    quality = torch.full((len(xy),), points_quality(count), device=xy.device)
    by_points = PromptBatch(
        f"points{count}", batch.features, batch.coverage[:, 0], near[:, 0], quality,
        points=(xy, torch.ones(xy.shape[:2], device=xy.device)),
    )  # fmt: skip
    return by_box, by_points


def plugin_host(sam: BaseSam) -> PluginHost:
    """Return the plugin's host in decoder layer 2; raises `ValueError` when `sam` hosts no plugin."""
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    if not isinstance(host, PluginHost):
        raise ValueError("expected a model that hosts a plugin, got none")
    return host


def mixed_boxes(boxes: Tensor, scales: tuple[float, ...], size: int, generator: torch.Generator) -> Tensor:
    """Add the noise of `prompt_noise.noisy_box` to each box (P, 4) XYXY, at a scale drawn from `scales` for each.

    Boxes are in pixels of the model's square input of side `size`. Sides are at least 4 pixels before the square clips
    them.
    """
    chosen = torch.tensor(scales)[torch.randint(len(scales), (len(boxes), 1), generator=generator)]
    sides = boxes[:, 2:] - boxes[:, :2]
    move = (torch.rand(boxes.shape, generator=generator) * 2.0 - 1.0) * chosen
    move = move.to(boxes.device)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 + move[:, :2] * sides / 2
    half = (sides * (1.0 + move[:, 2:])).clamp_min(4.0) / 2
    return torch.cat((center - half, center + half), dim=1).clamp(0, size)


def points_quality(count: int) -> float:
    """Return the quality of a prompt of `count` points: 0 for a single point, which is ambiguous, near 1 for many.

    It is comparable to the quality of a box, its IoU with the tight box.
    """
    return 1.0 - 1.0 / count


def quality_loss(estimated: Tensor | None, quality: Tensor) -> Tensor:
    """Return the mean squared error of the estimated quality (P,) against the prompts' `quality` (P,).

    Raises `ValueError` for a plugin that does not estimate quality, whose `estimated` is None.
    """
    if estimated is None:
        raise ValueError("expected a plugin that estimates quality, got none")
    return (estimated - quality).square().mean()


def routing_loss(alpha: Tensor, gain: Tensor) -> Tensor:
    """Return how wrong alpha_1 (P,) is about the gain (P,), the IoU of the deformed path minus that of SAM's path.

    It is the cross-entropy of alpha_1 with "the gain is above `WORTH`", weighted by the distance of the gain from
    `WORTH`, with distances below it counted `HARM` times. For prompts that look alike to the routing, the best alpha_1
    is therefore above 0.5 exactly when the mean of these signed distances is above 0.
    """
    stake = gain - WORTH
    weight = torch.where(stake > 0, stake, -HARM * stake)
    error = F.binary_cross_entropy(alpha.float(), (stake > 0).float(), reduction="none")
    return (error * weight).sum() / weight.sum().clamp_min(1e-6)


def _calibration_loss(sam: BaseSam, prompts: PromptBatch, config: PluginTraining) -> tuple[Tensor, dict[str, float]]:
    output, name = prompts.decode(sam), prompts.name
    trace = output.trace
    if trace is None:
        raise ValueError("expected a model that hosts an enabled plugin, got none")
    loss = mask_loss(output.logits[:, 0], prompts.coverage, prompts.near).mean()
    if prompts.ambiguous:
        loss = loss + multimask_loss(output, prompts.coverage, prompts.near)[0]
    figures = {
        f"{name}_iou": prompts.iou(output).mean().item(), f"{name}_offset": trace.offsets.abs().mean().item(),
        f"{name}_alpha": trace.alpha[:, 0].mean().item(),
    }  # fmt: skip
    if trace.quality is not None:
        loss = loss + config.quality_weight * quality_loss(trace.quality, prompts.quality)
    return loss, figures
