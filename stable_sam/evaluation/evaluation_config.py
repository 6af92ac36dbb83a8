"""What an evaluation is told: everything that decides its figures besides the images and their true masks."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from stable_sam.config import RefinerConfig
from stable_sam.config.section import Section
from stable_sam.errors import ConfigError
from stable_sam.evaluation.prompts import DETECTOR_BOXES, PromptKind

METHODS = ("sam", "hq-sam", "stable-sam")
"""The methods that use the model."""
BASELINE = "sam"
"""The method that the differences of the others are measured from."""
BOX = "box"
"""A method without a model, which fills the box of the prompt: a mask should be better than that."""
DEFAULT_METHODS = ("sam", "stable-sam")
SMALLEST_SIZE, SIZE_STEP = 64, 32
"""Smallest side of nano's input in pixels, and the number that every side is a multiple of: its layers halve it."""


class EvaluationConfig(Section):
    """What is evaluated and how; raises `ConfigError` for values that cannot be evaluated."""

    refiner: RefinerConfig = RefinerConfig()
    """The model (base, plugin and HQ-SAM's branch), and whether small objects are segmented in tiles. Each prompt is
    refined as if it were the only one of its image, so `max_tiles` changes nothing. There is no second pass."""
    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    """Kinds of prompts: see `stable_sam.evaluation.prompts`."""
    methods: tuple[str, ...] = Field(
        default_factory=lambda data: ((BOX,) if DETECTOR_BOXES in data.get("prompts", ()) else ()) + DEFAULT_METHODS
    )
    """At least one of sam, hq-sam and stable-sam, which share one frozen base, and box, which fills the prompt's box.
    By default sam and stable-sam, and box as well where the boxes of a detector are evaluated."""
    detections_uri: str | None = None
    """URI of COCO detection results, whose boxes are the prompts of the kind `detector-boxes`."""
    random_prompts: int = Field(default=20, ge=1)
    """Number of prompts for each object and random kind, B in the paper. mSF falls as B grows: compare equal B only."""
    min_area_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Smallest object that is evaluated, as a fraction of its image; 0 evaluates all."""
    limit: int | None = Field(default=None, ge=1)
    """Number of images of each set, evenly spread; None takes all."""
    max_objects: int | None = Field(default=None, ge=1)
    """Number of objects drawn at random from all sets, in proportion to their sizes; None takes all."""
    seed: int = Field(default=0, ge=0)
    """Seed of the drawn prompts, the drawn objects and the bootstrap."""
    resamples: int = Field(default=2000, ge=1)
    """Number of bootstrap samples of each interval."""
    size: int | None = None
    """Side of nano's square input in pixels; None takes the side that its weights name."""

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in (BOX, *METHODS)]
        if unknown or not set(names) & set(METHODS):
            expected = f"at least one of {', '.join(METHODS)}, with or without {BOX}"
            raise ConfigError(f"methods: expected {expected}, got {', '.join(unknown or names) or 'none'}")
        return tuple(method for method in (BOX, *METHODS) if method in names)

    @field_validator("prompts")
    @classmethod
    def _known_prompts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ConfigError("prompts: expected at least one kind, got none")
        return tuple(PromptKind.parse(name).name for name in dict.fromkeys(names))

    @property
    def models(self) -> tuple[str, ...]:
        """The methods that use the model."""
        return tuple(method for method in self.methods if method in METHODS)

    @property
    def object_sizes(self) -> str:
        """The sizes of the evaluated objects in words."""
        smallest = self.min_area_fraction
        return f"of at least {smallest:.2%} of their image" if smallest else "of all sizes"

    @model_validator(mode="after")
    def _detections_with_their_kind(self) -> EvaluationConfig:
        if DETECTOR_BOXES in self.prompts and self.detections_uri is None:
            raise ConfigError(f"prompts: {DETECTOR_BOXES} needs the URI of detection results (--detections), got none")
        if DETECTOR_BOXES not in self.prompts and self.detections_uri is not None:
            raise ConfigError(
                f"detections: expected {DETECTOR_BOXES} among the prompts, got only {', '.join(self.prompts)}"
            )
        return self

    @model_validator(mode="after")
    def _possible_size(self) -> EvaluationConfig:
        if self.size is None:
            return self
        if self.refiner.model != "nano":
            raise ConfigError(
                f"size: expected the model nano, the only one that takes other input sizes, got {self.refiner.model!r}"
            )
        if self.size < SMALLEST_SIZE or self.size % SIZE_STEP:
            raise ConfigError(
                f"size: expected a multiple of {SIZE_STEP} of at least {SMALLEST_SIZE} pixels, got {self.size}"
            )
        return self
