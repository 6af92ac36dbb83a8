"""One image of a shard through a refiner: all that a process with a model has to do, without stores and tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig
from stable_sam.data.images import decode_image
from stable_sam.errors import ImageError, one_line
from stable_sam.records import Prompt, RefinedMask
from stable_sam.routing import failed_mask

if TYPE_CHECKING:
    from stable_sam.identity import ModelIdentity


class ImageRefiner(Protocol):
    """What is needed of `stable_sam.refiner.Refiner`."""

    @property
    def identity(self) -> ModelIdentity:
        """The loaded model."""
        ...

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
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


def refine_job(refiner: ImageRefiner, config: RefinerConfig, job: ImageJob) -> list[RefinedMask]:
    """The masks of a job's prompts, failed ones for whatever is wrong with it; raises the GPU's own error when it is
    lost."""
    if job.error is not None:
        return failed_masks(job, job.error)
    try:
        return _refine(refiner, config, job)
    except ImageError as error:
        return failed_masks(job, str(error))
    except Exception as error:
        if device_is_lost(error):
            raise
        logging.getLogger(__name__).exception("%s: cannot be refined", job.image_uri)
        reason = f"{job.image_uri}: cannot be refined: {type(error).__name__}: {one_line(error)[:300]}"
        return failed_masks(job, reason)


def failed_masks(job: ImageJob, reason: str) -> list[RefinedMask]:
    """A failed row for each prompt of the image; a prompt that was bad before keeps its own reason."""
    return [failed_mask(prompt.prompt_id, prompt.error or reason) for prompt in job.prompts]


def device_is_lost(error: Exception) -> bool:
    """After an illegal access or a failed assertion on a GPU every later call of the process fails too.

    Known by its name, because the class is torch's and this module works without torch. Out of memory has another.
    """
    return type(error).__name__ == "AcceleratorError"


def _refine(refiner: ImageRefiner, config: RefinerConfig, job: ImageJob) -> list[RefinedMask]:
    image = decode_image(job.data, name=job.image_uri, max_pixels=config.max_image_pixels)
    _check_size(image, job.image_uri, job.prompts)
    masks = refiner.refine_image(image, job.prompts)
    asked, got = [prompt.prompt_id for prompt in job.prompts], [mask.prompt_id for mask in masks]
    if asked != got:
        raise ValueError(f"expected masks of prompts {asked[:5]}, got {got[:5]}")
    return masks


def _check_size(image: NDArray[np.uint8], image_uri: str, prompts: Sequence[Prompt]) -> None:
    """Raises `ImageError` for a picture whose annotations were made on one of another size: turned, or a resized copy.

    Their boxes would be other things' here, and no score would show it.
    """
    height, width = image.shape[:2]
    for declared in {prompt.image_size for prompt in prompts if prompt.image_size is not None}:
        if declared != (height, width):
            raise ImageError(
                f"{image_uri}: expected the declared {declared[1]} x {declared[0]} pixels, "
                f"the upright picture has {width} x {height}"
            )
