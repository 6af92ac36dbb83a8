"""Training of a base: image encoder, prompt encoder and mask decoder together, as SAM was trained."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stable_sam.modeling.build import build_nano, set_input_size
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts
from stable_sam.modeling.weights import save_weights
from stable_sam.training.dataset import MASK_STRIDE, Batch, TrainingBatches, TrainingImage, read_training_sets
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.settings import BaseTraining, Stage

log = logging.getLogger(__name__)

POINT_COUNTS = (1, 1, 2, 3, 5)
"""Points of a prompt, one entry drawn for each step; one point is the ambiguous prompt and comes twice."""


def train_base(data_dir: Path, out_dir: Path, settings: BaseTraining, encoder_path: Path | None = None) -> Path:
    """Train `nano` and return the path of its weights (averaged, half precision); resumes from `out_dir/checkpoint.pt`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    sets = read_training_sets(data_dir)
    torch.manual_seed(settings.seed)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sam = build_nano(settings.stages[-1].size).to(device).train()
    if encoder_path is not None:
        sam.image_encoder.backbone.load_state_dict(load_file(encoder_path), strict=True)
    run = _Run(sam, settings, out_dir)
    run.resume()
    started = time.monotonic()
    for batch, stage in _batches(sets, settings, run.step):
        set_input_size(sam, stage.size)
        row = run.train_step(_to(batch, device), stage)
        run.report(row, time.monotonic() - started)
    return run.export()


