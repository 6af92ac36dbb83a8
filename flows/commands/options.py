"""Options that several commands share, and the config that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stable_sam.bases import BASES
from stable_sam.bases.cache import PUBLISHED
from stable_sam.errors import ConfigError
from stable_sam.records import AnnotationFormat

if TYPE_CHECKING:
    from stable_sam.config import RunConfig

Annotations = Annotated[
    str,
    typer.Option(
        help="File, folder or pattern of the weak annotations (path or URI), or several separated by commas. "
        "docs/annotations.md lists the formats."
    ),
]
Images = Annotated[str, typer.Option(help="Folder of the images (path or URI).")]
Table = Annotated[str, typer.Option(help="Folder of the masks table, the --output of refine (path or URI).")]
Output = Annotated[str, typer.Option(help="Folder of the masks table (path or URI). It is created when there is none.")]
FileFormat = Annotated[
    AnnotationFormat | None,
    typer.Option(
        "--format", help="Format of the annotations. By default that of the config, else recognised from the files."
    ),
]
ImageIndex = Annotated[
    str | None,
    typer.Option(
        help="COCO JSON (path or URI) that gives the file name of each image id, for annotations that name only ids."
    ),
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links that lead out of the folders of images and annotations.")
]
Config = Annotated[str | None, typer.Option(help="Config file (YAML); configs/ of the repository has examples.")]
_BASES = f"Base model, which `stable-sam models` describes: {', '.join(BASES)}."
Model = Annotated[str | None, typer.Option(help=f"{_BASES} By default that of the config, else nano.")]
ModelWithoutConfig = Annotated[str, typer.Option("--model", help=_BASES)]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Weights of the base (path or URI). By default the bundled ones of nano, or what `stable-sam models get` "
        "downloaded."
    ),
]
Plugin = Annotated[
    str | None,
    typer.Option(
        help="Weights of the plugin (path or URI). By default the bundled ones of nano, or those beside the "
        "downloaded base."
    ),
]


def read_config(
    config_path: str | None,
    model: str | None,
    file_format: AnnotationFormat | None = None,
    *,
    follow_links: bool = False,
    checkpoint: str | None = None,
    plugin: str | None = None,
) -> RunConfig:
    """Read the config file, or take the defaults, and put the options in that were given.

    Raises `ConfigError`, also for another `model` than that of a config that names weights, unless `checkpoint` names
    other ones.
    """
    from stable_sam.config import RunConfig

    config = RunConfig() if config_path is None else RunConfig.from_yaml(config_path)
    source = ({} if file_format is None else {"format": file_format}) | ({"follow_links": True} if follow_links else {})
    if source:
        config = config.model_copy(update={"source": config.source.model_copy(update=source)})
    refiner = config.refiner
    other = model is not None and model != refiner.model
    own_hq = refiner.hq_uri not in (None, PUBLISHED)
    if other and checkpoint is None and (refiner.checkpoint_uri or refiner.plugin_uri or own_hq):
        raise ConfigError(f"--model {model}: {config_path} names weights for {refiner.model}; change the model there")
    options = {"model": model, "checkpoint": checkpoint, "plugin": plugin}
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return config
    raw = config.model_dump(mode="json")
    raw["refiner"] |= {name if name == "model" else f"{name}_uri": value for name, value in given.items()}
    return RunConfig.from_dict(raw, source=" ".join(f"--{name}" for name in given))
