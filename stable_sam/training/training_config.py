"""Configs of the trainings, whose YAML files are in `configs/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stable_sam.config.section import Section
from stable_sam.modeling.plugin_spec import PluginSpec


class TrainingConfig(Section):
    """The fields that the configs of all trainings share."""

    objects: int = Field(default=2, ge=1)
    """Number of objects of an image in a step; each is asked for by its box, the first one also by points."""
    learning_rate: float = Field(default=8e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=60, ge=0)
    """Steps in which the learning rate rises linearly from 0; at most a quarter of all steps is used."""
    cooldown: float = Field(default=0.35, gt=0, le=1)
    """Part of all steps, at the end, in which the learning rate falls linearly to 0."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is exported."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Norm that gradients are clipped to."""
    set_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight of each training set among the samples, 1 for a set that is not named. Sets of equal weight come equally
    often, however many images they have."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints, which a kill can lose."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and of the samples."""


class Stage(Section):
    """A part of a base's training with one input size.

    The base learns cheaply on small images where a prompt points, and on large ones where borders run.
    """

    size: int = Field(ge=64, multiple_of=32)
    """Side of the square input in pixels."""
    steps: int = Field(ge=1)
    """Optimiser steps in this stage."""
    batch_images: int = Field(default=16, ge=1)
    """Number of images in a step."""
    drawn: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompts that are drawn as a mask prompt in addition to their tokens. With drawn prompts a base
    learns fastest where a prompt points. The plugin, which works in the attention of the tokens, can only influence
    what the tokens carry."""


class BaseTraining(TrainingConfig):
    """Config of a base's training.

    The base learns as SAM did: from accurate boxes and from points, with three masks for an ambiguous point and an IoU
    head.
    """

    stages: tuple[Stage, ...] = Field(min_length=1)
    """Stages of the training in order; the input of the last one is that of inference."""
    paste: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples that get an object of another image pasted onto them."""
    backbone_rate: float = Field(default=0.2, ge=0)
    """Learning rate of the pretrained backbone, as a part of `learning_rate`."""

    def stage_of(self, step: int) -> Stage:
        """Return the stage of `step`, which is counted from 0 over all stages."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)


class FrozenBaseTraining(TrainingConfig):
    """Config of the training of HQ-SAM's branch, or of the plugin, on a frozen base.

    It learns from cached embeddings at the base's own input size, by the robust training strategy (RTS): prompts of
    mixed quality, one epoch.
    """

    epochs: float = Field(default=1.0, gt=0)
    """Number of times that each image is used; with `set_weights` it is an average."""
    steps: int | None = Field(default=None, ge=1)
    """Number of optimiser steps, which replaces `epochs`."""
    batch_images: int = Field(default=12, ge=1)
    """Number of images in a step."""
    set_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight of each training set among the samples, 1 for a set that is not named. When no set is named, every image
    comes as often as any other."""
    learning_rate: float = Field(default=1.5e-3, gt=0)
    """Peak learning rate of AdamW. HQ-SAM's is 1e-3, for more steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=40, ge=0)
    """Steps in which the learning rate rises linearly from 0; at most a quarter of all steps is used."""
    cooldown: float = Field(default=0.5, gt=0, le=1)
    """Part of all steps, at the end, in which the learning rate falls linearly to 0."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is exported."""
    windows: float = Field(default=0.4, ge=0, le=1)
    """Share of the images that are replaced by a window around one of their objects, as tiles show small objects in
    inference."""
    noise_scales: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.2, 0.4, 0.6), min_length=1)
    """Scales of the boxes' noise, of which one is drawn for each box; 0 keeps masks of accurate boxes good. The paper
    gives no scale."""
    point_counts: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 1, 3, 5), min_length=1)
    """Numbers of points of a point prompt, of which one is drawn for each step."""

    @classmethod
    def from_file(cls, path: Path | None, steps: int | None = None) -> Self:
        """Read the config from a YAML file, or take the defaults when `path` is None; `steps` replaces its steps.

        Raises `ConfigError`.
        """
        config = cls() if path is None else cls.from_yaml(path)
        return config if steps is None else cls.from_dict(config.model_dump() | {"steps": steps}, source="--steps")


class PluginTraining(FrozenBaseTraining):
    """Config of the Stable-SAM plugin's training on a frozen base."""

    plugin: PluginSpec = PluginSpec(regular_below=0.5, estimates_quality=True)
    """Architecture of the plugin."""
    routing_steps: int = Field(default=150, ge=0)
    """Number of steps whose prompts teach alpha_1 the gain at the end: whether, and by how much, the deformed path's
    mask is better than SAM's own. It applies to an alpha that is a switch (`plugin.regular_below`); an alpha that mixes
    learns from the masks' loss, as in the paper."""
    quality_weight: float = Field(default=5.0, ge=0)
    """Weight of the squared error of the estimated prompt quality in the loss, for a plugin that estimates it."""
    quality_share: float = Field(default=0.4, ge=0, lt=1)
    """First part of the steps, in which only the quality of boxes is taught, at a third of the cost of a whole step:
    telling good prompts from bad ones takes more steps than masks do. It has no effect for a plugin that does not
    estimate quality or that calibrates both layers."""

    @property
    def quality_alone(self) -> float:
        """The `quality_share` that takes effect: 0 for a plugin that cannot be taught quality alone."""
        possible = self.plugin.estimates_quality and self.plugin.layers == "second" and self.quality_weight > 0
        return self.quality_share if possible else 0.0

    @model_validator(mode="after")
    def _alpha_can_be_taught(self) -> Self:
        if (self.plugin.routing == "none" or self.routing_steps == 0) and self.plugin.regular_below > 0:
            raise ValueError("plugin.regular_below: expected 0 without routing or with 0 routing_steps")
        if self.plugin.layers == "both" and self.plugin.regular_below > 0:
            raise ValueError("plugin.regular_below: expected 0 with both layers, whose gains cannot be told apart")
        if self.plugin.routing == "none" and self.plugin.estimates_quality:
            raise ValueError("plugin.estimates_quality: expected false without routing")
        return self
