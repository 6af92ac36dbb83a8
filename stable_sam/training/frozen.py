"""Training of a module that a frozen base hosts (the plugin, HQ-SAM's branch) from cached embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stable_sam.modeling.load import LoadedModel
from stable_sam.modeling.weights import save_weights
from stable_sam.training.cached_batches import EmbeddedBatch, EmbeddedBatches
from stable_sam.training.dataset import read_training_sets
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.loop import Figures, TrainingLoop
from stable_sam.training.training_config import FrozenBaseTraining

FrozenLoss = Callable[[EmbeddedBatch, torch.Generator, float], tuple[Tensor, Figures]]


def train_frozen(
    model: LoadedModel,
    module: nn.Module,
    loss: FrozenLoss,
    settings: FrozenBaseTraining,
    *,
    data_dir: Path,
    out_file: Path,
    metadata: dict[str, str],
    cache_dir: Path | None = None,
    finish: Callable[[Callable[[int], EmbeddedBatch]], Figures] | None = None,
) -> Path:
    """Train `module` alone and return `out_file`: its averaged weights (float32) and how they came about.

    model: the frozen base, hosting `module`; with HQ-SAM's branch the batches have early features. loss: (batch,
    generator of the step, part of the run that is done) -> loss and figures. metadata: what builds `module` again.
    finish: what is done at last to `module`, which then has the averaged weights; gets the batches by step number and
    returns figures. cache_dir: folder for the embeddings, `embeddings` beside `out_file` unless named. Resumes from
    `checkpoint.pt` beside `out_file`. Raises `InputError`, `ConfigError`, `StorageError` and `WeightsError`.
    """
    torch.set_flush_denormal(True)
    out_dir = out_file.parent
    sets = read_training_sets(data_dir)
    base = model.identity.weights_sha256
    cache = EmbeddingCache(cache_dir or out_dir / "embeddings", model)
    batches = EmbeddedBatches(sets, settings, cache)

    def export(averaged: nn.Module, step: int, figures: Figures) -> Path:
        recorded = {
            "base_sha256": base, "model": model.identity.model_id, "step": str(step), "data": ", ".join(sorted(sets)),
            "settings": settings.model_dump_json(), "metrics": json.dumps(figures),
        }  # fmt: skip
        return save_weights(averaged, out_file, metadata | recorded, torch.float32)

    def step_loss(batch: EmbeddedBatch, step: int) -> tuple[Tensor, Figures]:
        return loss(batch, torch.Generator().manual_seed(settings.seed * 1_000_003 + step), step / batches.steps)

    groups = [{"params": list(module.parameters()), "part": 1.0}]
    built = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    run = f"the base {base[:16]}, architecture {built[:8]}"
    loop = TrainingLoop(module, groups, settings, out_dir, export, steps=batches.steps, run=run)
    if loop.step < loop.steps or finish is not None:
        batches.fill_cache()
    file = loop.run(batches.__getitem__, step_loss)
    if finish is None:
        return file
    module.load_state_dict(loop.average.module.state_dict())
    taught = finish(lambda step: batches[step % batches.steps].to(model.device))
    return export(module, loop.step, loop.last_figures() | taught)
