"""The scores of a mask: what each is called, what it says, and which way it points. All lie between 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score of a row."""

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
IN_GROUPS = tuple(score.column for score in SCORES if score.in_groups)
