"""Settings of the training runs; the YAML files are in `configs/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stable_sam.config.section import Section
from stable_sam.modeling.plugin_spec import PluginSpec


class TrainingSettings(Section):
    """What all kinds of training share."""

    objects: int = Field(default=2, ge=1)
    """Objects of a picture; each is asked for by its box, the first one also by points."""
    learning_rate: float = Field(default=8e-4, gt=0)
    """AdamW, peak."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW."""
    warmup_steps: int = Field(default=60, ge=0)
    """Linear from 0; never more than a quarter of a run."""
    cooldown: float = Field(default=0.35, gt=0, le=1)
    """Last part of all steps, in which the rate falls linearly to 0."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones exported."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradient norm."""
    set_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Share of each training set, 1 where not named: the sets differ in size by hundreds."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints: what a kill can cost."""
    seed: int = Field(default=0, ge=0)
    """Of initialisation and samples."""


class Stage(Section):
    """Part of a run with one input size: the place of a prompt is learnt cheaply on small pictures, borders on large
    ones."""

    size: int = Field(ge=64, multiple_of=32)
    """Side of the square input in pixels."""
    steps: int = Field(ge=1)
    """Optimiser steps in this stage."""
    batch_images: int = Field(default=16, ge=1)
    """Pictures in a step."""
    drawn: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompts that are drawn as a mask prompt beside their tokens. Drawn prompts teach soonest where a
    prompt points; the plugin, which stands in the attention of tokens, reaches only what comes by tokens."""


class BaseTraining(TrainingSettings):
    """Training of the base as SAM was trained: accurate boxes, points, three masks for an ambiguous point, IoU head."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    """In order of growing size."""
    paste: float = Field(default=0.0, ge=0, le=1)
    """Part of the samples with an object of another picture laid over them."""
    backbone_rate: float = Field(default=0.2, ge=0)
    """The pretrained backbone learns at this part of the rate."""

    def stage_of(self, step: int) -> Stage:
        """The stage that `step`, counted from 0 over all stages, is in."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)


class FrozenBaseTraining(TrainingSettings):
    """Training of what is added to a frozen base, from cached embeddings at the base's own input size.

    Robust training strategy (RTS): prompts of mixed quality, one epoch.
    """

    epochs: float = Field(default=1.0, gt=0)
    """How often each picture is used; with `set_weights`, on average."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, instead of `epochs`."""
    batch_images: int = Field(default=12, ge=1)
    """Pictures in a step."""
    set_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Share of each training set, 1 where not named. Empty: every picture comes as often as any other."""
    learning_rate: float = Field(default=1.5e-3, gt=0)
    """AdamW, peak; HQ-SAM's is 1e-3, for more steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW."""
    warmup_steps: int = Field(default=40, ge=0)
    """Linear from 0; never more than a quarter of a run."""
    cooldown: float = Field(default=0.5, gt=0, le=1)
    """Last part of all steps, in which the rate falls linearly to 0."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones exported."""
    windows: float = Field(default=0.4, ge=0, le=1)
    """Share of the pictures of which a window around an object is shown in the place of the whole, as tiles show small
    objects in inference."""
    noise_scales: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.2, 0.4, 0.6), min_length=1)
    """Noise of the boxes, drawn anew for each box; 0 keeps good prompts good. The paper gives no scale."""
    point_counts: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 1, 3, 5), min_length=1)
    """Points of the point prompts, one entry drawn for each step."""

    @classmethod
    def from_file(cls, path: Path | None, steps: int | None = None) -> Self:
        """The settings in a YAML file, or the defaults without one; `steps` replaces the file's.

        Raises `ConfigError`.
        """
        settings = cls() if path is None else cls.from_yaml(path)
        return settings if steps is None else cls.from_dict(settings.model_dump() | {"steps": steps}, source="--steps")


class PluginTraining(FrozenBaseTraining):
    """The Stable-SAM plugin alone learns."""

    plugin: PluginSpec = PluginSpec(regular_below=0.5, estimates_quality=True)
    """The plugin's architecture."""
    routing_steps: int = Field(default=150, ge=0)
    """Steps' worth of pictures on whose prompts alpha_1 is taught the gain at the end: whether, and by how much, the
    deformed path's mask is better than SAM's own. For an alpha that is a switch (`plugin.regular_below`); one that
    mixes is taught by the masks' loss, as in the paper."""
    quality_weight: float = Field(default=5.0, ge=0)
    """Of the squared error of the estimated quality, for a plugin that has that output."""
    quality_share: float = Field(default=0.4, ge=0, lt=1)
    """First part of the steps, in which the quality of boxes is taught and nothing else, at a third of the cost of a
    whole step: to tell good prompts from bad ones takes more steps than masks do. Of no effect for a plugin without
    that output or in both layers."""

    @property
    def quality_alone(self) -> float:
        """`quality_share` where it can be."""
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
