"""Options that several commands share, and the config that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stable_sam.errors import ConfigError
from stable_sam.records import AnnotationFormat

if TYPE_CHECKING:
    from stable_sam.config import RunConfig

Annotations = Annotated[
    str,
    typer.Option(
        help="File, folder or pattern of the weak annotations, or several separated by commas. "
        "docs/annotations.md lists the formats."
    ),
]
Images = Annotated[str, typer.Option(help="Folder of the images, local or s3://.")]
Output = Annotated[
    str, typer.Option(help="Folder of the masks table, local or s3://. It is created when there is none.")
]
FileFormat = Annotated[
    AnnotationFormat | None,
    typer.Option(
        "--format", help="Format of the annotations. By default that of the config, else recognised from the files."
    ),
]
ImageIndex = Annotated[
    str | None,
    typer.Option(help="COCO JSON that gives the file name of each image id, for annotations that name only ids."),
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links that lead out of the folders of images and annotations.")
]
Config = Annotated[str | None, typer.Option(help="Config file (YAML); configs/ has examples.")]
Model = Annotated[
    str | None,
    typer.Option(help="Base model: nano, vit_b, vit_l, vit_h or tiny. By default that of the config, else nano."),
]
Checkpoint = Annotated[str | None, typer.Option(help="URI of the base's weights; those bundled with nano by default.")]
Plugin = Annotated[str | None, typer.Option(help="URI of the plugin's weights; those bundled with nano by default.")]


def read_config(
    config_path: str | None,
    model: str | None,
    file_format: AnnotationFormat | None = None,
    *,
    follow_links: bool = False,
) -> RunConfig:
    """Read the config file, or take the defaults, and put in `model`, `file_format` and `follow_links` where given.

    Raises `ConfigError`, also for another `model` than that of a config that names weights.
    """
    from stable_sam.config import RunConfig

    config = RunConfig() if config_path is None else RunConfig.from_yaml(config_path)
    given = ({} if file_format is None else {"format": file_format}) | ({"follow_links": True} if follow_links else {})
    if given:
        config = config.model_copy(update={"source": config.source.model_copy(update=given)})
    if model is None or model == config.refiner.model:
        return config
    if config.refiner.checkpoint_uri or config.refiner.plugin_uri or config.refiner.hq_uri:
        raise ConfigError(
            f"--model {model}: {config_path} names weights for {config.refiner.model}; change the model there"
        )
    raw = config.model_dump(mode="json")
    raw["refiner"]["model"] = model
    return RunConfig.from_dict(raw, source="--model")


def run_config(path: str | None, model: str | None, checkpoint: str | None, plugin: str | None) -> RunConfig:
    """Read the config file, or take the defaults, and put the options in that were given; raises `ConfigError`."""
    from stable_sam.config import RunConfig

    config = RunConfig() if path is None else RunConfig.from_yaml(path)
    options = {"model": model, "checkpoint_uri": checkpoint, "plugin_uri": plugin}
    given = {key: value for key, value in options.items() if value is not None}
    content = config.model_dump()
    return RunConfig.from_dict({**content, "refiner": {**content["refiner"], **given}}, source="options")
