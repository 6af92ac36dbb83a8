"""The scores of a mask: what each is called, what it says, which way it points, and what it depends on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score of a row, a number between 0 and 1."""

    column: str
    """Of the masks table, and field of `RefinedMask`."""
    label: str
    """For people."""
    short: str
    """The label where there is little room."""
    meaning: str
    """One sentence."""
    kind: Literal["measured", "calibrated", "truth"] = "measured"
    """`measured`: comes with the mask. `calibrated`: made of the measured ones. `truth`: needs the true mask."""
    higher_is_better: bool = True
    signed: bool = False
    """A difference, between -1 and 1; every other score lies between 0 and 1."""
    in_groups: bool = False
    """Views and report show its median for each group of prompts; of all scores it would be too many columns."""


SCORES = (
    Score(
        column="quality",
        label="quality",
        short="quality",
        meaning="Probability that the IoU with the true mask is at least 0.75, by the run's calibration.",
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
"""What a model says of its own mask."""
IN_UNIT = tuple(score for score in SCORES if not score.signed)
"""What can be drawn on a scale from 0 to 1."""
IN_GROUPS = tuple(score.column for score in SCORES if score.in_groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSource:
    """What the scores of a mask depend on besides its image and its prompt: only scores of one source compare.

    The defaults are what tables, calibrations and labelled masks were made with that do not say.
    """

    weights_sha256: str
    jitter_count: int
    jitter_scale: float
    dtype: str = "float32"
    stability_offset: float = 1.0
    second_pass_from: float | None = None
    """alpha_1 from which prompts took the second pass; None: there was none."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule`; None: all masks were made in the whole image."""

    def differs(self, other: ScoreSource) -> tuple[str, Any, Any] | None:
        """The first field that is another in `other`: its name, its value here and there."""
        for name in (field.name for field in fields(self)):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return name, here, there
        return None
