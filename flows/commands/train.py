"""`stable-sam train`: the commands `base`, `plugin` and `hq`, which train the weights of those names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Checkpoint, ModelWithoutConfig

if TYPE_CHECKING:
    from stable_sam.modeling.load import LoadedModel

app = typer.Typer(no_args_is_help=True, help="Train the base nano, or the plugin or HQ-SAM's branch of any base.")

Data = Annotated[
    Path,
    typer.Option(help="Folder of sets, each a folder with images/ and instances.json (COCO instances, RLE masks)."),
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for the weights, log.csv and checkpoint.pt. An interrupted training continues from there."
    ),
]
Config = Annotated[
    Path, typer.Option(help="Training config (YAML); by default that in configs/ in a checkout of this repository.")
]
FrozenConfig = Annotated[Path | None, typer.Option(help="Training config (YAML); one epoch by default.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder of the image embeddings, which several trainings may share; OUT/embeddings by default."),
]
Steps = Annotated[int | None, typer.Option(help="Number of optimiser steps, in the place of the config's epochs.")]


@app.command("base")
def train_base_command(
    data: Data,
    out: Out,
    config: Config = Path("configs/train_base.yaml"),
    encoder: Annotated[
        Path | None, typer.Option(help="Weights of the encoder's backbone to start from (safetensors).")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights of nano to continue from (safetensors).")] = None,
) -> None:
    """Train the image encoder, prompt encoder and mask decoder of nano, and write OUT/nano.safetensors."""
    from stable_sam.training.progress import log_to_console
    from stable_sam.training.train_base import train_base
    from stable_sam.training.training_config import BaseTraining

    training = BaseTraining.from_yaml(config)
    log_to_console()
    typer.echo(train_base(data, out, training, encoder_path=encoder, start=start))


@app.command("plugin")
def train_plugin_command(
    data: Data,
    out: Out,
    config: FrozenConfig = None,
    model: ModelWithoutConfig = "nano",
    checkpoint: Checkpoint = None,
    plugin: Annotated[
        str | None, typer.Option(help="Plugin of the same base (path or URI) to continue from; a new one by default.")
    ] = None,
    cache: Cache = None,
    steps: Steps = None,
) -> None:
    """Train a plugin on a frozen base by the robust training strategy (RTS), and write OUT/plugin.safetensors."""
    from stable_sam.training.progress import log_to_console
    from stable_sam.training.train_plugin import train_plugin
    from stable_sam.training.training_config import PluginTraining

    training = PluginTraining.from_file(config, steps=steps)
    log_to_console()
    base = _frozen_base(model, checkpoint)
    typer.echo(train_plugin(base, data, out, training, cache_dir=cache, start_uri=plugin))


@app.command("hq")
def train_hq_command(
    data: Data,
    out: Out,
    config: FrozenConfig = None,
    model: ModelWithoutConfig = "nano",
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    steps: Steps = None,
) -> None:
    """Train HQ-SAM's branch as the plugin is trained, for comparison, and write OUT/hq.safetensors."""
    from stable_sam.training.progress import log_to_console
    from stable_sam.training.train_hq import train_hq
    from stable_sam.training.training_config import FrozenBaseTraining

    training = FrozenBaseTraining.from_file(config, steps=steps)
    log_to_console()
    typer.echo(train_hq(_frozen_base(model, checkpoint), data, out, training, cache_dir=cache))


def _frozen_base(model: str, checkpoint: str | None) -> LoadedModel:
    import torch

    from stable_sam.config import RefinerConfig
    from stable_sam.modeling.load import load_model

    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return load_model(
        RefinerConfig.from_dict({"model": model, "checkpoint_uri": checkpoint, "plugin": False, "dtype": dtype})
    )
