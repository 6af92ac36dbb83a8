"""A calibration: the probability that a mask is good, from the scores in its row. Plain numbers in a JSON file.

    log-odds = intercept + sum over scores of curve(score),   quality = 1 / (1 + exp(-log-odds))

Each curve is linear between its knots and flat outside, so a person can read what each score adds, a file executes
nothing, and neither actors nor queries need the library that fitted it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import fields
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from stable_sam.config_section import Section
from stable_sam.errors import ConfigError
from stable_sam.records import Prompt, RefinedMask
from stable_sam.scores import MEASURED, ScoreSource

SCORES = (*MEASURED, "log_area", "score")
"""What may enter: the row's scores, `log_area` = log10 of the mask's part of its picture, the detector's `score`."""


class _Finite(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class Curve(_Finite):
    """What one score adds to the log-odds."""

    x: tuple[float, ...] = Field(min_length=2)
    """Knots, ascending."""
    y: tuple[float, ...]
    """Log-odds at the knots."""
    missing: float = 0.0
    """Log-odds where a row does not have the score."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y) or any(a >= b for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("expected ascending knots x and as many y")
        return self

    def at(self, value: float | None) -> float:
        """The value of the curve."""
        if value is None or not math.isfinite(value):
            return self.missing
        right = bisect_right(self.x, value)
        if right in (0, len(self.x)):
            return self.y[0 if right == 0 else -1]
        x0, x1, y0, y1 = *self.x[right - 1 : right + 1], *self.y[right - 1 : right + 1]
        return y0 + (y1 - y0) * (value - x0) / (x1 - x0)


class Promise(_Finite):
    """What was promised of one route, and on how many masks it was checked that the fit had not seen."""

    route: str
    threshold: float | None
    """Of `quality`; None: no threshold keeps the promise, so the route gets nothing."""
    precision: float
    """Promised: share of good masks among the accepted, or of bad ones among the rejected."""
    confidence: float
    masks: int
    """That the threshold routes so, of those checked on."""
    kept: int
    """Of these, masks that are as promised."""
    checked: int
    """Masks checked on."""
    possible: float | None = None
    """The highest precision that could have been promised at this confidence, by any of the thresholds tried."""


class Calibration(_Finite):
    """The curves, the thresholds, and the model that they hold for."""

    target_iou: float = Field(gt=0, lt=1)
    """A mask is good when its IoU with the true one is at least this."""
    intercept: float
    curves: dict[str, Curve]
    accept: Promise
    reject: Promise
    weights_sha256: str
    """Of the model whose scores they are."""
    jitter_count: int
    jitter_scale: float
    dtype: str = "float32"
    stability_offset: float = 1.0
    second_pass_from: float | None = None
    """alpha_1 from which prompts took the second pass; None: there was none."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule` of the masks. None: all were made in the whole image, and the calibration holds for
    such masks alone."""
    fitted_on: dict[str, int] = Field(default_factory=dict)
    """Masks of each set that the curves were fitted on."""

    @model_validator(mode="after")
    def _known_scores(self) -> Self:
        if unknown := sorted(self.curves.keys() - set(SCORES)):
            raise ValueError(f"expected curves of {', '.join(SCORES)}, got {', '.join(unknown)}")
        return self

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Self:
        """Read a file of `stable-sam calibrate`; raises `ConfigError` naming `source`."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: expected a calibration as JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{source}: expected a calibration, got {type(raw).__name__}")
        return cls.from_dict(raw, source=source)

    @property
    def source(self) -> ScoreSource:
        """What the scores depend on that were calibrated."""
        return ScoreSource(**{field.name: getattr(self, field.name) for field in fields(ScoreSource)})

    def holds_for(self, mask: RefinedMask) -> bool:
        """Whether the mask is of the kind that was calibrated."""
        return mask.status == "ok" and (self.tiles is not None or mask.view is None)

    def quality(self, scores: Mapping[str, float | None]) -> float:
        """Probability in (0, 1) that a mask with these scores is good; `scores` by their names in SCORES."""
        odds = self.intercept + sum(curve.at(scores.get(name)) for name, curve in self.curves.items())
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))


def scores_of(prompt: Prompt, mask: RefinedMask) -> dict[str, float | None]:
    """The scores of a mask that was made, by their names in SCORES."""
    assert mask.mask_size is not None, "a mask that was made"
    return {
        **{name: getattr(mask, name) for name in MEASURED},
        "log_area": log_area(mask.area or 0, mask.mask_size),
        "score": prompt.score,
    }


def log_area(area: int, size_hw: tuple[int, int]) -> float | None:
    """log10 of the part of the picture that `area` pixels are; None for an empty mask."""
    return math.log10(area / (size_hw[0] * size_hw[1])) if area else None
