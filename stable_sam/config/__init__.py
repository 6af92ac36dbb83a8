"""Configuration: one YAML file is one kind of run. Unknown keys are refused; every number says why it is what it is."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stable_sam.config.calibration import Calibration
from stable_sam.config.section import Section
from stable_sam.records import AnnotationFormat


class RefinerConfig(Section):
    """The model and how it is prompted."""

    model: Literal["nano", "tiny", "vit_b", "vit_l", "vit_h"] = "nano"
    """`nano` comes with its weights; `vit_*` need `checkpoint_uri`; `tiny` is random and for tests only."""
    checkpoint_uri: str | None = None
    """SAM checkpoint, any fsspec URI. None: the bundled weights (`nano`)."""
    plugin_uri: str | None = None
    """Stable-SAM plugin (safetensors), any fsspec URI. None: the bundled plugin, or none for a base without one."""
    plugin: bool = True
    """False: plain SAM."""
    hq_uri: str | None = None
    """HQ-SAM in the place of the plugin, which is then off: a published `sam_hq_vit_*.pth` on the same base, or a
    branch trained for it (safetensors), any fsspec URI."""
    device: str = "auto"
    """`auto` takes the GPU when there is one; or `cpu`, `cuda`, `cuda:1`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the image encoder; the mask decoder always runs in float32, so that masks do not depend on it
    much."""
    compile: bool = False
    """True: the encoder and the decoder of boxes and single points go through `torch.compile`, on a GPU with CUDA
    graphs. Masks are the same but for rounding. Each actor then compiles, for a minute or several, when it meets its
    first image and whenever a number of prompts passes the next power of two for the first time (torch keeps what it
    compiled in a folder, so that later starts are shorter); it needs a C++ compiler on the machine. Worth it for long
    runs of a large model on a GPU; images that meet the compiling count it in `image_timeout_s`."""
    prompt_chunk_size: int = Field(default=16, ge=1)
    """Prompts that pass the decoder together: bounds its memory whatever the number of boxes in an image. 8 to 16 are
    fastest on a CPU, a GPU likes 64."""
    jitter_count: int = Field(default=8, ge=0)
    """K jittered prompts behind each prompt_stability; mSF falls as K grows, so compare only equal K. 0: not
    computed."""
    jitter_scale: float = Field(default=0.1, ge=0, le=1)
    """Noise scale of the jittered prompts, in HQ-SAM's sense: centre and size move by U(-1, 1) * scale * (w/2, h/2,
    w, h)."""
    second_pass: Literal["off", "mirror"] = "mirror"
    """What prompts from `second_pass_dsp_weight` on, by default all, take besides. `mirror`: the mirrored image is
    asked, too, and the mask is the mean of both answers; costs the encoder once more for each image and tile with such
    prompts and the decoder once more for each prompt. Without a plugin no prompt takes it."""
    second_pass_dsp_weight: float = Field(default=0.0, ge=0, le=1)
    """alpha_1 of the dynamic routing plugin from which a prompt counts as poor. 0: every prompt, because with the
    bundled weights all gain alike (docs/results.md). Higher values spare time with a plugin whose alpha knows poor
    prompts."""
    tiles: Literal["auto", "off"] = "auto"
    """`auto`: a small object is asked in a tile, a window of the image that is encoded by itself, in which it spans
    enough of the embedding to have a border (`stable_sam.images.tiles`). Costs the encoder once more for each tile;
    prompts of like size that lie together share one. `off`: every prompt is asked in the whole image."""
    tile_below_cells: float = Field(default=3.0, gt=0)
    """An object is small whose longer side spans fewer cells of the whole image's embedding, which has 24 cells a side
    for `nano` and 64 for `vit_*`. With `nano` masks of boxes under 1.5 cells gain 0.09 to 0.11 of IoU, up
    to 3 cells 0.02 to 0.06, above that nothing that is sure (docs/results.md)."""
    tile_scale: float = Field(default=3.0, ge=2)
    """A tile is at least so many times as wide as the longer side of its object, and in most cases less than twice as
    many times: narrower ones show too little of what is around the object, wider ones too little of the object."""
    max_tiles: int = Field(default=64, ge=1)
    """Tiles that one image may take. Where its prompts would take more, those of the narrowest tiles take wider ones,
    so that only there a row depends on the image's other prompts. Bounds the time that an image takes: 64 tiles are 8 s
    of `nano` on one core. An image of 640 x 480 pixels has 12; a larger one full of small objects is worth more."""
    stability_offset: float = Field(default=1.0, gt=0)
    """Logit offset of SAM's stability_score (SAM's own default)."""
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """A larger image is refused before it is decoded: a decompression bomb must not end the night."""

    @field_validator("second_pass", "tiles", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads an `off` without quotes as false."""
        return "off" if value is False else value

    @property
    def tile_rule(self) -> str | None:
        """What a score depends on of the tiles, in words to compare; None when there are none."""
        if self.tiles == "off":
            return None
        return f"below {self.tile_below_cells:g} cells, {self.tile_scale:g} times as wide"

    @property
    def second_pass_from(self) -> float | None:
        """alpha_1 from which prompts take the second pass; None when it is off."""
        return None if self.second_pass == "off" else self.second_pass_dsp_weight


