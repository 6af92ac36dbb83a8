"""Settings of the training runs; the YAML files are in `configs/`."""

from __future__ import annotations

from pydantic import Field

from stable_sam.config import Section


class Stage(Section):
    """Part of a run with one input size: the prompt-to-place skill is learnt cheaply on small pictures, borders on large."""

    size: int = Field(ge=64, multiple_of=32)
    """Side of the square input in pixels."""
    steps: int = Field(ge=1)
    """Optimiser steps in this stage."""
    batch_images: int = Field(default=16, ge=1)
    """Pictures in a step."""


class BaseTraining(Section):
    """Training of the base as SAM was trained: accurate boxes, points, three masks for an ambiguous point, IoU head."""

    stages: tuple[Stage, ...]
    """In order of growing size."""
    objects: int = Field(default=2, ge=1)
    """Objects of a picture; each is asked for by its box, the first one also by points."""
    learning_rate: float = 8e-4
    """AdamW, for decoder and neck."""
    backbone_rate: float = 0.2
    """The pretrained backbone learns at this part of the rate."""
    weight_decay: float = 0.01
    """AdamW."""
    warmup_steps: int = 60
    """Linear from 0."""
    cooldown: float = Field(default=0.35, gt=0, le=1)
    """Last part of all steps, in which the rate falls linearly to 0."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones exported."""
    clip_norm: float = 1.0
    """Gradient norm."""
    set_weights: dict[str, float] = {}
    """Share of each training set, 1 where not named: the sets differ in size by hundreds."""
    checkpoint_steps: int = 100
    """Steps between two checkpoints; at most this much is lost in a kill."""
    seed: int = 0
    """Of initialisation and samples."""

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)
