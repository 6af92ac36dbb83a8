"""Refining of one image of a shard, in one step or in three, without stores and tables.

    one step       ImageJob --refine_job--> masks
    three steps    ImageJob --prepare_job--> PreparedImage --infer_job--> InferredImage --finish_job--> masks

A step that cannot process an image turns its prompts into failed masks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import ImageError, one_line
from stable_sam.images.decode import DecodedImage, decode_for_input
from stable_sam.images.orientation import size_problem, turned_hw
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.routing import failed_mask
from stable_sam.refining.steps import InferredImage, InferredPrompts, PreparedImage, finish, prepare
from stable_sam.timing import timed

if TYPE_CHECKING:
    from stable_sam.identity import ModelIdentity

MOST_PROMPTS_APART = 32
"""Largest number of prompts of an image that is finished outside the model's process. The logits of more, 262 kB each,
would be many megabytes to send."""
T = TypeVar("T")


class ImageRefiner(Protocol):
    """The part of `stable_sam.refining.refiner.Refiner` that `refine_job` needs."""

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the loaded model."""
        ...

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """Return one mask for each prompt, in the order of `prompts`; image: (H, W, 3), RGB, upright."""
        ...


@runtime_checkable
class StagedRefiner(ImageRefiner, Protocol):
    """An `ImageRefiner` whose images may be prepared and finished in other processes."""

    @property
    def input_side(self) -> int:
        """Side of the model's square input in pixels."""
        ...

    def infer(self, image: PreparedImage) -> Iterator[InferredPrompts]:
        """Run the model on the image and its prompts."""
        ...

    def refine_prepared(self, image: PreparedImage) -> list[RefinedMask]:
        """Return one mask for each of the image's prompts, in their order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """An image's file and its prompts, so that a refiner needs no store."""

    image_id: str
    image_uri: str
    prompts: tuple[Prompt, ...]
    data: bytes = b""
    error: str | None = None
    """Why the image cannot be refined, which makes its prompts failed rows; None when it can."""


Job = ImageJob | PreparedImage | InferredImage


def refine_job(refiner: ImageRefiner, config: RefinerConfig, job: ImageJob) -> list[RefinedMask]:
    """Refine the prompts of a job, in their order; an image that cannot be refined gives failed masks.

    Raises the GPU's own error when the GPU is lost (`device_is_lost`).
    """
    if job.error is not None:
        return failed_masks(job, job.error)
    return _guarded(job, lambda: _refine(refiner, config, job))


def prepare_job(config: RefinerConfig, side: int, job: ImageJob) -> PreparedImage | list[RefinedMask]:
    """Decode and resize an image for a model whose square input has this side in pixels: the first of three steps.

    Returns failed masks when no prompt can be refined.
    """
    if job.error is not None:
        return failed_masks(job, job.error)

    def prepared() -> PreparedImage | list[RefinedMask]:
        image = _prepared(config, side, job, cut_ahead=True)
        return image if any(prompt.error is None for prompt in image.prompts) else failed_masks(image, "")

    return _guarded(job, prepared)


def infer_job(refiner: StagedRefiner, image: PreparedImage) -> InferredImage | list[RefinedMask]:
    """Run the model on a prepared image: the second of three steps.

    With more than `MOST_PROMPTS_APART` prompts it also does the third and returns masks; it returns failed masks when
    the image cannot be refined. Raises the GPU's own error when the GPU is lost.
    """

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
    """Make masks, scores and routes from the model's output: the last of three steps."""
    return _guarded(image, lambda: finish(image, config.refiner, config.routing))


def failed_masks(job: Job, reason: str) -> list[RefinedMask]:
    """Return a failed mask for each prompt of the image; a prompt that has an `error` keeps it as its reason."""
    return [failed_mask(prompt.prompt_id, prompt.error or reason) for prompt in job.prompts]


def device_is_lost(error: Exception) -> bool:
    """Whether a GPU is lost to this process: after an illegal access or a failed assertion every later call fails too.

    torch raises `AcceleratorError` then, which is recognised by name because this module does not import torch. Running
    out of memory raises another error.
    """
    return type(error).__name__ == "AcceleratorError"


def _guarded(job: Job, work: Callable[[], T]) -> T | list[RefinedMask]:
    """Return what `work` returns, or failed masks when it raises anything but the error of a lost GPU."""
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
    decoded = _decoded(config, side, job)
    tiles = TilePixels(decoded, file=job.data, name=job.image_uri, max_pixels=config.max_image_pixels)
    return prepare(decoded, job.prompts, side, config, tiles, image_uri=job.image_uri, cut_ahead=cut_ahead)


def _decoded(config: RefinerConfig, side: int | None, job: ImageJob) -> DecodedImage:
    with timed("decode"):
        decoded = decode_for_input(
            job.data, name=job.image_uri, max_pixels=config.max_image_pixels, side=side, fit=BASES[config.model].fit
        )
    _check_size(decoded, job)
    return decoded


def _check_size(decoded: DecodedImage, job: ImageJob) -> None:
    """Raise `ImageError` when annotations were made on an image of another size, such as a rotated or resized copy.

    Their boxes would lie around other objects of this image, and no score would show it.
    """
    upright_hw, turn = decoded.original_hw, decoded.orientation
    for declared in {prompt.image_size for prompt in job.prompts if prompt.image_size is not None}:
        problem = size_problem(declared, upright_hw, turn)
        if problem is None:
            continue
        if declared == turned_hw(upright_hw, turn):
            problem += (
                "; set source.frame: stored in the config if the boxes are of these pixels, too, or correct width and "
                "height if the boxes are upright"
            )
        raise ImageError(f"{job.image_uri}: {problem}")
