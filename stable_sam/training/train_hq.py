"""Training of HQ-SAM's branch on any frozen base, for a fair comparison with the plugin.

As in HQ-SAM's own recipe (Ke et al. 2023, section 3.3), only the branch learns, the loss is BCE + dice of the HQ mask
alone, and its sum with SAM's mask is taken in inference. Prompts, images, steps and optimiser differ from that recipe:
they are those of the plugin's training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stable_sam.modeling.bases.base import MASK_STRIDE, BaseSam
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts
from stable_sam.modeling.hq import attach_hq, build_hq
from stable_sam.modeling.load import LoadedModel
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.frozen import train_frozen
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.rts import mixed_boxes
from stable_sam.training.training_config import FrozenBaseTraining


def train_hq(
    model: LoadedModel, data_dir: Path, out_dir: Path, config: FrozenBaseTraining, *, cache_dir: Path | None = None
) -> Path:
    """Train a branch for the frozen `model`, loaded without a plugin, and return the file of its weights.

    cache_dir: folder for the embeddings, which trainings may share; by default `out_dir/embeddings`. Training resumes
    from `out_dir/checkpoint.pt`. Raises `InputError`, `ConfigError`, `StorageError` and `WeightsError`.
    """
    torch.manual_seed(config.seed)
    branch = attach_hq(model.sam, build_hq(model.sam).to(model.device))

    def loss(batch: EmbeddedBatch, generator: torch.Generator, _progress: float) -> tuple[Tensor, dict[str, float]]:
        return hq_loss(model.sam, batch, config, generator)

    return train_frozen(
        replace(model, hq=branch), branch, loss, config,
        data_dir=data_dir, out_file=out_dir / "hq.safetensors", metadata={}, cache_dir=cache_dir,
    )  # fmt: skip


def hq_loss(
    sam: BaseSam, batch: EmbeddedBatch, config: FrozenBaseTraining, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a step and the figures to log.

    Every object is asked for by a box with random noise, and the first object of each image also by points. With the
    same `generator` the prompts are those of `rts.plugin_loss`. Raises `ValueError` when `batch` has no early features.
    """
    if batch.features.early is None:
        raise ValueError("expected a batch with early features, got none")
    objects = batch.boxes.shape[1]
    size = sam.input_side
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = mixed_boxes(batch.boxes.flatten(0, 1), config.noise_scales, size, generator)
    by_box = decode_prompts(sam, batch.features.repeat(objects), boxes=boxes)
    loss, figures = _hq_mask_loss(by_box, batch.coverage.flatten(0, 1), near.flatten(0, 1), "box")

    count = config.point_counts[int(torch.randint(len(config.point_counts), (), generator=generator))]
    points = batch.points[:, 0, :count]
    labels = torch.ones(points.shape[:2], device=points.device)
    by_points = decode_prompts(sam, batch.features, points=(points, labels))
    point_loss, point_figures = _hq_mask_loss(by_points, batch.coverage[:, 0], near[:, 0], f"points{count}")
    return loss + 0.5 * point_loss, {**figures, **point_figures}


def _hq_mask_loss(output: DecoderOutput, coverage: Tensor, near: Tensor, name: str) -> tuple[Tensor, dict[str, float]]:
    if output.hq_logits is None:
        raise ValueError("expected a model with HQ-SAM's branch, got none")
    hq = output.hq_logits[:, 0]
    figures = {
        f"{name}_iou": mask_iou(output.logits[:, 0] + hq, coverage).mean().item(),
        f"{name}_hq_iou": mask_iou(hq, coverage).mean().item(),
    }
    return mask_loss(hq, coverage, near).mean(), figures