def tile_settings(tile_rule: str | None) -> dict[str, Any]:
    """The settings of a `RefinerConfig` that has this `tile_rule`."""
    if tile_rule is None:
        return {"tiles": "off"}
    below_cells, scale = map(float, re.findall(r"\d\S*", tile_rule))
    return {"tiles": "auto", "tile_below_cells": below_cells, "tile_scale": scale}


class RoutingConfig(Section):
    """What becomes of a mask: by a calibrated probability where there is one, by thresholds on its scores otherwise.

    By thresholds, a mask is accepted when it passes every accept threshold.
    """

    calibration_uri: str | None = "bundled"
    """File that `stable-sam calibrate` wrote, any fsspec URI. `bundled`: the one that comes with the bundled weights,
    where the run uses them as they were calibrated. None: thresholds."""
    calibration: Calibration | None = None
    """What that file holds, filled in when a run is planned: the run's rows then depend on no other file."""

    accept_prompt_stability: float = Field(default=0.80, ge=0, le=1)
    """Below: nearby prompts give other masks, somebody should look."""
    accept_predicted_iou: float = Field(default=0.70, ge=0, le=1)
    """Below: the IoU head itself doubts the mask."""
    accept_stability_score: float = Field(default=0.80, ge=0, le=1)
    """Below: the border is vague."""
    accept_box_agreement: float = Field(default=0.50, ge=0, le=1)
    """Below: the mask left the weak box or fills little of it."""
    accept_dsp_weight: float = Field(default=1.0, ge=0, le=1)
    """Above: the dynamic routing plugin expected the deformed features to gain. 1 switches the criterion off."""
    reject_prompt_stability: float = Field(default=0.40, ge=0, le=1)
    """Below: the mask says nothing."""
    reject_predicted_iou: float = Field(default=0.30, ge=0, le=1)
    """Below: the IoU head is sure that the mask is wrong."""


class RayConfig(Section):
    """The actors. Nothing here changes a mask, so nothing here enters the run's identity."""

    address: str | None = None
    """Cluster to join; None starts a local Ray on loopback and stops it at the end."""
    actors: int | None = Field(default=None, ge=1)
    """None: one for each GPU; without a GPU one for every `num_cpus` cores, so the default uses every core. Each holds
    the model in memory: say fewer for a large one. Never more than the cluster has room for, unless nodes come on
    demand."""
    wait_for_nodes_s: float = Field(default=0, ge=0)
    """For clusters that add nodes on demand: how long the run waits while there is no room for a single actor. Then
    `actors`, `num_cpus` and `num_gpus` say what to ask for. 0: what does not fit now is refused."""
    num_cpus: float = Field(default=1, ge=0)
    """Cores each actor asks for; also its number of torch threads, at least 1."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs each actor asks for, fractions allowed."""
    helpers: int | None = Field(default=None, ge=0)
    """Images that each actor with a GPU has fetched, decoded and encoded at a time by nodes without one. None: as the
    cores of those nodes allow, at most 16; a cluster without such nodes does all beside the model. 0: never
    elsewhere."""
    in_flight_per_actor: int = Field(default=2, ge=1)
    """Shards handed to an actor ahead of time: 2 hides the round trip and bounds what a dead actor takes with it."""
    max_retries: int = Field(default=2, ge=0)
    """How often a shard is tried again whose actor or node is gone, before its images are tried one by one."""
    image_timeout_s: float = Field(default=300, gt=0)
    """Time that refining an image of up to 100 prompts and 4 tiles may take, in proportion for more; it is then tried
    once more, alone, before its prompts fail. Far above what any image needs, so that only one that hangs meets it."""
    image_memory_mb: int = Field(default=4000, ge=1)
    """Memory (not the GPU's) that refining an image may take on top of the model's; a PNG of 100 megapixels takes
    about 700, with transparency or in floats up to 2500, a JPEG much less. An actor's node needs the model and this
    much for each image that is in the works at a time."""
    object_store_mb: int = Field(default=300, ge=80)
    """Of a local Ray, where only URIs and reports travel through it; with `helpers`, pixels and logits do, about 8 MB
    for each of them."""
    profile: bool = False
    """Actors keep what they did when in the run's folder, at most 2000 spans a shard, and wait for a GPU after each
    image's encoder, to tell its time apart. `refine --profile FILE` sets it and makes a trace of that."""


