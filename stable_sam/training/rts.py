"""Robust training strategy (RTS): from prompts of mixed quality, the mask that people drew."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.ops import box_iou

from stable_sam.modeling.decoder import DecoderOutput, decode_prompts, route_prompts
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.training.base import multimask_loss
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.settings import PluginTraining


def plugin_loss(
    sam: Sam, settings: PluginTraining, batch: EmbeddedBatch, generator: torch.Generator, progress: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a step: every object by a box of random noise, the first of each picture also by points.

    progress: part of the run that is done, from 0 to 1; up to `routing_share` the boxes' quality alone is taught.
    """
    objects = batch.boxes.shape[1]
    size = sam.image_encoder.img_size
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = mixed_boxes(batch.boxes.flatten(0, 1), settings.noise_scales, size, generator)
    embeddings = batch.embeddings.repeat_interleave(objects, 0)
    quality = box_iou(boxes, batch.boxes.flatten(0, 1)).diagonal()
    if progress < settings.routing_share:
        loss = routing_loss(route_prompts(sam, embeddings, boxes)[:, 0], quality)
        return loss, {"routing_loss": loss.item()}
    by_box = decode_prompts(sam, embeddings, boxes=boxes)
    weight = settings.routing_weight
    loss, figures = _calibration_loss(by_box, batch.coverage.flatten(0, 1), near.flatten(0, 1), quality, weight, "box")

    count = settings.point_counts[int(torch.randint(len(settings.point_counts), (), generator=generator))]
    points = batch.points[:, 0, :count]
    labels = torch.ones(points.shape[:2], device=points.device)
    by_points = decode_prompts(sam, batch.embeddings, points=(points, labels))
    quality = torch.full((len(points),), points_quality(count), device=points.device)
    point_loss, point_figures = _calibration_loss(
        by_points, batch.coverage[:, 0], near[:, 0], quality, weight, f"points{count}"
    )
    loss = loss + 0.5 * point_loss
    if count == 1:
        loss = loss + 0.5 * multimask_loss(by_points, batch.coverage[:, 0], near[:, 0])[0]
    return loss, {**figures, **point_figures}


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


def routing_loss(alpha: Tensor, quality: Tensor) -> Tensor:
    """Squared error of alpha_1 (P,) against 1 - quality (P,), what the prompt lacks.

    Without it alpha settles at one value for all prompts: the mask's loss asks nothing else of it.
    """
    return (alpha - (1.0 - quality)).square().mean()


def _calibration_loss(
    output: DecoderOutput, coverage: Tensor, near: Tensor, quality: Tensor, routing_weight: float, name: str
) -> tuple[Tensor, dict[str, float]]:
    logits = output.logits[:, 0]
    if output.trace is None:
        raise ValueError("the model hosts no enabled plugin")
    alpha = output.trace.alpha[:, 0]
    figures = {
        f"{name}_iou": mask_iou(logits, coverage).mean().item(),
        f"{name}_alpha": alpha.mean().item(),
        f"{name}_offset": output.trace.offsets.abs().mean().item(),
    }
    return mask_loss(logits, coverage, near).mean() + routing_weight * routing_loss(alpha, quality), figures
