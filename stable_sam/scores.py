"""The scores of a mask: how each is named, what it means, whether high is good, and what it depends on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

GOOD_IOU = 0.75
"""Smallest IoU with the true mask of a good mask, where a calibration has no other `target_iou`; all others are bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score of a row: a number between 0 and 1, or between -1 and 1 when it is `signed`."""

    column: str
    """Name of the column in the masks table and of the field of `RefinedMask`."""
    label: str
    """Name that people read."""
    short: str
    """Label for places with little room."""
    meaning: str
    """What the score means, in one sentence."""
    kind: Literal["measured", "calibrated", "truth"] = "measured"
    """A `measured` score comes with the mask, a `calibrated` one is computed from measured ones, and a score of kind
    `truth` needs the true mask."""
    higher_is_better: bool = True
    signed: bool = False
    """Whether the score is a difference between -1 and 1; every other score lies between 0 and 1."""
    in_groups: bool = False
    """Whether views and the report show its median for each group of prompts; all scores would be too many columns."""


SCORES = (
    Score(
        column="quality",
        label="quality",
        short="quality",
        meaning="Probability that the mask is good: that its IoU with the true mask is at least the calibration's "
        f"`target_iou` ({GOOD_IOU} by default).",
        kind="calibrated",
        in_groups=True,
    ),
    Score(
        column="gain_over_box",
        label="gain over box",
        short="gain",
        meaning="How much higher the mask's IoU with the true mask is expected to be than that of the filled weak box.",
        kind="calibrated",
        signed=True,
        in_groups=True,
    ),
    Score(
        column="prompt_stability",
        label="prompt stability",
        short="stable",
        meaning="Mean IoU of the masks of slightly moved prompts with the union of these masks.",
        in_groups=True,
    ),
    Score(
        column="predicted_iou",
        label="predicted IoU",
        short="pred.",
        meaning="IoU with the true mask, as the model's IoU head estimates it.",
        in_groups=True,
    ),
    Score(
        column="stability_score",
        label="stability score",
        short="border",
        meaning="IoU of the mask cut at a higher and at a lower logit: low where the border is vague.",
    ),
    Score(
        column="dsp_weight",
        label="DSP weight",
        short="DSP",
        meaning="How active the plugin's deformable sampling was: high where it expected a poor prompt.",
        higher_is_better=False,
    ),
    Score(
        column="box_agreement",
        label="box agreement",
        short="box",
        meaning="IoU of the weak box with the tight box of the mask.",
        in_groups=True,
    ),
    Score(
        column="true_iou",
        label="true IoU",
        short="true IoU",
        meaning="IoU with the true mask of the annotation.",
        kind="truth",
    ),
)
MEASURED = tuple(score.column for score in SCORES if score.kind == "measured")
FROM_MODEL = tuple(score.column for score in SCORES if score.kind != "truth")
"""Columns of the scores that a model gives to its own mask."""
IN_UNIT = tuple(score for score in SCORES if not score.signed)
"""Scores that can be drawn on a scale from 0 to 1."""
IN_GROUPS = tuple(score.column for score in SCORES if score.in_groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSource:
    """What the scores of a mask depend on besides its image and its prompt: only scores of one source are comparable.

    The defaults hold for tables, calibrations and labelled masks of older versions, which do not store these fields.
    """

    weights_sha256: str
    jitter_count: int
    jitter_scale: float
    dtype: str = "float32"
    stability_offset: float = 1.0
    second_pass_from: float | None = None
    """alpha_1 from which prompts took the second pass; None when no prompt took it."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule`; None when all masks were made in the whole image."""

    def differs(self, other: ScoreSource) -> tuple[str, Any, Any] | None:
        """Return the first field that differs as its name, its value here and its value in `other`; None if equal."""
        for name in (field.name for field in fields(self)):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return name, here, there
        return None
