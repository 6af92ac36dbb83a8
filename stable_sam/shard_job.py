"""One shard from its file to its committed rows: what an actor does, and a notebook can do too.

shard file --fetch ahead--> ImageJob --refine_job, here or in another process--> masks --write_part--> commit record
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice

from stable_sam.data.commits import commit_of, write_part
from stable_sam.data.manifest import RunManifest, ShardPlan, read_shard
from stable_sam.data.storage import exists, read_bytes
from stable_sam.errors import ImageError, NotFoundError, StorageError, WeightsError
from stable_sam.identity import ModelIdentity
from stable_sam.image_job import ImageJob, ImageRefiner, refine_job
from stable_sam.records import Prompt, RefinedMask, ShardReport

FETCHED_AHEAD = 4
"""Image files read before they are asked for: hides the store's round trips, and bounds the memory they take."""
MAX_IMAGE_BYTES = 512 * 2**20
"""Of an image file, which is held as a whole: above an uncompressed picture of 100 megapixels in four channels."""
RefineJobs = Callable[[Iterator[ImageJob]], Iterator[Sequence[RefinedMask]]]
"""For each job the masks of its prompts, in order."""


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
) -> ShardReport:
    """Read a shard and its images, have them refined and commit the rows; a committed shard is only reported.

    Whatever is wrong with an image makes failed rows of its prompts and nothing more. `poisoned`: image_id -> reason,
    for images that must not be touched. turn: held while masks are made; images are fetched before, rows written after.
    Raises `StorageError` when a store cannot be reached, and what `refine_jobs` raises: none of these is an image's
    fault, and another try may succeed.
    """
    record, ours, seconds = commit_of(manifest, shard.shard_id), False, 0.0
    if record is None:
        prompts = read_shard(shard.uri)
        jobs = image_jobs(manifest, prompts, poisoned or {})
        with turn or nullcontext():
            started = time.monotonic()
            masks = [mask for of_image in refine_jobs(jobs) for mask in of_image]
            seconds = time.monotonic() - started
        record, ours = write_part(manifest, shard, list(zip(prompts, masks, strict=True)), seconds=seconds)
    return ShardReport(
        shard_id=shard.shard_id,
        rows=record.rows,
        failed=record.failed,
        images=record.images,
        seconds=seconds,
        reused=not ours,
    )


def check_model(identity: ModelIdentity, manifest: RunManifest) -> None:
    """Raise `WeightsError` unless this is the model that the run was planned for."""
    if identity != manifest.model:
        raise WeightsError(f"{manifest.uri}: planned for {manifest.model}, but the loaded model is {identity}")


def image_jobs(manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]) -> Iterator[ImageJob]:
    """The images of a shard, in order, with their files; reading begins at once and stays `FETCHED_AHEAD` images ahead.

    Raises `StorageError`, while iterating, when the images' store cannot be reached.
    """

    def fetched(of_image: tuple[Prompt, ...]) -> ImageJob:
        image_id, image_uri = of_image[0].image_id, of_image[0].image_uri
        error, data = poisoned.get(image_id), b""
        if error is None and any(prompt.error is None for prompt in of_image):
            try:
                data = _read_image(image_uri, manifest.images_uri)
            except ImageError as problem:
                error = str(problem)
        else:
            error = error or ""  # each prompt has its own
        return ImageJob(image_id=image_id, image_uri=image_uri, prompts=of_image, data=data, error=error)

    groups = groupby(prompts, key=lambda prompt: (prompt.image_uri, prompt.image_id))
    return _ahead(fetched, (tuple(group) for _, group in groups), FETCHED_AHEAD)


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


def _ahead(
    function: Callable[[tuple[Prompt, ...]], ImageJob], items: Iterable[tuple[Prompt, ...]], depth: int
) -> Iterator[ImageJob]:
    """`map` whose next `depth` results are being made in threads, from this call on."""
    pool, rest = ThreadPoolExecutor(depth), iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(rest, depth))

    def results() -> Iterator[ImageJob]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return results()
