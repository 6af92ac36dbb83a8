"""What is evaluated: everything that decides a figure besides the pictures and their masks."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from stable_sam.config import RefinerConfig
from stable_sam.config.section import Section
from stable_sam.errors import ConfigError
from stable_sam.evaluation.prompts import DETECTOR_BOXES, PromptKind

METHODS = ("sam", "hq-sam", "stable-sam")
"""The methods that a model answers."""
BASELINE = "sam"
"""The method that the others' differences are measured from."""
BOX = "box"
"""A method without a model: the prompt box, filled. A mask that is no better than its box is worth nothing."""
DEFAULT_METHODS = ("sam", "stable-sam")
SMALLEST_SIZE, SIZE_STEP = 64, 32
"""Sides of nano's input, in pixels, that its layers can halve often enough."""


class EvaluationConfig(Section):
    """One kind of evaluation; refuses with `ConfigError` what it cannot do."""

    refiner: RefinerConfig = RefinerConfig()
    """The model: base, plugin and HQ-SAM's branch; and whether small objects are asked in tiles. Each prompt is asked
    as if it were the only one of its picture: `max_tiles` changes nothing. There is no second pass."""
    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    """Kinds, see `stable_sam.evaluation.prompts`."""
    methods: tuple[str, ...] = Field(
        default_factory=lambda data: ((BOX,) if DETECTOR_BOXES in data.get("prompts", ()) else ()) + DEFAULT_METHODS
    )
    """At least one of sam, hq-sam, stable-sam: what is switched on over the same frozen base; and box, the prompt box
    filled. By default sam and stable-sam, and box as well where a detector's boxes are evaluated."""
    detections_uri: str | None = None
    """COCO detection results, whose boxes are the prompts of the kind `detector-boxes`."""
    random_prompts: int = Field(default=20, ge=1)
    """B, prompts for each object and random kind, as in the paper; mSF falls as it grows, so compare only equal B."""
    min_area_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Smaller objects, as a part of their picture, do not count; 0: all objects count."""
    limit: int | None = Field(default=None, ge=1)
    """Pictures of each set, evenly spread; None: all."""
    max_objects: int | None = Field(default=None, ge=1)
    """Objects of all sets together, drawn at random, each set in proportion; None: all."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn prompts, the drawn objects and the bootstrap."""
    resamples: int = Field(default=2000, ge=1)
    """Bootstrap samples behind each interval."""
    size: int | None = None
    """Side of the model's input in the place of the one that the weights of nano name."""

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in (BOX, *METHODS)]
        if unknown or not set(names) & set(METHODS):
            expected = f"some of {', '.join(METHODS)}, and {BOX} besides"
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
        """The methods that a model answers."""
        return tuple(method for method in self.methods if method in METHODS)

    @property
    def object_sizes(self) -> str:
        """The sizes of the objects that count, in words."""
        smallest = self.min_area_fraction
        return f"of at least {smallest:.2%} of their picture" if smallest else "of all sizes"

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
            raise ConfigError(f"size: only nano takes pictures of other sizes, got model {self.refiner.model!r}")
        if self.size < SMALLEST_SIZE or self.size % SIZE_STEP:
            raise ConfigError(
                f"size: expected a multiple of {SIZE_STEP} of at least {SMALLEST_SIZE} pixels, got {self.size}"
            )
        return self
