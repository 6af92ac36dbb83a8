"""A calibration: the probability that a mask is good, from the scores in its row. Plain numbers in a JSON file.

    log-odds = intercept + sum over scores of curve(score),   quality = 1 / (1 + exp(-log-odds))

Beside it, where boxes were calibrated, what the mask is expected to gain over its weak box, filled:

    gain_over_box = intercept + sum over scores of curve(score)

Each curve is linear between its knots and flat outside, so a person can read what each score adds, a file executes
nothing, and neither actors nor queries need the library that fitted it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from stable_sam.config.section import Section
from stable_sam.errors import ConfigError
from stable_sam.records import BoxXYXY, Prompt, RefinedMask
from stable_sam.scores import MEASURED, ScoreSource

SCORES = (*MEASURED, "log_area", "score")
"""What may enter: the row's scores, `log_area` = log10 of the mask's part of its picture, the detector's `score`."""
BOX_SCORES = ("log_box_area", "mask_to_box_area")
"""What may enter the expected gain over the weak box, too: log10 of the box's part of the picture, and the mask's area
divided by the box's."""


class _Finite(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class Curve(_Finite):
    """What one score adds to a sum: to the log-odds, or to the gain."""

    x: tuple[float, ...] = Field(min_length=2)
    """Knots, ascending."""
    y: tuple[float, ...]
    """What is added at the knots."""
    missing: float = 0.0
    """What is added where a row does not have the score."""

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


class SizeSlice(_Finite):
    """Accepted masks of objects of like size, which the fit had not seen, beside their weak boxes, filled."""

    size: str
    """The object's part of its picture, in words."""
    masks: int
    mask_iou: float
    """Mean IoU of the masks with the true ones."""
    box_iou: float
    """The same of the filled boxes."""


class GainOverBox(_Finite):
    """The IoU that a mask is expected to have more than its weak box, filled."""

    intercept: float
    curves: dict[str, Curve]
    """By names in SCORES and BOX_SCORES."""
    threshold: float = Field(default=0.0, ge=0)
    """Only masks that are expected to gain more than this are accepted: the lowest at which no size of accepted masks
    was worse than its boxes."""
    masks: int
    """That the curves were fitted on."""
    error: float
    """Mean distance of expected and true gain, by cross-validation."""
    spearman: float
    """Rank correlation of expected and true gain, by cross-validation."""
    sizes: tuple[SizeSlice, ...] = ()
    """What came of it on masks that the fit had not seen; without the sizes of which none was accepted."""

    @model_validator(mode="after")
    def _known_scores(self) -> Self:
        _check_names(self.curves, (*SCORES, *BOX_SCORES))
        return self


class Calibration(_Finite):
    """The curves, the thresholds, and the model that they hold for."""

    target_iou: float = Field(gt=0, lt=1)
    """A mask is good when its IoU with the true one is at least this."""
    intercept: float
    curves: dict[str, Curve]
    accept: Promise
    reject: Promise
    gain_over_box: GainOverBox | None = None
    """None: there were no boxes to learn it from, or the file is of an older version."""
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
        _check_names(self.curves, SCORES)
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
        odds = _sum(self.intercept, self.curves, scores)
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))

    def expected_gain(self, scores: Mapping[str, float | None]) -> float | None:
        """IoU that a mask with these scores is expected to have more than its filled box; `scores` by their names in
        SCORES and BOX_SCORES. None for a prompt without a box, and where that was not calibrated."""
        gain = self.gain_over_box
        if gain is None or scores.get("log_box_area") is None:
            return None
        return max(-1.0, min(1.0, _sum(gain.intercept, gain.curves, scores)))


def _sum(intercept: float, curves: Mapping[str, Curve], scores: Mapping[str, float | None]) -> float:
    return intercept + sum(curve.at(scores.get(name)) for name, curve in curves.items())


def _check_names(curves: Mapping[str, Curve], known: Sequence[str]) -> None:
    if unknown := sorted(curves.keys() - set(known)):
        raise ValueError(f"expected curves of {', '.join(known)}, got {', '.join(unknown)}")


def scores_of(prompt: Prompt, mask: RefinedMask) -> dict[str, float | None]:
    """The scores of a mask that was made, by their names in SCORES and BOX_SCORES."""
    assert mask.mask_size is not None, "a mask that was made"
    return {
        **{name: getattr(mask, name) for name in MEASURED},
        "log_area": log_area(mask.area or 0, mask.mask_size),
        "score": prompt.score,
        **box_scores(prompt.box_xyxy, mask.area or 0, mask.mask_size),
    }


def log_area(area: float, size_hw: tuple[int, int]) -> float | None:
    """log10 of the part of the picture that `area` pixels are; None for an empty mask."""
    return math.log10(area / (size_hw[0] * size_hw[1])) if area else None


def box_scores(box_xyxy: BoxXYXY | None, mask_area: int, size_hw: tuple[int, int]) -> dict[str, float | None]:
    """BOX_SCORES of a mask of `mask_area` pixels; None without a box."""
    if box_xyxy is None:
        return dict.fromkeys(BOX_SCORES)
    area = (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1])
    return {"log_box_area": log_area(area, size_hw), "mask_to_box_area": mask_area / area}
