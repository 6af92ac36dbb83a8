"""A calibration computes the probability that a mask is good from the scores in its row. It is a JSON file of numbers.

    log-odds = intercept + sum over scores of curve(score),   quality = 1 / (1 + exp(-log-odds))

Where boxes were calibrated, it also computes how much a mask is expected to gain over its filled weak box:

    gain_over_box = intercept + sum over scores of curve(score)

Each curve is linear between its knots and flat outside. So a person can read what each score adds, a file cannot
execute code, and neither actors nor queries need the library that fitted the curves.
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

INPUTS = (*MEASURED, "log_area", "score")
"""What `quality` may be computed from: the row's measured scores, `log_area` (log10 of the part of its image that the
mask covers) and the detector's `score`."""
BOX_INPUTS = ("log_box_area", "mask_to_box_area")
"""What the expected gain over the weak box may be computed from besides INPUTS: log10 of the part of the image that the
box covers, and the mask's area divided by the box's."""


class _Finite(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class Curve(_Finite):
    """What one score adds to a sum, either to the log-odds or to the gain."""

    x: tuple[float, ...] = Field(min_length=2)
    """Values of the score at the knots, ascending."""
    y: tuple[float, ...]
    """What is added at each knot."""
    missing: float = 0.0
    """What is added when a row does not have the score."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y) or any(a >= b for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("expected ascending knots x and as many y")
        return self

    def at(self, value: float | None) -> float:
        """Return what the score `value` adds; None and values that are not finite count as missing."""
        if value is None or not math.isfinite(value):
            return self.missing
        right = bisect_right(self.x, value)
        if right in (0, len(self.x)):
            return self.y[0 if right == 0 else -1]
        x0, x1, y0, y1 = *self.x[right - 1 : right + 1], *self.y[right - 1 : right + 1]
        return y0 + (y1 - y0) * (value - x0) / (x1 - x0)


class Promise(_Finite):
    """What a calibration promises about one route, and on how many masks outside the fit that was checked."""

    route: str
    threshold: float | None
    """Threshold of `quality`; None when no threshold keeps the promise, so that the route gets no masks."""
    precision: float
    """Promised share of good masks among the accepted ones, or of bad masks among the rejected ones."""
    confidence: float
    """Probability with which the promised precision holds."""
    masks: int
    """Number of checked masks that the threshold sends on this route."""
    kept: int
    """Number of masks on this route that are good or bad as promised."""
    checked: int
    """Number of masks on which the threshold was checked."""
    possible: float | None = None
    """The highest precision that any of the tried thresholds could promise at this confidence."""


class SizeSlice(_Finite):
    """Compares accepted masks outside the fit with their filled weak boxes, for objects of similar size."""

    size: str
    """Which part of its image such an object covers, in words."""
    masks: int
    mask_iou: float
    """Mean IoU of the masks with the true masks."""
    box_iou: float
    """Mean IoU of the filled weak boxes with the true masks."""


class GainOverBox(_Finite):
    """Computes how much higher a mask's IoU with the true mask is expected to be than that of its filled weak box."""

    intercept: float
    curves: dict[str, Curve]
    """Curves by their names in INPUTS and BOX_INPUTS."""
    threshold: float = Field(default=0.0, ge=0)
    """Only masks that are expected to gain more than this are accepted. It is the lowest threshold at which the
    accepted masks of every object size were at least as good as their boxes."""
    masks: int
    """Number of masks that the curves were fitted on."""
    error: float
    """Mean absolute difference between expected and true gain, by cross-validation."""
    spearman: float
    """Rank correlation of expected and true gain, by cross-validation."""
    sizes: tuple[SizeSlice, ...] = ()
    """Accepted masks and their boxes compared by object size, for the sizes of which any mask was accepted."""

    @model_validator(mode="after")
    def _known_scores(self) -> Self:
        _check_names(self.curves, (*INPUTS, *BOX_INPUTS))
        return self


class Calibration(_Finite):
    """The curves and thresholds of a calibration, and the model that they hold for."""

    target_iou: float = Field(gt=0, lt=1)
    """A mask is good when its IoU with the true mask is at least this."""
    intercept: float
    curves: dict[str, Curve]
    accept: Promise
    reject: Promise
    gain_over_box: GainOverBox | None = None
    """None when there were no boxes to learn it from, or an older version wrote the file."""
    weights_sha256: str
    """SHA-256 of the weights of the model whose scores were calibrated."""
    jitter_count: int
    jitter_scale: float
    dtype: str = "float32"
    stability_offset: float = 1.0
    second_pass_from: float | None = None
    """alpha_1 from which prompts took the second pass; None when no prompt took it."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule` of the calibrated masks. None when all of them were made in the whole image; the
    calibration then holds only for such masks."""
    fitted_on: dict[str, int] = Field(default_factory=dict)
    """Number of masks that the curves were fitted on, by the name of their data set."""

    @model_validator(mode="after")
    def _known_scores(self) -> Self:
        _check_names(self.curves, INPUTS)
        return self

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Self:
        """Read a file that `stable-sam calibrate` wrote; raises a `ConfigError` that names `source`."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: expected a calibration as JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{source}: expected a calibration, got {type(raw).__name__}")
        return cls.from_dict(raw, source=source)

    @property
    def source(self) -> ScoreSource:
        """What the calibrated scores depend on."""
        return ScoreSource(**{field.name: getattr(self, field.name) for field in fields(ScoreSource)})

    def holds_for(self, mask: RefinedMask) -> bool:
        """Tell whether the calibration holds for a mask: it has status "ok", and its tile, if any, was calibrated."""
        return mask.status == "ok" and (self.tiles is not None or mask.view is None)

    def quality(self, scores: Mapping[str, float | None]) -> float:
        """Compute the probability in (0, 1) that a mask is good from its scores, by their names in INPUTS."""
        odds = _sum(self.intercept, self.curves, scores)
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))

    def expected_gain(self, scores: Mapping[str, float | None]) -> float | None:
        """Compute how much more IoU than its filled box a mask is expected to have.

        scores: by their names in INPUTS and BOX_INPUTS.
        Returns None for a prompt without a box, and when the gain was not calibrated.
        """
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
    """Return the scores of a mask with status "ok", by their names in INPUTS and BOX_INPUTS."""
    assert mask.mask_size is not None, "only a mask that was made has scores"
    return {
        **{name: getattr(mask, name) for name in MEASURED},
        "log_area": log_area(mask.area or 0, mask.mask_size),
        "score": prompt.score,
        **box_scores(prompt.box_xyxy, mask.area or 0, mask.mask_size),
    }


def log_area(area: float, size_hw: tuple[int, int]) -> float | None:
    """Compute log10 of the part of an image (height, width) that `area` pixels cover; None when `area` is 0."""
    return math.log10(area / (size_hw[0] * size_hw[1])) if area else None


def box_scores(box_xyxy: BoxXYXY | None, mask_area: int, size_hw: tuple[int, int]) -> dict[str, float | None]:
    """Compute the BOX_INPUTS of a mask of `mask_area` pixels; each is None for a prompt without a box."""
    if box_xyxy is None:
        return dict.fromkeys(BOX_INPUTS)
    area = (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1])
    return {"log_box_area": log_area(area, size_hw), "mask_to_box_area": mask_area / area}
