"""The records that pass from one room to another: what is asked (`Prompt`) and what comes back (`RefinedMask`).

All coordinates are pixels of the original image after its EXIF rotation has been applied ("upright"), origin at the
outer corner of the top left pixel, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BoxXYXY = tuple[float, float, float, float]
Window = tuple[int, int, int, int]
"""A rectangular part of an image: x, y, width, height in whole pixels."""
Status = Literal["ok", "failed", "withdrawn", "reviewed"]
"""`withdrawn` marks a tombstone: the annotation is no longer in the source, and the row repeats the prompt as it last
was. `reviewed` marks a mask that a person judged: `verdict` says how, and no later night refines the prompt again."""
Route = Literal["accept", "review", "reject"]
View = Literal["tile", "wider"]
"""`tile` is the window of the image that the prompt's size asks for. `wider` is a wider window, or the whole image,
because the mask reached the border of the narrower one or the small prompts of the image needed too many tiles."""
AnnotationFormat = Literal[
    "auto", "coco", "lvis", "detections", "table", "voc", "yolo", "labelme", "labelstudio", "cvat", "openimages"
]
"""Names of the annotation formats."""
Verdict = Literal["confirmed", "corrected", "rejected"]
"""What a reviewer decided: the mask is right as it was, another mask is right, or the object is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One weak annotation: a box, points, or both, and the identity its source gave it.

    A prompt that the reader found unusable is kept, with the reason in `error`, because every annotation of the source
    becomes one row of the output.
    """

    prompt_id: str
    """Unique within the source, made from the source's own ids; seeds all sampling for this prompt."""
    image_id: str
    image_uri: str
    """URI of the image; empty when the source names no image, which `error` then says."""
    image_size: tuple[int, int] | None = None
    """(height, width) that the source declares for the upright image. The prompt fails when the image has another size:
    it is then turned, or not the image that the annotation was made on."""
    box_xyxy: BoxXYXY | None = None
    """Pixels, upright image; x0 < x1 and y0 < y1 unless `error` is set."""
    points_xy: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    """1 = on the object, 0 = background; as long as `points_xy`."""
    annotation_id: str | None = None
    category_id: int | None = None
    category: str | None = None
    iscrowd: bool = False
    score: float | None = None
    """Confidence of the detector that made the weak box, when the source has one."""
    attributes: str | None = None
    """Everything else that the source says about this annotation, as a JSON object."""
    error: str | None = None
    """Why the prompt cannot be used, after the file and the record; None when it can."""
    cause: str | None = field(default=None, compare=False)
    """`error` without the file and the record, which may change although the annotation does not; None for `error`
    itself. It is compared and not stored."""
    fingerprint: str | None = field(default=None, compare=False)
    """Hash of the fields above and of the image's version, set by the plan of a run; see stable_sam.table.fingerprint.
    Equality ignores it, because it says nothing that the prompt and its image do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedMask:
    """The answer to one prompt. With status "failed" every field after `error` is None except `route` and
    `route_reason`; with status "withdrawn" these two are None as well."""

    prompt_id: str
    status: Status
    error: str | None = None
    mask_size: tuple[int, int] | None = None
    """(height, width) of the upright image."""
    mask_counts: str | None = None
    """COCO compressed run-length counts (column-major), as text."""
    bbox_xywh: BoxXYXY | None = None
    """Tight box around the mask; (0, 0, 0, 0) when the mask is empty."""
    area: int | None = None
    """Pixels in the mask."""
    predicted_iou: float | None = None
    """The IoU head's estimate for the chosen mask."""
    stability_score: float | None = None
    """SAM's score: IoU of the mask thresholded at +offset and at -offset; 0 for an empty mask."""
    prompt_stability: float | None = None
    """mSF over K jittered prompts (paper, "segmentation stability"): mean IoU of each mask with the union of all."""
    dsp_weight: float | None = None
    """alpha_1 of the dynamic routing plugin: how active deformable sampling was; 0 without the plugin."""
    box_agreement: float | None = None
    """IoU of the weak box with the mask's tight box; None for a prompt without a box."""
    quality: float | None = None
    """Probability that the mask is good: that its IoU with the true mask is at least the calibration's `target_iou`
    (0.75 by default). None when the run has no calibration."""
    gain_over_box: float | None = None
    """How much higher the mask's IoU with the true mask is expected to be than that of the filled weak box, by the
    run's calibration. None when the run has no such calibration, and for a prompt without a box."""
    second_pass: str | None = None
    """Name of the second pass that made this mask ("mirror"); None when the prompt took no second pass."""
    view: View | None = None
    """How a small object was looked at more closely; None for an object that spans enough cells of the whole image's
    embedding."""
    tile_xywh: Window | None = None
    """The tile that the mask was made in; None when it was made in the whole image."""
    route: Route | None = None
    route_reason: str | None = None
    verdict: Verdict | None = None
    """What the reviewer decided; None for a row that nobody reviewed."""
    true_iou: float | None = None
    """IoU with the true mask of the annotation; None when the run was given no true mask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made a row. All rows of a run have the same values, except for `shard_id`."""

    run_id: str
    shard_id: str
    revision: int
    """Ordinal of the run in its table, from 1: of two rows with one prompt_id the higher revision is current."""
    model_id: str
    weights_sha256: str
    config_hash: str
    code_version: str
    dtype: str
    logical_date: str | None = None
    """ISO date of the night that this run stands for; None when the scheduler gave no date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What an actor tells the driver about a finished shard, in a few hundred bytes."""

    shard_id: str
    rows: int
    failed: int
    images: int
    seconds: float
    """Seconds for which masks were being made, without fetching images and writing rows."""
    reused: bool = False
    """True when the shard's commit record already existed (resume, or another driver was first)."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage of `timing.STAGES`, for the stages that ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How a source differs from the table, counted in prompts: what a run has to do, and what it leaves alone."""

    new: int = 0
    """Prompts that are not current in the table. A prompt that was withdrawn and came back is new."""
    prompt_changed: int = 0
    """Prompts whose box, points or another field changed."""
    image_changed: int = 0
    """Prompts that are equal, but whose image was replaced (it has another version)."""
    image_moved: int = 0
    """Prompts that are equal but for the path of their image, which is not known to be the same image."""
    unknown: int = 0
    """Prompts whose row was written by a version that stored no fingerprints, so that changes cannot be told."""
    failed: int = 0
    """Unchanged prompts that failed and are tried again because that was asked for."""
    other_model: int = 0
    """Unchanged prompts that another model or config refined, refined again because that was asked for."""
    other_code: int = 0
    """Unchanged prompts that another version of this software refined, refined again because that was asked for."""
    withdrawn: int = 0
    """Prompts that are current in the table and no longer in the source."""
    unchanged: int = 0
    """Prompts that are current and left as they are."""
    reviewed: int = 0
    """How many of the unchanged prompts would have been refined if nobody had reviewed them."""

    @property
    def changed(self) -> int:
        """Prompts whose content changed, or may have changed."""
        return self.prompt_changed + self.image_changed + self.image_moved + self.unknown

    @property
    def refreshed(self) -> int:
        """Prompts that are refined again although their content is the same."""
        return self.failed + self.other_model + self.other_code

    @property
    def planned(self) -> int:
        """Prompts to refine."""
        return self.new + self.changed + self.refreshed
