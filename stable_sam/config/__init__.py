"""The config of a run: one YAML file is one kind of run, unknown keys are refused, and each default has its reason."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from stable_sam.bases import BASES
from stable_sam.config.calibration import Calibration
from stable_sam.config.section import Section
from stable_sam.records import AnnotationFormat


class RefinerConfig(Section):
    """The model and how it is prompted."""

    model: str = "nano"
    """A base that `stable-sam models` lists (docs/bases.md). `nano` comes with its weights, `tiny` is random and for
    tests only, and `stable-sam models get` downloads the others."""
    checkpoint_uri: str | None = None
    """Weights of the base, any fsspec URI, also https. None takes those that come with this package or that
    `stable-sam models get` downloaded to this machine; a run never downloads them by itself."""
    plugin_uri: str | None = None
    """Stable-SAM plugin (safetensors), any fsspec URI. When this and `checkpoint_uri` are None, the plugin that comes
    with the base or lies beside the downloaded base is taken, if there is one."""
    plugin: bool = True
    """False switches the Stable-SAM plugin off, which leaves plain SAM."""
    hq_uri: str | None = None
    """HQ-SAM's weights, which take the place of the plugin: a published `sam_hq_vit_*.pth` of the same base, or a
    branch trained for the base (safetensors), any fsspec URI. `published` takes the file that `stable-sam models get
    NAME --hq` downloaded."""
    device: str = "auto"
    """Device of the model: `cpu`, `cuda`, `cuda:1`, or `auto` for the GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the image encoder. `bfloat16` takes about half the time where the machine has matrix units for it
    (AMX, or an NVIDIA GPU since Ampere) and more time elsewhere. `auto` takes it when the machine that plans the run
    has such units, or when `ray.num_gpus` asks for GPUs. The mask decoder always runs in float32, because bfloat16
    there moves masks and prompt_stability too far (docs/results.md). The default is the same on every machine, and the
    bundled calibration holds for it."""
    compile: bool = False
    """True compiles the encoder and the decoder of boxes and single points with `torch.compile`, on a GPU with CUDA
    graphs. Masks change only by rounding. Each actor compiles for one or several minutes at its first image, and
    whenever a number of prompts passes the next power of two for the first time; torch keeps compiled code in a folder,
    so that later starts are shorter. It needs a C++ compiler on the machine, and pays off for long runs of a large
    model on a GPU. The time for compiling counts in `image_timeout_s`."""
    prompt_chunk_size: int = Field(default=16, ge=1)
    """Prompts that pass the decoder together, which bounds its memory however many boxes an image has. 8 to 16 are
    fastest on a CPU, 64 on a GPU."""
    jitter_count: int = Field(default=8, ge=0)
    """Number K of jittered prompts from which each prompt_stability is computed; 0 computes none. mSF falls as K grows,
    so only values of equal K are comparable."""
    jitter_scale: float = Field(default=0.1, ge=0, le=1)
    """Noise scale of the jittered prompts, in HQ-SAM's sense: centre and size move by U(-1, 1) * scale * (w/2, h/2,
    w, h)."""
    second_pass: Literal["off", "mirror"] = "mirror"
    """`mirror` also prompts the model with the mirrored image and takes the mean of both answers, for prompts whose
    alpha_1 is at least `second_pass_dsp_weight` (by default all). It costs one more pass of the encoder for each image
    and tile with such prompts, and one more pass of the decoder for each such prompt. Without a plugin no prompt takes
    the second pass."""
    second_pass_dsp_weight: float = Field(default=0.0, ge=0, le=1)
    """alpha_1 of the dynamic routing plugin from which a prompt counts as poor. 0 counts every prompt, because all
    prompts gain alike with the bundled weights (docs/results.md). Higher values save time with a plugin whose alpha_1
    tells poor prompts apart."""
    tiles: Literal["auto", "off"] = "auto"
    """`auto` prompts for a small object in a tile, a window of the image that is encoded by itself, in which the object
    spans enough of the embedding for a precise mask (`stable_sam.images.tiles`). Each tile costs one more pass of the
    encoder; prompts of similar size that lie together share a tile. `off` uses the whole image for every prompt."""
    tile_below_cells: float = Field(default=3.0, gt=0)
    """An object is small when both its sides span fewer cells than this in the whole image's embedding, which has 24
    cells a side for `nano` and 64 for the others. With `nano`, masks of boxes under 1.5 cells gain 0.09 to 0.11 of IoU
    and those up to 3 cells 0.02 to 0.06; for larger boxes no gain is certain (docs/results.md)."""
    tile_scale: float = Field(default=3.0, ge=2)
    """A tile is at least this many times as wide as the longer side of its object, and usually less than twice that.
    Narrower tiles show too little of the object's surroundings, wider ones too little detail of the object."""
    max_tiles: int = Field(default=64, ge=1)
    """The most tiles of one image, which bounds the time that an image takes: 64 tiles are 8 s of `nano` on one core.
    When the prompts of an image need more, those of the narrowest tiles take wider ones; only then a row depends on the
    other prompts of its image. An image of 640 x 480 pixels has 12 tiles; larger images full of small objects may
    deserve more than 64."""
    stability_offset: float = Field(default=1.0, gt=0)
    """Logit offset of SAM's stability_score; 1.0 is SAM's own default."""
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """An image with more pixels is refused before it is decoded, because a decompression bomb must not end the run."""

    @field_validator("model")
    @classmethod
    def _is_a_base(cls, name: str) -> str:
        if name not in BASES:
            raise PydanticCustomError("base", "expected one of {names}", {"names": ", ".join(BASES)})
        return name

    @field_validator("second_pass", "tiles", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads an `off` without quotes as false."""
        return "off" if value is False else value

    @property
    def tile_rule(self) -> str | None:
        """The part of the tile config that scores depend on, as a text to compare; None when tiles are off."""
        if self.tiles == "off":
            return None
        return f"below {self.tile_below_cells:g} cells, {self.tile_scale:g} times as wide"

    @property
    def second_pass_from(self) -> float | None:
        """alpha_1 from which prompts take the second pass; None when it is off."""
        return None if self.second_pass == "off" else self.second_pass_dsp_weight


def tile_config(tile_rule: str | None) -> dict[str, Any]:
    """Return the fields that give a `RefinerConfig` this `tile_rule`."""
    if tile_rule is None:
        return {"tiles": "off"}
    below_cells, scale = map(float, re.findall(r"\d\S*", tile_rule))
    return {"tiles": "auto", "tile_below_cells": below_cells, "tile_scale": scale}


class RoutingConfig(Section):
    """Decides what becomes of a mask, by its calibrated `quality` or, without a calibration, by score thresholds.

    Without a calibration, a mask is accepted when it passes every accept threshold.
    """

    calibration_uri: str | None = "bundled"
    """File that `stable-sam calibrate` wrote, any fsspec URI. `bundled` takes the calibration that comes with the
    bundled weights, if the run uses these weights as they were calibrated. None routes by thresholds."""
    calibration: Calibration | None = None
    """Content of that file, filled in when a run is planned, so that the run's rows depend on no other file."""

    accept_prompt_stability: float = Field(default=0.80, ge=0, le=1)
    """Least prompt_stability of an accepted mask. Below it, nearby prompts give other masks."""
    accept_predicted_iou: float = Field(default=0.70, ge=0, le=1)
    """Least predicted_iou of an accepted mask. Below it, the IoU head itself doubts the mask."""
    accept_stability_score: float = Field(default=0.80, ge=0, le=1)
    """Least stability_score of an accepted mask. Below it, the mask's border is vague."""
    accept_box_agreement: float = Field(default=0.50, ge=0, le=1)
    """Least box_agreement of an accepted mask. Below it, the mask leaves the weak box or fills little of it."""
    accept_dsp_weight: float = Field(default=1.0, ge=0, le=1)
    """Greatest dsp_weight of an accepted mask. Above it, the dynamic routing plugin expected a gain from the deformed
    features. 1 switches the criterion off."""
    reject_prompt_stability: float = Field(default=0.40, ge=0, le=1)
    """A mask with a lower prompt_stability is rejected, because it depends more on the prompt than on the object."""
    reject_predicted_iou: float = Field(default=0.30, ge=0, le=1)
    """A mask with a lower predicted_iou is rejected, because the IoU head is sure that it is wrong."""


class RayConfig(Section):
    """Configures the Ray actors. No field changes a mask, so none of them enters the run's identity."""

    address: str | None = None
    """Address of the cluster to join. None starts a local Ray on loopback and stops it at the end."""
    actors: int | None = Field(default=None, ge=1)
    """Number of actors. None starts one for each GPU or, without a GPU, one for every `num_cpus` cores. Each actor
    holds the model in memory, so a large model may need fewer. It must not exceed what the cluster has room for, unless
    the cluster adds nodes on demand."""
    wait_for_nodes_s: float = Field(default=0, ge=0)
    """Seconds that a run waits for a cluster that adds nodes on demand, while there is no room for a single actor.
    `actors`, `num_cpus` and `num_gpus` then say what to ask for. 0 refuses a run that has no room now."""
    num_cpus: float = Field(default=1, ge=0)
    """Cores that each actor asks for; also its number of torch threads, at least 1."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that each actor asks for; fractions are allowed."""
    helpers: int | None = Field(default=None, ge=0)
    """Images of each GPU actor that nodes without a GPU fetch and decode, and whose masks they encode, at a time. None
    takes as many as the cores of those nodes allow, at most 16; a cluster without such nodes does this work in the
    actors. 0 always does it in the actors."""
    in_flight_per_actor: int = Field(default=2, ge=1)
    """Shards given to an actor at a time. 2 hides the round trip and limits what is lost when an actor dies."""
    max_retries: int = Field(default=2, ge=0)
    """How often a shard is tried again when its actor or node died, before its images are tried one by one."""
    image_timeout_s: float = Field(default=300, gt=0)
    """Seconds that refining an image of up to 100 prompts and 4 tiles may take; more prompts or tiles get more in
    proportion. An image that takes longer is tried once more, alone, before its prompts fail. No image needs nearly as
    long unless it hangs."""
    image_memory_mb: int = Field(default=4000, ge=1)
    """Main memory in MB that refining an image may take on top of the model. A PNG of 100 megapixels takes about 700,
    with transparency or in floats up to 2500, a JPEG much less. An actor's node needs room for the model and for this
    much for each image that is refined at a time."""
    object_store_mb: int = Field(default=300, ge=80)
    """Size in MB of a local Ray's object store. Only URIs and reports pass through it, except with `helpers`: then
    pixels and logits do as well, about 8 MB for each helper."""
    profile: bool = False
    """True keeps the times of single pieces of work in the run's folder, at most 2000 for each shard, and waits for the
    GPU after each image's encoder to measure it separately. `refine --profile FILE` sets this and writes a trace."""


class RegressionConfig(Section):
    """Decides when a night counts as worse than the nights before it. It changes no row and not the run's identity."""

    nights: int = Field(default=7, ge=1)
    """Number of earlier nights whose medians a night is compared with; by medians, one odd night does not count."""
    min_nights: int = Field(default=3, ge=1)
    """With fewer earlier nights nothing is known to be usual, and a night is not judged."""
    min_prompts: int = Field(default=100, ge=1)
    """Nights that refined fewer prompts are neither judged nor compared with, because their shares and medians are
    chance."""
    review_rise: float = Field(default=0.10, ge=0)
    """Greatest usual rise of the share of prompts in review: two standard deviations at 100 prompts. 1 allows any."""
    failed_rise: float = Field(default=0.02, ge=0)
    """Greatest usual rise of the share of failed prompts, which is almost 0 for a good source. 1 allows any."""
    prompt_stability_drop: float = Field(default=0.05, ge=0)
    """Greatest usual drop of the median prompt_stability. 1 allows any."""
    predicted_iou_drop: float = Field(default=0.05, ge=0)
    """Greatest usual drop of the median predicted_iou. 1 allows any."""
    fail: bool = False
    """True makes a night with a regression end red, after it has published."""


class SourceConfig(Section):
    """Says how annotation files are read. A prompt that is read in another way counts as changed."""

    format: AnnotationFormat = "auto"
    """`auto` recognises the format by the content. A name sets it, and takes from a folder only the files that can have
    this format."""
    frame: Literal["upright", "stored"] = "upright"
    """`upright`: sizes, boxes and points are in pixels of the image as viewers show it. `stored`: they are in pixels as
    the file stores them, from a tool that ignores EXIF, and are turned by the EXIF orientation of each image."""
    keypoints: bool = False
    """True adds the keypoints of COCO and YOLO-pose that are marked visible to an object's box, as points on the
    object. False is the default because joints lie on borders and behind other objects, where a box alone gives the
    better mask."""
    follow_links: bool = False
    """True follows links in local folders of images and annotations wherever they lead, which data sets of DVC,
    git-annex and Hugging Face's cache need. False follows only those that stay within the folder, because a folder of
    unknown origin may hold links to anywhere."""
    class_names_uri: str | None = None
    """File with the names of YOLO's or Open Images' classes (data.yaml, obj.names, classes.txt,
    class-descriptions.csv). None looks for such a file in the annotations' folder and in the two folders above it."""


class RunConfig(Section):
    """Everything that one kind of run is told: the content of a file in `configs/`."""

    refiner: RefinerConfig = RefinerConfig()
    routing: RoutingConfig = RoutingConfig()
    ray: RayConfig = RayConfig()
    regression: RegressionConfig = RegressionConfig()
    source: SourceConfig = SourceConfig()
    truth_uri: str | None = None
    """COCO instances with true masks for some of the images, any fsspec URI. Each mask of the run that matches a true
    one gets its `true_iou`, and the run gets its mean IoU and AP. Rows that a run does not refine get none."""
    shard_images: int = Field(default=64, ge=1)
    """Images of up to 8 prompts in a shard, about a minute of work. A shard is committed as a whole, and is lost as a
    whole when an actor dies. Shards of images with more prompts have fewer images, so that all cost about the same."""
    decode_cost: float = Field(default=0.3, ge=0)
    """Cost of one prompt's pass through the mask decoder, where fetching and encoding an image costs 1. It balances the
    shards, and counts for jittered prompts too. `nano` takes 17 ms and 55 ms on one core. The large encoders have a
    lower ratio, but a value that is too high does no harm."""
    max_failed_fraction: float = Field(default=1.0, ge=0, le=1)
    """The run ends red, after it has published, when more than this share of the prompts that it refined failed, and
    always when all of them failed. Both are judged on at least 100 prompts where the table has as many: a run that
    refined fewer counts as having refined more without failure, so that one bad prompt alone does not end it red."""
    max_withdrawn_fraction: float = Field(default=0.5, ge=0, le=1)
    """A run that would withdraw more than this share of the table's current prompts is refused before it writes
    anything, because its source may be half an export. Tables of fewer than 100 current prompts are not judged. 1
    allows a run to withdraw any number."""

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, raw: Any) -> Any:
        """Version 0.2.0 called the section `regression` `quality`, also in the manifests of its runs."""
        if isinstance(raw, dict) and "quality" in raw and "regression" not in raw:
            return {("regression" if key == "quality" else key): value for key, value in raw.items()}
        return raw

    @property
    def prompt_cost(self) -> float:
        """Cost of a prompt and its jittered prompts, where fetching and encoding an image costs 1."""
        return self.decode_cost * (1 + self.refiner.jitter_count)

    def content_hash(self) -> str:
        """Hash the config that can change a row (the model, its prompting and the routing): SHA-256, 16 hex digits.

        A feature that is off is left out, so that the hash equals the one of versions before the feature existed.
        """
        content = self.model_dump(mode="json", include={"refiner", "routing"})
        content["refiner"].pop("device")
        content["refiner"].pop("compile")  # like the device, it changes only how numbers are rounded
        if self.refiner.second_pass == "off":
            content["refiner"].pop("second_pass")
            content["refiner"].pop("second_pass_dsp_weight")
        if self.refiner.tiles == "off":
            for name in ("tiles", "tile_below_cells", "tile_scale", "max_tiles"):
                content["refiner"].pop(name)
        content["routing"].pop("calibration_uri")  # the content of the file is hashed instead
        if self.routing.calibration is None:
            content["routing"].pop("calibration")
        else:
            for name in ("dtype", "stability_offset"):  # older calibrations do not have them; the refiner's are hashed
                content["routing"]["calibration"].pop(name)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