class _Run:
    """State of a run that outlives a kill: weights, averaged weights, optimiser, step."""

    def __init__(self, sam: Sam, settings: BaseTraining, out_dir: Path) -> None:
        self.sam, self.settings, self.out_dir, self.step = sam, settings, out_dir, 0
        backbone = list(sam.image_encoder.backbone.parameters())
        chosen = {id(p) for p in backbone}
        rest = [p for p in sam.parameters() if p.requires_grad and id(p) not in chosen]
        rate = settings.learning_rate
        self.optimizer = torch.optim.AdamW(
            [{"params": rest, "peak": rate}, {"params": backbone, "peak": rate * settings.backbone_rate}],
            lr=rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay,
        )  # fmt: skip
        self.average = torch.optim.swa_utils.AveragedModel(
            sam, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
        )
        self.recent: list[dict[str, float]] = []

    def train_step(self, batch: Batch, stage: Stage) -> dict[str, float]:
        rate = rate_factor(self.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        loss, row = base_loss(self.sam, batch, self.step, self.settings.seed)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.sam.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.average.update_parameters(self.sam)
        self.step += 1
        return {"size": stage.size, "rate": rate, "loss": loss.item(), **row}

    def report(self, row: dict[str, float], seconds: float) -> None:
        self.recent.append(row)
        if self.step % 20 == 0:
            mean = {
                key: sum(r[key] for r in self.recent if key in r) / max(1, sum(key in r for r in self.recent))
                for key in ("size", "rate", "loss", "box_iou", "point_iou", "best_point_iou", "points_iou", "iou_error")
            }
            append_csv(self.out_dir / "log.csv", {"step": self.step, "seconds": seconds, **mean})
            log.info("step %d/%d %s", self.step, self.settings.total_steps, {k: round(v, 3) for k, v in mean.items()})
            self.recent = []
        if self.step % self.settings.checkpoint_steps == 0:
            self.checkpoint()

    def checkpoint(self) -> None:
        state = {
            "step": self.step, "model": self.sam.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        partial = self.out_dir / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.out_dir / "checkpoint.pt")
        self.export()

    def resume(self) -> None:
        file = self.out_dir / "checkpoint.pt"
        if file.exists():
            state = torch.load(file, weights_only=True)
            self.sam.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            log.info("resumed at step %d", self.step)

    def export(self) -> Path:
        file = self.out_dir / "nano.safetensors"
        metadata = {"model": "nano", "step": str(self.step), "settings": self.settings.model_dump_json()}
        save_weights(self.average.module, file, metadata)
        return file


def base_loss(sam: Sam, batch: Batch, step: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step: every object by its (slightly jittered) box, the first of each picture also by points."""
    count, objects = batch.boxes.shape[:2]
    size = sam.image_encoder.img_size
    generator = torch.Generator().manual_seed(hash((seed, step)) & 0x7FFFFFFF)
    embeddings = sam.image_encoder((batch.images.float() - sam.pixel_mean) / sam.pixel_std)
    near = near_cells(batch.boxes, size // MASK_STRIDE, MASK_STRIDE)

    boxes = jitter_boxes(batch.boxes, size, generator).flatten(0, 1)
    by_box = decode_prompts(sam, embeddings.repeat_interleave(objects, 0), boxes=boxes)
    box_loss, box_iou, box_error = _single_mask(by_box, batch.coverage.flatten(0, 1), near.flatten(0, 1))

    points = POINT_COUNTS[int(torch.randint(len(POINT_COUNTS), (), generator=generator))]
    labels = torch.ones(count, points, device=embeddings.device)
    by_points = decode_prompts(sam, embeddings, points=(batch.points[:, 0, :points], labels))
    coverage, around = batch.coverage[:, 0], near[:, 0]
    point_loss, point_iou, point_error = _single_mask(by_points, coverage, around)
    loss = box_loss + 0.5 * point_loss + box_error + 0.5 * point_error
    row = {"box_iou": box_iou, "iou_error": box_error.item() ** 0.5}
    if points > 1:
        return loss, {**row, "points_iou": point_iou}
    # An ambiguous point: only the best of three masks learns, and the IoU head learns to say which it is.
    losses = mask_loss(by_points.logits[:, 1:], coverage[:, None], around[:, None])
    ious = mask_iou(by_points.logits[:, 1:], coverage[:, None])
    loss = loss + 0.5 * losses.min(dim=1).values.mean() + 0.5 * (by_points.iou[:, 1:] - ious).square().mean()
    chosen = ious.gather(1, by_points.iou[:, 1:].argmax(1, keepdim=True))
    return loss, {**row, "point_iou": chosen.mean().item(), "best_point_iou": ious.max(1).values.mean().item()}


def _single_mask(output: DecoderOutput, coverage: Tensor, near: Tensor) -> tuple[Tensor, float, Tensor]:
    iou = mask_iou(output.logits[:, 0], coverage)
    error = (output.iou[:, 0] - iou).square().mean()
    return mask_loss(output.logits[:, 0], coverage, near).mean(), iou.mean().item(), error


def jitter_boxes(boxes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """SAM's training jitter: corners of (..., 4) XYXY move by N(0, 10 % of the side), at most 20 pixels at 1024."""
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(*[1] * (boxes.dim() - 1), 2)
    limit = 20.0 / 1024.0 * size
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    return (boxes + (noise * 0.1 * sides).clamp(-limit, limit)).clamp(0, size)


def rate_factor(step: int, settings: BaseTraining) -> float:
    """Part of the peak learning rate: linear warm-up, flat, linear cool-down to 0."""
    warm = (step + 1) / max(1, settings.warmup_steps)
    left = (settings.total_steps - step) / (settings.total_steps * settings.cooldown)
    return min(1.0, warm, left)


def _batches(
    sets: dict[str, list[TrainingImage]], settings: BaseTraining, first: int
) -> Iterator[tuple[Batch, Stage]]:
    start = 0
    for number, stage in enumerate(settings.stages):
        dataset = TrainingBatches(
            sets, settings.set_weights, size=stage.size, batch_images=stage.batch_images, objects=settings.objects,
            points=max(POINT_COUNTS), seed=settings.seed + number,
        )  # fmt: skip
        steps = range(max(first, start), start + stage.steps)
        start += stage.steps
        loader = DataLoader(
            dataset, sampler=steps, batch_size=None, num_workers=1, prefetch_factor=4, worker_init_fn=_one_thread
        )
        for batch in loader if len(steps) else ():
            yield batch, stage


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(part.to(device) for part in (batch.images, batch.coverage, batch.boxes, batch.points)))


def append_csv(file: Path, row: dict[str, Any]) -> None:
    """Append one row, with a header when the file is new."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, row)
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
