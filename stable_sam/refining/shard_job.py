"""One shard from its file to its committed rows: what an actor does, and a notebook can do too.

shard file --fetch ahead--> ImageJob --refine_job, here or in another process--> masks --write_part--> commit record

Each of the three arrows may be handed in, and then happens elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

from stable_sam.errors import ImageError, NotFoundError, StorageError, WeightsError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask, ShardReport
from stable_sam.refining.image_job import ImageJob, ImageRefiner, refine_job
from stable_sam.runs.commits import CommitRecord, commit_of, write_part
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_shard
from stable_sam.runs.truth import read_truth, with_true_iou
from stable_sam.storage.files import exists, read_bytes
from stable_sam.storage.parallel import ahead
from stable_sam.timing import StageClock, timed

FETCHED_AHEAD = 4
"""Image files read before they are asked for: hides the store's round trips, and bounds the memory they take."""
MAX_IMAGE_BYTES = 512 * 2**20
"""Of an image file, which is held as a whole: above an uncompressed picture of 100 megapixels in four channels."""
Masks = Sequence[RefinedMask]
FetchJobs = Callable[[RunManifest, Sequence[Prompt], Mapping[str, str]], Iterator[Any]]
"""What `refine_jobs` takes for each image of a shard, in order; see `image_jobs`."""
RefineJobs = Callable[[Iterator[Any]], Iterator[Masks | Future[Masks]]]
"""For each job the masks of its prompts, in order; or their future, where the model is done with them before they
are."""
WriteRows = Callable[..., tuple[CommitRecord, bool]]
"""See `write_part`."""


def refine_shard(refiner: ImageRefiner, manifest: RunManifest, shard: ShardPlan) -> ShardReport:
    """Refine and commit the prompts of one shard in this process; see `complete_shard`.

    Raises `WeightsError` too, when the refiner is not the planned model, and the GPU's own error when it is lost.
    """
    check_model(refiner.identity, manifest)
    config = manifest.config.refiner
    return complete_shard(manifest, shard, lambda jobs: (refine_job(refiner, config, job) for job in jobs))


def complete_shard(
    manifest: RunManifest,
    shard: ShardPlan,
    refine_jobs: RefineJobs,
    *,
    poisoned: Mapping[str, str] | None = None,
    turn: AbstractContextManager[object] | None = None,
    fetch_jobs: FetchJobs | None = None,
    write_rows: WriteRows | None = None,
    clock: StageClock | None = None,
) -> ShardReport:
    """Read a shard and its images, have them refined and commit the rows; a committed shard is only reported.

    Whatever is wrong with an image makes failed rows of its prompts and nothing more. `poisoned`: image_id -> reason,
    for images that must not be touched. turn: held while masks are made; images are fetched before, rows written after.
    fetch_jobs, write_rows: other than `image_jobs` and `write_part`. clock: to be asked for more than the report has.
    Raises `StorageError` when a store cannot be reached, and what `refine_jobs` raises: none of these is an image's
    fault, and another try may succeed.
    """
    record, ours, seconds = commit_of(manifest, shard.shard_id), False, 0.0
    with clock or StageClock() as clock:
        if record is None:
            prompts = read_shard(shard.uri)
            jobs = (fetch_jobs or image_jobs)(manifest, prompts, poisoned or {})
            with turn or nullcontext():
                started = time.monotonic()
                answers = list(refine_jobs(jobs))
                seconds = time.monotonic() - started
            masks = [mask for of_image in answers for mask in _settled(of_image)]
            if shard.truth:
                masks = with_true_iou(prompts, masks, read_truth(shard))
            rows = list(zip(prompts, masks, strict=True))
            stage_seconds = clock.times().seconds
            record, ours = (write_rows or write_part)(
                manifest, shard, rows, seconds=seconds, stage_seconds=stage_seconds
            )
    return ShardReport(
        shard_id=shard.shard_id,
        rows=record.rows,
        failed=record.failed,
        images=record.images,
        seconds=seconds,
        reused=not ours,
        stage_seconds=clock.times().seconds,
    )


def check_model(identity: ModelIdentity | None, manifest: RunManifest) -> None:
    """Raise `WeightsError` unless this is the model that the run was planned for."""
    if identity != manifest.model:
        raise WeightsError(f"{manifest.uri}: planned for {manifest.model}, but the loaded model is {identity}")


def image_jobs(manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]) -> Iterator[ImageJob]:
    """The images of a shard, in order, with their files; reading begins at once and stays `FETCHED_AHEAD` images ahead.

    Raises `StorageError`, while iterating, when the images' store cannot be reached.
    """

    def fetched(of_image: tuple[Prompt, ...]) -> ImageJob:
        return image_job(of_image, manifest.images_uri, poisoned.get(of_image[0].image_id))

    return ahead(fetched, by_image(prompts), FETCHED_AHEAD)


def by_image(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, ...]]:
    """The prompts of each image of a shard, in order."""
    for _, group in groupby(prompts, key=lambda prompt: (prompt.image_uri, prompt.image_id)):
        yield tuple(group)


def image_job(prompts: tuple[Prompt, ...], images_uri: str, error: str | None = None) -> ImageJob:
    """One image with its file, which is not read where there is an `error` or no usable prompt.

    Raises `StorageError` when the images' store cannot be reached.
    """
    image_id, image_uri, data = prompts[0].image_id, prompts[0].image_uri, b""
    if error is None and any(prompt.error is None for prompt in prompts):
        try:
            with timed("fetch", image_uri):
                data = _read_image(image_uri, images_uri)
        except ImageError as problem:
            error = str(problem)
    else:
        error = error or ""  # each prompt has its own
    return ImageJob(image_id=image_id, image_uri=image_uri, prompts=prompts, data=data, error=error)


def _settled(of_image: Masks | Future[Masks]) -> Masks:
    return of_image.result() if isinstance(of_image, Future) else of_image


def _read_image(image_uri: str, images_uri: str) -> bytes:
    """Raises `ImageError` when this image is the trouble, `StorageError` when its store is."""
    try:
        return read_bytes(image_uri, max_bytes=MAX_IMAGE_BYTES)
    except NotFoundError as error:
        raise ImageError(str(error)) from error
    except StorageError:
        exists(images_uri)
    try:
        return read_bytes(image_uri, max_bytes=MAX_IMAGE_BYTES)
    except StorageError as error:
        raise ImageError(str(error)) from error
