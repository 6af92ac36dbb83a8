"""Refining of one shard, from its file to its committed rows, in an actor or in a notebook.

    shard file --image_jobs--> ImageJob --refine_job--> masks --write_part--> commit record

Each of these three functions can be replaced by an argument of `complete_shard`, to do the work in another process.
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
from stable_sam.images.decode import MAX_IMAGE_BYTES
from stable_sam.records import Prompt, RefinedMask, ShardReport
from stable_sam.refining.image_job import ImageJob, ImageRefiner, refine_job
from stable_sam.runs.commits import CommitRecord, commit_of, write_part
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_shard
from stable_sam.runs.truth import read_stored_truth, with_true_iou
from stable_sam.storage.files import exists, read_bytes
from stable_sam.storage.parallel import ahead
from stable_sam.timing import StageClock, timed

FETCHED_AHEAD = 4
"""Number of image files that are read ahead: it hides the store's round trips and bounds the memory of the files."""
Masks = Sequence[RefinedMask]
FetchJobs = Callable[[RunManifest, Sequence[Prompt], Mapping[str, str]], Iterator[Any]]
"""A function like `image_jobs`, which yields a job for each image of a shard, in order."""
RefineJobs = Callable[[Iterator[Any]], Iterator[Masks | Future[Masks]]]
"""A function that yields for each job the masks of its prompts, in order, or a future of them when they are finished
after the model has answered."""
WriteRows = Callable[..., tuple[CommitRecord, bool]]
"""A function like `write_part`, which writes and commits the rows of a shard."""


def refine_shard(refiner: ImageRefiner, manifest: RunManifest, shard: ShardPlan) -> ShardReport:
    """Refine and commit the prompts of one shard in this process, as `complete_shard` does.

    Raises `StorageError` when a store cannot be reached, `WeightsError` when the refiner is not the planned model, and
    the GPU's own error when the GPU is lost.
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
    """Read a shard and its images, refine them and commit the rows; a shard that is committed already is only reported.

    An image that cannot be refined makes failed rows of its prompts. poisoned: image_id -> reason, for images that must
    not be touched. turn: held while masks are made; images are read ahead before it is taken, and rows are written
    after it is released. fetch_jobs, write_rows: used instead of `image_jobs` and `write_part`. clock: a clock of the
    caller's, who can read more from it than the report holds. Raises `StorageError` when a store cannot be reached, and
    whatever `refine_jobs` raises; none of these errors is due to an image, and another try may succeed.
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
                masks = with_true_iou(prompts, masks, read_stored_truth(shard))
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
    """Raise `WeightsError` unless `identity` is the model that the run was planned for."""
    if identity != manifest.model:
        raise WeightsError(
            f"{manifest.uri}: planned for {manifest.model}, but the loaded model is {identity}; every node needs the "
            "same files of base and plugin"
        )


def image_jobs(manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]) -> Iterator[ImageJob]:
    """Yield the images of a shard with their files, in order.

    Reading begins at the call and stays `FETCHED_AHEAD` images ahead. poisoned: image_id -> reason, for images that
    must not be read. Raises `StorageError`, while iterating, when the images' store cannot be reached.
    """

    def fetched(of_image: tuple[Prompt, ...]) -> ImageJob:
        return image_job(of_image, manifest.images_uri, poisoned.get(of_image[0].image_id))

    return ahead(fetched, by_image(prompts), FETCHED_AHEAD)


def by_image(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, ...]]:
    """Yield the prompts of each image of a shard, in order."""
    for _, group in groupby(prompts, key=lambda prompt: (prompt.image_uri, prompt.image_id)):
        yield tuple(group)


def image_job(prompts: tuple[Prompt, ...], images_uri: str, error: str | None = None) -> ImageJob:
    """Make the job of one image; its file is not read when there is an `error` or no usable prompt.

    prompts: those of the image, at least one. Raises `StorageError` when the images' store cannot be reached.
    """
    image_id, image_uri, data = prompts[0].image_id, prompts[0].image_uri, b""
    if error is None and any(prompt.error is None for prompt in prompts):
        try:
            with timed("fetch", image_uri):
                data = _read_image(image_uri, images_uri)
        except ImageError as problem:
            error = str(problem)
    else:
        error = error or ""  # without an error of the image, each prompt has its own
    return ImageJob(image_id=image_id, image_uri=image_uri, prompts=prompts, data=data, error=error)


def _settled(of_image: Masks | Future[Masks]) -> Masks:
    return of_image.result() if isinstance(of_image, Future) else of_image


def _read_image(image_uri: str, images_uri: str) -> bytes:
    """Read an image file; raises `ImageError` when only this file cannot be read, `StorageError` when its store
    cannot."""
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
