"""One image of a shard through a refiner, at once or stage by stage: without stores and tables.

    at once        ImageJob --refine_job--> masks
    in stages      ImageJob --prepare_job--> PreparedImage --infer_job--> InferredImage --finish_job--> masks

Whatever is wrong with an image becomes failed masks of its prompts in the stage that meets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import ImageError, one_line
from stable_sam.images.decode import DecodedImage, decode_for_input
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.routing import failed_mask
from stable_sam.refining.steps import InferredImage, InferredPrompts, PreparedImage, finish, prepare
from stable_sam.timing import timed

if TYPE_CHECKING:
    from stable_sam.identity import ModelIdentity

MOST_PROMPTS_APART = 32
"""An image with more prompts is finished where the model is: their logits, 262 kB each, would be many megabytes."""
T = TypeVar("T")


class ImageRefiner(Protocol):
    """What is needed of `stable_sam.refining.refiner.Refiner`."""

    @property
    def identity(self) -> ModelIdentity:
        """The loaded model."""
        ...

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """One mask for each prompt, in order."""
        ...


@runtime_checkable
class StagedRefiner(ImageRefiner, Protocol):
    """One whose images may be prepared and finished elsewhere."""

    @property
    def input_side(self) -> int:
        """Side of the model's square input in pixels."""
        ...

    def infer(self, image: PreparedImage) -> Iterator[InferredPrompts]:
        """All that takes the model."""
        ...

    def refine_prepared(self, image: PreparedImage) -> list[RefinedMask]:
        """One mask for each prompt, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """An image's file and its prompts: what a refiner needs, and no store."""

    image_id: str
    image_uri: str
    prompts: tuple[Prompt, ...]
    data: bytes = b""
    error: str | None = None
    """Why there is nothing to refine; the prompts become failed rows."""


Job = ImageJob | PreparedImage | InferredImage


def refine_job(refiner: ImageRefiner, config: RefinerConfig, job: ImageJob) -> list[RefinedMask]:
    """The masks of a job's prompts, failed ones for whatever is wrong with it; raises the GPU's own error when it is
    lost."""
    if job.error is not None:
        return failed_masks(job, job.error)
    return _guarded(job, lambda: _refine(refiner, config, job))


def prepare_job(config: RefinerConfig, side: int, job: ImageJob) -> PreparedImage | list[RefinedMask]:
    """The first stage, for a model whose input has this side; failed masks when no prompt can be refined."""
    if job.error is not None:
        return failed_masks(job, job.error)

    def prepared() -> PreparedImage | list[RefinedMask]:
        image = _prepared(config, side, job, cut_ahead=True)
        return image if any(prompt.error is None for prompt in image.prompts) else failed_masks(image, "")

    return _guarded(job, prepared)


def infer_job(refiner: StagedRefiner, image: PreparedImage) -> InferredImage | list[RefinedMask]:
    """The second stage; with more than `MOST_PROMPTS_APART` prompts the third, too. Raises as `refine_job`."""

    def inferred() -> InferredImage | list[RefinedMask]:
        if len(image.prompts) > MOST_PROMPTS_APART:
            return refiner.refine_prepared(image)
        return InferredImage(
            image_uri=image.image_uri,
            prompts=image.prompts,
            inferred=tuple(refiner.infer(image)),
        )

    return _guarded(image, inferred)


def finish_job(config: RunConfig, image: InferredImage) -> list[RefinedMask]:
    """The third stage."""
    return _guarded(image, lambda: finish(image, config.refiner, config.routing))


def failed_masks(job: Job, reason: str) -> list[RefinedMask]:
    """A failed row for each prompt of the image; a prompt that was bad before keeps its own reason."""
    return [failed_mask(prompt.prompt_id, prompt.error or reason) for prompt in job.prompts]


def device_is_lost(error: Exception) -> bool:
    """After an illegal access or a failed assertion on a GPU every later call of the process fails too.

    Known by its name, because the class is torch's and this module works without torch. Out of memory has another.
    """
    return type(error).__name__ == "AcceleratorError"


def _guarded(job: Job, work: Callable[[], T]) -> T | list[RefinedMask]:
    """What `work` returns, failed masks when it raises; a lost GPU's error is raised."""
    try:
        return work()
    except ImageError as error:
        return failed_masks(job, str(error))
    except Exception as error:
        if device_is_lost(error):
            raise
        logging.getLogger(__name__).exception("%s: cannot be refined", job.image_uri)
        reason = f"{job.image_uri}: cannot be refined: {type(error).__name__}: {one_line(error)[:300]}"
        return failed_masks(job, reason)


def _refine(refiner: ImageRefiner, config: RefinerConfig, job: ImageJob) -> list[RefinedMask]:
    if isinstance(refiner, StagedRefiner):
        masks = refiner.refine_prepared(_prepared(config, refiner.input_side, job))
    else:
        masks = refiner.refine_image(_decoded(config, None, job).pixels, job.prompts)
    asked, got = [prompt.prompt_id for prompt in job.prompts], [mask.prompt_id for mask in masks]
    if asked != got:
        raise ValueError(f"expected masks of prompts {asked[:5]}, got {got[:5]}")
    return masks


def _prepared(config: RefinerConfig, side: int, job: ImageJob, *, cut_ahead: bool = False) -> PreparedImage:
    picture = _decoded(config, side, job)
    tiles = TilePixels(picture, file=job.data, name=job.image_uri, max_pixels=config.max_image_pixels)
    return prepare(picture, job.prompts, side, config, tiles, image_uri=job.image_uri, cut_ahead=cut_ahead)


def _decoded(config: RefinerConfig, side: int | None, job: ImageJob) -> DecodedImage:
    with timed("decode"):
        picture = decode_for_input(job.data, name=job.image_uri, max_pixels=config.max_image_pixels, side=side)
    _check_size(picture.original_hw, job.image_uri, job.prompts)
    return picture


def _check_size(image_hw: tuple[int, int], image_uri: str, prompts: Sequence[Prompt]) -> None:
    """Raises `ImageError` for a picture whose annotations were made on one of another size: turned, or a resized copy.

    Their boxes would be other things' here, and no score would show it.
    """
    height, width = image_hw
    for declared in {prompt.image_size for prompt in prompts if prompt.image_size is not None}:
        if declared != (height, width):
            raise ImageError(
                f"{image_uri}: expected the declared {declared[1]} x {declared[0]} pixels, "
                f"the upright picture has {width} x {height}"
            )
