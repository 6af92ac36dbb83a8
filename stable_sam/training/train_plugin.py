"""Training of the Stable-SAM plugin on any frozen base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from stable_sam.modeling.load import LoadedModel, read_plugin
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.storage.files import read_bytes
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.frozen import train_frozen
from stable_sam.training.loop import Figures
from stable_sam.training.rts import plugin_loss
from stable_sam.training.teach_routing import teach_routing
from stable_sam.training.training_config import PluginTraining


def train_plugin(
    model: LoadedModel,
    data_dir: Path,
    out_dir: Path,
    config: PluginTraining,
    *,
    cache_dir: Path | None = None,
    start_uri: str | None = None,
) -> Path:
    """Train a plugin for the frozen `model`, loaded without a plugin, and return the file of its weights.

    cache_dir: folder for the embeddings, which trainings may share; by default `out_dir/embeddings`. start_uri: plugin
    of the same base (safetensors, path or URI) to start from, with its architecture instead of `config.plugin`.
    Training resumes from `out_dir/checkpoint.pt`. Raises `InputError`, `ConfigError`, `StorageError` and
    `WeightsError`.
    """
    torch.manual_seed(config.seed)
    channels = model.sam.prompt_encoder.embed_dim
    if start_uri is None:
        plugin = StableSamPlugin(channels, config.plugin)
    else:
        base = model.identity
        plugin = read_plugin(model.sam, read_bytes(start_uri), start_uri, base.weights_sha256, base.model_id)
        config = config.model_copy(update={"plugin": plugin.spec})
    attach_plugin(model.sam, plugin.to(model.device))
    switched = config.plugin.regular_below > 0
    plugin.always_deforms = switched
    built = {"channels": str(channels), "plugin": config.plugin.model_dump_json()}

    def finish(batches: Callable[[int], EmbeddedBatch]) -> Figures:
        return teach_routing(model.sam, plugin, config, map(batches, range(config.routing_steps)))

    return train_frozen(
        model, plugin, partial(plugin_loss, model.sam, config), config,
        data_dir=data_dir, out_file=out_dir / "plugin.safetensors", metadata=built, cache_dir=cache_dir,
        finish=finish if switched else None,
    )  # fmt: skip
