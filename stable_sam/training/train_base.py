"""Training of a base: image encoder, prompt encoder and mask decoder together, as SAM was trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from stable_sam.errors import WeightsError
from stable_sam.modeling.bases.base import MASK_STRIDE, BaseSam
from stable_sam.modeling.bases.nano import build_nano
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts
from stable_sam.modeling.weights import read_safetensors, save_weights
from stable_sam.storage.files import read_bytes
from stable_sam.training.dataset import Batch, read_training_sets
from stable_sam.training.loop import Figures, TrainingLoop
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.staged_batches import StagedBatches
from stable_sam.training.training_config import BaseTraining

POINT_COUNTS = (1, 1, 2, 3, 5)
"""Numbers of points of a prompt, of which each step draws one; a single point, which is ambiguous, is there twice."""


def train_base(
    data_dir: Path,
    out_dir: Path,
    config: BaseTraining,
    *,
    encoder_path: Path | None = None,
    start: Path | None = None,
) -> Path:
    """Train `nano` and return the file of its averaged weights in half precision.

    data_dir: a folder of sets, each with `instances.json` and images. encoder_path: safetensors file of backbone
    weights to start from, with the keys of `nano.Backbone`. start: file of the weights of a whole `nano` to start from.
    Training resumes from `out_dir/checkpoint.pt` when it is there. Raises `InputError`, `ConfigError`, `StorageError`
    and `WeightsError`.
    """
    sets = read_training_sets(data_dir)
    torch.manual_seed(config.seed)
    torch.set_flush_denormal(True)
    size = config.stages[-1].size
    sam = build_nano(size).to("cuda" if torch.cuda.is_available() else "cpu").train()
    backbone = sam.image_encoder.backbone
    if encoder_path is not None:
        _start_from(backbone, encoder_path, "weights of a backbone of nano")
    if start is not None:
        _start_from(sam, start, "weights of nano")

    def export(module: nn.Module, step: int, _: Figures) -> Path:
        drawn = str(int(config.stages[-1].drawn > 0))
        metadata = {
            "model": "nano", "size": str(size), "fine": "1", "drawn": drawn, "step": str(step),
            "settings": config.model_dump_json(),
        }  # fmt: skip
        return save_weights(module, out_dir / "nano.safetensors", metadata)

    def loss(batch: Batch, step: int) -> tuple[Tensor, Figures]:
        size = batch.images.shape[-1]
        sam.set_input_side(size)
        sam.drawn, sam.draws = config.stage_of(step).drawn, torch.Generator().manual_seed(config.seed + step)
        value, figures = base_loss(sam, batch, torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        return value, {"size": size, **figures}

    pretrained = {id(p) for p in backbone.parameters()}
    groups = [
        {"params": [p for p in sam.parameters() if p.requires_grad and id(p) not in pretrained], "part": 1.0},
        {"params": list(backbone.parameters()), "part": config.backbone_rate},
    ]
    batches = StagedBatches(sets, config, max(POINT_COUNTS))
    loop = TrainingLoop(sam, groups, config, out_dir, export, steps=config.total_steps)
    return loop.run(batches.__getitem__, loss)


def base_loss(sam: BaseSam, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a step and the figures to log.

    Every object is asked for by its slightly jittered box, and the first object of each image also by points.
    """
    objects = batch.boxes.shape[1]
    size = sam.input_side
    features = sam.image_encoder.features((batch.images.float() - sam.pixel_mean) / sam.pixel_std)
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = jitter_boxes(batch.boxes, size, generator).flatten(0, 1)
    by_box = decode_prompts(sam, features.repeat(objects), boxes=boxes)
    box_loss, box_iou = single_mask_loss(by_box, batch.coverage.flatten(0, 1), near.flatten(0, 1))

    count = POINT_COUNTS[int(torch.randint(len(POINT_COUNTS), (), generator=generator))]
    points = batch.points[:, 0, :count]
    by_points = decode_prompts(sam, features, points=(points, torch.ones(points.shape[:2], device=points.device)))
    point_loss, point_iou = single_mask_loss(by_points, batch.coverage[:, 0], near[:, 0])
    loss = box_loss + point_loss
    if count > 1:
        return loss, {"box_iou": box_iou, "points_iou": point_iou}
    ambiguous_loss, chosen_iou, best_iou = multimask_loss(by_points, batch.coverage[:, 0], near[:, 0])
    figures = {"box_iou": box_iou, "point_iou": chosen_iou, "best_point_iou": best_iou}
    return loss + 0.5 * ambiguous_loss, figures


def single_mask_loss(output: DecoderOutput, coverage: Tensor, near: Tensor) -> tuple[Tensor, float]:
    """Return the mean loss of SAM's single masks and of their predicted IoU, and the masks' mean IoU.

    coverage, near: (P, h, w), as in `mask_loss`.
    """
    iou = mask_iou(output.logits[:, 0], coverage)
    loss = mask_loss(output.logits[:, 0], coverage, near).mean() + (output.iou[:, 0] - iou).square().mean()
    return loss, iou.mean().item()


def multimask_loss(output: DecoderOutput, coverage: Tensor, near: Tensor) -> tuple[Tensor, float, float]:
    """Compute the loss of the three masks of ambiguous points.

    Only the best of the three masks learns, and the IoU head learns to predict the IoU of each. coverage, near:
    (P, h, w), as in `mask_loss`. Returns the mean loss, the mean IoU of the masks with the highest predicted IoU, and
    the mean IoU of the best masks.
    """
    losses = mask_loss(output.logits[:, 1:], coverage[:, None], near[:, None])
    ious = mask_iou(output.logits[:, 1:], coverage[:, None])
    estimate = output.iou[:, 1:]
    chosen = ious.gather(1, estimate.argmax(1, keepdim=True))
    loss = losses.min(dim=1).values.mean() + (estimate - ious).square().mean()
    return loss, chosen.mean().item(), ious.max(dim=1).values.mean().item()


def jitter_boxes(boxes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Move the corners of boxes (..., 4) XYXY as in SAM's training.

    Each coordinate moves by N(0, 10 % of the side), by at most 20 pixels at an input of 1024; `size` is the input's
    side in pixels.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    limit = 20.0 / 1024.0 * size
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    return (boxes + (noise * 0.1 * torch.cat((sides, sides), dim=-1)).clamp(-limit, limit)).clamp(0, size)


def _start_from(module: nn.Module, file: Path, expected: str) -> None:
    tensors, _ = read_safetensors(read_bytes(str(file)), str(file))
    # Weights of version 0.2.0 have no fine branch; the new one starts with zeros, as if it were not there.
    new = {name: value for name, value in module.state_dict().items() if name.startswith("image_encoder.fine.")}
    try:
        module.load_state_dict(new | {name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{file}: expected {expected}: {' '.join(str(error).split())[:300]}") from None
