"""Training, from cached embeddings, of a module that a frozen base hosts: the plugin or HQ-SAM's branch."""

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
"""A function (batch, generator of the step, done part of all steps from 0 to 1) -> (loss, figures to log)."""


def train_frozen(
    model: LoadedModel,
    module: nn.Module,
    loss: FrozenLoss,
    config: FrozenBaseTraining,
    *,
    data_dir: Path,
    out_file: Path,
    metadata: dict[str, str],
    cache_dir: Path | None = None,
    finish: Callable[[Callable[[int], EmbeddedBatch]], Figures] | None = None,
) -> Path:
    """Train `module` alone and return `out_file`, which has its averaged weights in float32 and how they were made.

    model: the frozen base, which hosts `module`; with HQ-SAM's branch the batches have early features. metadata:
    the architecture of `module`, stored with the weights. finish: a last step after the loop, when `module` has the
    averaged weights; it takes a function from step number to batch and returns figures. cache_dir: folder for the
    embeddings, by default `embeddings` beside `out_file`. Training resumes from `checkpoint.pt` beside `out_file`.
    Raises `InputError`, `ConfigError`, `StorageError` and `WeightsError`.
    """
    torch.set_flush_denormal(True)
    out_dir = out_file.parent
    sets = read_training_sets(data_dir)
    base = model.identity.weights_sha256
    cache = EmbeddingCache(cache_dir or out_dir / "embeddings", model)
    batches = EmbeddedBatches(sets, config, cache)

    def export(averaged: nn.Module, step: int, figures: Figures) -> Path:
        recorded = {
            "base_sha256": base, "model": model.identity.model_id, "step": str(step), "data": ", ".join(sorted(sets)),
            "settings": config.model_dump_json(), "metrics": json.dumps(figures),
        }  # fmt: skip
        return save_weights(averaged, out_file, metadata | recorded, torch.float32)

    def step_loss(batch: EmbeddedBatch, step: int) -> tuple[Tensor, Figures]:
        return loss(batch, torch.Generator().manual_seed(config.seed * 1_000_003 + step), step / batches.steps)

    groups = [{"params": list(module.parameters()), "part": 1.0}]
    built = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    subject = f"the base {base[:16]}, architecture {built[:8]}"
    loop = TrainingLoop(module, groups, config, out_dir, export, steps=batches.steps, subject=subject)
    if loop.step < loop.steps or finish is not None:
        batches.fill_cache()
    file = loop.run(batches.__getitem__, step_loss)
    if finish is None:
        return file
    module.load_state_dict(loop.average.module.state_dict())
    taught = finish(lambda step: batches[step % batches.steps].to(model.device))
    return export(module, loop.step, loop.last_figures() | taught)
