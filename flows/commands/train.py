"""`stable-sam train base` and `stable-sam train plugin`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train the nano base, or the Stable-SAM plugin of any base.")

Data = Annotated[
    Path, typer.Option(help="Folder of sets, each with instances.json (COCO, RLE masks) and its pictures.")
]
Out = Annotated[
    Path, typer.Option(help="Folder for weights, log.csv and checkpoint.pt; an interrupted run goes on there.")
]
Config = Annotated[Path, typer.Option(help="Training settings (YAML).")]


@app.command("base")
def train_base_command(
    data: Data,
    out: Out,
    config: Config = Path("configs/train_base.yaml"),
    encoder: Annotated[Path | None, typer.Option(help="Backbone weights to start from (safetensors).")] = None,
    start: Annotated[Path | None, typer.Option(help="Weights of nano to train further (safetensors).")] = None,
) -> None:
    """Train nano's encoder, prompt encoder and mask decoder; writes OUT/nano.safetensors."""
    from stable_sam.training.base import train_base
    from stable_sam.training.settings import BaseTraining

    settings = BaseTraining.from_yaml(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.echo(train_base(data, out, settings, encoder_path=encoder, start=start))


@app.command("plugin")
def train_plugin_command(
    data: Data,
    out: Out,
    config: Config = Path("configs/train_plugin.yaml"),
    model: Annotated[str, typer.Option(help="Base: nano, vit_b, vit_l or vit_h.")] = "nano",
    checkpoint: Annotated[
        str | None, typer.Option(help="URI of the base's weights; the bundled ones for nano.")
    ] = None,
) -> None:
    """Train a plugin with the base frozen, by RTS; writes OUT/plugin.safetensors."""
    from stable_sam.config import RefinerConfig
    from stable_sam.modeling.load import load_model
    from stable_sam.training.plugin import train_plugin
    from stable_sam.training.settings import PluginTraining

    settings = PluginTraining.from_yaml(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    base = RefinerConfig.from_dict({"model": model, "checkpoint_uri": checkpoint, "plugin": False})
    loaded = load_model(base)
    typer.echo(train_plugin(loaded.sam, loaded.identity.weights_sha256, data, out, settings))
