"""One shard from its file to its committed rows: what an actor does, and a notebook can do too."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stable_sam.data.commits import commit_of, write_part
from stable_sam.data.images import decode_image
from stable_sam.data.manifest import RunManifest, ShardPlan, read_shard
from stable_sam.data.storage import exists, read_bytes
from stable_sam.errors import ImageError, NotFoundError, StorageError, WeightsError, one_line
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask, ShardReport
from stable_sam.routing import failed_mask


class ImageRefiner(Protocol):
    """What is needed of `stable_sam.refiner.Refiner`."""

    @property
    def identity(self) -> ModelIdentity:
        """The loaded model."""
        ...

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """One mask for each prompt, in order."""
        ...


def refine_shard(
    refiner: ImageRefiner, manifest: RunManifest, shard: ShardPlan, poisoned: Mapping[str, str] | None = None
) -> ShardReport:
    """Refine and commit the prompts of one shard; a shard that is committed already is only reported.

    Whatever is wrong with an image makes failed rows of its prompts and nothing more. `poisoned`: image_id -> reason,
    for images that end the process and must not be touched.
    Raises `StorageError` when a store cannot be reached, `WeightsError` when the refiner is not the planned model, and
    the GPU's own error when the device is lost: none of these is the images' fault, and another try may succeed.
    """
    started = time.monotonic()
    if refiner.identity != manifest.model:
        raise WeightsError(f"{manifest.uri}: planned for {manifest.model}, but the loaded model is {refiner.identity}")
    record, ours = commit_of(manifest, shard.shard_id), False
    if record is None:
        rows = list(_rows(refiner, manifest, read_shard(shard.uri), poisoned or {}))
        record, ours = write_part(manifest, shard, rows)
    return ShardReport(
        shard_id=shard.shard_id,
        rows=record.rows,
        failed=record.failed,
        images=record.images,
        seconds=time.monotonic() - started,
        reused=not ours,
    )


def _rows(
    refiner: ImageRefiner, manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]
) -> Iterator[tuple[Prompt, RefinedMask]]:
    """One image in memory at a time."""
    for (image_uri, image_id), group in groupby(prompts, key=lambda prompt: (prompt.image_uri, prompt.image_id)):
        of_image = list(group)
        reason = poisoned.get(image_id)
        if reason is None and any(prompt.error is None for prompt in of_image):
            try:
                masks = _refine(refiner, manifest, image_uri, of_image)
            except ImageError as error:
                reason = str(error)
            except (StorageError, WeightsError):
                raise
            except Exception as error:
                if _device_is_lost(error):
                    raise
                logging.getLogger(__name__).exception("%s: cannot be refined", image_uri)
                reason = f"{image_uri}: cannot be refined: {type(error).__name__}: {one_line(error)[:300]}"
            else:
                yield from zip(of_image, masks, strict=True)
                continue
        for prompt in of_image:
            yield prompt, failed_mask(prompt.prompt_id, prompt.error or reason or "")


def _refine(
    refiner: ImageRefiner, manifest: RunManifest, image_uri: str, prompts: Sequence[Prompt]
) -> list[RefinedMask]:
    data = _read_image(image_uri, manifest.images_uri)
    image = decode_image(data, name=image_uri, max_pixels=manifest.config.refiner.max_image_pixels)
    _check_size(image, image_uri, prompts)
    masks = refiner.refine_image(image, prompts)
    asked, got = [prompt.prompt_id for prompt in prompts], [mask.prompt_id for mask in masks]
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


def _read_image(image_uri: str, images_uri: str) -> bytes:
    """Raises `ImageError` when this image is the trouble, `StorageError` when its store is."""
    try:
        return read_bytes(image_uri)
    except NotFoundError as error:
        raise ImageError(str(error)) from error
    except StorageError:
        exists(images_uri)
    try:
        return read_bytes(image_uri)
    except StorageError as error:
        raise ImageError(str(error)) from error


def _device_is_lost(error: Exception) -> bool:
    """After an illegal access or a failed assertion on a GPU every later call of the process fails too.

    Known by its name, because the class is torch's and this module works without torch. Out of memory has another.
    """
    return type(error).__name__ == "AcceleratorError"