class RegressionConfig(Section):
    """When a night is told to be worse than those before it. Changes no row and nothing of the run's identity."""

    nights: int = Field(default=7, ge=1)
    """Runs before this one that it is compared with, by their medians: one bad or odd night among them does not
    count."""
    min_nights: int = Field(default=3, ge=1)
    """With fewer there is nothing usual to compare with, and nothing is said."""
    min_prompts: int = Field(default=100, ge=1)
    """Nights that refined fewer are neither judged nor compared with: their shares and medians are chance."""
    review_rise: float = Field(default=0.10, ge=0)
    """Rise of the share of prompts in review that is still usual: two standard deviations at 100 prompts. 1: any."""
    failed_rise: float = Field(default=0.02, ge=0)
    """The same for failed prompts, of which a healthy source has next to none."""
    prompt_stability_drop: float = Field(default=0.05, ge=0)
    """Drop of the median prompt_stability that is still usual. 1: any."""
    predicted_iou_drop: float = Field(default=0.05, ge=0)
    """The same for the median predicted_iou."""
    fail: bool = False
    """True: a night that is worse ends red, after it has published."""


class SourceConfig(Section):
    """How the annotation files are read. A prompt that is read otherwise is a changed one."""

    format: AnnotationFormat = "auto"
    """`auto` tells it by the content; a name says it, and of a folder takes only the files that may be of it."""
    keypoints: bool = False
    """True: keypoints of COCO and YOLO-pose that are marked visible are points on the object, beside
    its box. Off: joints sit on borders and on what is in front, where a box alone gives the better mask."""
    follow_links: bool = False
    """True: links in local folders of images and annotations are followed wherever they lead, as data sets of DVC,
    git-annex and Hugging Face's cache need it. Off: only within the folder, because a stranger's folder may hold links
    to anywhere."""
    class_names_uri: str | None = None
    """Names of YOLO's and Open Images' classes (data.yaml, obj.names, classes.txt, class-descriptions.csv). None: such
    a file in the annotations' folder, or in one of the two above it."""


class RunConfig(Section):
    """One kind of run: `configs/*.yaml`."""

    refiner: RefinerConfig = RefinerConfig()
    routing: RoutingConfig = RoutingConfig()
    ray: RayConfig = RayConfig()
    regression: RegressionConfig = RegressionConfig()
    source: SourceConfig = SourceConfig()
    truth_uri: str | None = None
    """COCO instances with true masks for some of the images, any fsspec URI: each mask of the run that can be matched
    gets its `true_iou`, and the run its mean and AP. Rows that a night leaves as they are stay without."""
    shard_images: int = Field(default=64, ge=1)
    """Ordinary images in a shard: the unit of work that is lost when an actor dies and of commit; a minute or so of
    work. Fewer where images have more than 8 prompts: shards cost about the same."""
    decode_cost: float = Field(default=0.3, ge=0)
    """One prompt's pass through the mask decoder, in images fetched and encoded; jittered prompts pass it too. Balances
    the shards. nano on one core: 17 ms of 55. With the large encoders it is less, and nothing is lost with too much."""
    max_failed_fraction: float = Field(default=1.0, ge=0, le=1)
    """The run ends red (after it has published) when more than this share of the prompts it refined failed; one of
    which all failed is red whatever stands here. A night that refined fewer than 100 prompts of a larger table is
    judged as if others up to 100 had been refined with it, and well: one bad prompt alone is no red night."""
    max_withdrawn_fraction: float = Field(default=0.5, ge=0, le=1)
    """A night that would withdraw more than this share of the table's current prompts is refused before it writes
    anything: half an export looks like that. Tables of fewer than 100 current prompts are not judged. Where so many
    were really withdrawn, say 1 for that run."""

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, raw: Any) -> Any:
        """Version 0.2.0 called the section `regression` `quality`, also in the manifests of its runs."""
        if isinstance(raw, dict) and "quality" in raw and "regression" not in raw:
            return {("regression" if key == "quality" else key): value for key, value in raw.items()}
        return raw

    @property
    def prompt_cost(self) -> float:
        """Cost of a prompt with its jittered ones, in images fetched and encoded."""
        return self.decode_cost * (1 + self.refiner.jitter_count)

    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of the settings that can change a row: the model, its prompting and the routing."""
        content = self.model_dump(mode="json", include={"refiner", "routing"})
        content["refiner"].pop("device")
        content["refiner"].pop("compile")  # as the device, it rounds otherwise
        if self.refiner.second_pass == "off":  # as before there was one
            content["refiner"].pop("second_pass")
            content["refiner"].pop("second_pass_dsp_weight")
        if self.refiner.tiles == "off":  # as before there were any
            for name in ("tiles", "tile_below_cells", "tile_scale", "max_tiles"):
                content["refiner"].pop(name)
        content["routing"].pop("calibration_uri")  # its content counts
        if self.routing.calibration is None:
            content["routing"].pop("calibration")  # as before there were calibrations
        else:
            for name in ("dtype", "stability_offset"):  # as before it said so; they are the refiner's
                content["routing"]["calibration"].pop(name)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
