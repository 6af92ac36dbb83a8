"""Robust training strategy (RTS): the plugin alone learns, from prompts of mixed quality, to give the accurate
prompt's mask."""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from stable_sam.modeling.build import set_input_size
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.weights import save_weights
from stable_sam.training.base import multimask_loss
from stable_sam.training.dataset import Batch, read_training_sets
from stable_sam.training.loop import TrainingLoop
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.settings import PluginTraining, Stage


def train_plugin(sam: Sam, base_sha256: str, data_dir: Path, out_dir: Path, settings: PluginTraining) -> Path:
    """Train a plugin for the frozen `sam` and return the path of its weights.

    base_sha256: of the base's file; the plugin records it and is refused on any other base. Resumes from
    `out_dir/checkpoint.pt`. Raises `InputError`, `StorageError` and `WeightsError`.
    """
    sets = read_training_sets(data_dir)
    torch.manual_seed(settings.seed)
    torch.set_flush_denormal(True)
    channels = sam.prompt_encoder.embed_dim
    plugin = StableSamPlugin(channels, settings.hidden, settings.max_offset).to(sam.device)
    attach_plugin(sam, plugin)

    def export(module: nn.Module, step: int) -> Path:
        metadata = {
            "base_sha256": base_sha256, "channels": str(channels), "hidden": str(settings.hidden),
            "max_offset": str(settings.max_offset), "step": str(step), "settings": settings.model_dump_json(),
        }  # fmt: skip
        return save_weights(module, out_dir / "plugin.safetensors", metadata)

    def loss(batch: Batch, stage: Stage, step: int) -> tuple[Tensor, dict[str, float]]:
        set_input_size(sam, stage.size)
        return plugin_loss(sam, batch, settings, torch.Generator().manual_seed(settings.seed * 1_000_003 + step))

    groups = [{"params": list(plugin.parameters()), "part": 1.0}]
    return TrainingLoop(plugin, groups, settings, out_dir, export).run(sets, max(settings.point_counts), loss)


def plugin_loss(
    sam: Sam, batch: Batch, settings: PluginTraining, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step: every object by a box of random noise, the first of each picture also by points."""
    objects = batch.boxes.shape[1]
    size = sam.image_encoder.img_size
    with torch.no_grad():
        embeddings = sam.image_encoder((batch.images.float() - sam.pixel_mean) / sam.pixel_std)
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = mixed_boxes(batch.boxes.flatten(0, 1), settings.noise_scales, size, generator)
    by_box = decode_prompts(sam, embeddings.repeat_interleave(objects, 0), boxes=boxes)
    loss, figures = _calibration_loss(by_box, batch.coverage.flatten(0, 1), near.flatten(0, 1), "box")

    count = settings.point_counts[int(torch.randint(len(settings.point_counts), (), generator=generator))]
    points = batch.points[:, 0, :count]
    by_points = decode_prompts(sam, embeddings, points=(points, torch.ones(points.shape[:2], device=points.device)))
    point_loss, point_figures = _calibration_loss(by_points, batch.coverage[:, 0], near[:, 0], f"points{count}")
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


def _calibration_loss(
    output: DecoderOutput, coverage: Tensor, near: Tensor, name: str
) -> tuple[Tensor, dict[str, float]]:
    logits = output.logits[:, 0]
    if output.trace is None:
        raise ValueError("the model hosts no enabled plugin")
    figures = {
        f"{name}_iou": mask_iou(logits, coverage).mean().item(),
        f"{name}_alpha": output.trace.alpha[:, 0].mean().item(),
        f"{name}_offset": output.trace.offsets.abs().mean().item(),
    }
    return mask_loss(logits, coverage, near).mean(), figures
