"""Options that several commands have, and the configuration that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stable_sam.errors import ConfigError
from stable_sam.records import AnnotationFormat

if TYPE_CHECKING:
    from stable_sam.config import RunConfig

Annotations = Annotated[
    str, typer.Option(help="File, folder, pattern, or several with commas; formats: docs/annotations.md.")
]
Images = Annotated[str, typer.Option(help="Folder of the images, local or s3://.")]
Output = Annotated[str, typer.Option(help="Folder of the masks table, local or s3://.")]
FileFormat = Annotated[
    AnnotationFormat | None, typer.Option("--format", help="Of the annotations; overrides the file.")
]
ImageIndex = Annotated[str | None, typer.Option(help="COCO JSON whose `images` name the files of the ids.")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links out of the folders of images and annotations.")
]
Config = Annotated[str | None, typer.Option(help="Configuration (YAML), see configs/.")]
Model = Annotated[str | None, typer.Option(help="nano (the default), vit_b, vit_l, vit_h or tiny; overrides the file.")]
Checkpoint = Annotated[str | None, typer.Option(help="URI of the base's weights; nano brings its own.")]
Plugin = Annotated[str | None, typer.Option(help="URI of the plugin's weights; nano brings its own.")]


def read_settings(
    config_path: str | None,
    model: str | None,
    file_format: AnnotationFormat | None = None,
    *,
    follow_links: bool = False,
) -> RunConfig:
    """The configuration file, or the defaults, with `model`, `file_format` and `follow_links` put in; raises
    `ConfigError`."""
    from stable_sam.config import RunConfig

    settings = RunConfig() if config_path is None else RunConfig.from_yaml(config_path)
    said = ({} if file_format is None else {"format": file_format}) | ({"follow_links": True} if follow_links else {})
    if said:
        settings = settings.model_copy(update={"source": settings.source.model_copy(update=said)})
    if model is None or model == settings.refiner.model:
        return settings
    if settings.refiner.checkpoint_uri or settings.refiner.plugin_uri or settings.refiner.hq_uri:
        raise ConfigError(
            f"--model {model}: {config_path} names weights for {settings.refiner.model}; change the model there"
        )
    raw = settings.model_dump(mode="json")
    raw["refiner"]["model"] = model
    return RunConfig.from_dict(raw, source="--model")


def run_config(path: str | None, model: str | None, checkpoint: str | None, plugin: str | None) -> RunConfig:
    """The configuration file, or the defaults, with the options that were given; raises `ConfigError`."""
    from stable_sam.config import RunConfig

    run = RunConfig() if path is None else RunConfig.from_yaml(path)
    options = {"model": model, "checkpoint_uri": checkpoint, "plugin_uri": plugin}
    given = {key: value for key, value in options.items() if value is not None}
    content = run.model_dump()
    return RunConfig.from_dict({**content, "refiner": {**content["refiner"], **given}}, source="options")
