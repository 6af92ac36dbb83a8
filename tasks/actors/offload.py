"""Give the CPU work of a shard to helpers on other nodes, while the model works here. It does not know Ray.

Work that no helper does, because there are none any more, is done here, as where there never were any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Protocol

from stable_sam.errors import StableSamError
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import Job, finish_job
from stable_sam.refining.shard_job import by_image, image_job
from stable_sam.refining.steps import InferredImage
from stable_sam.runs.commits import CommitRecord, write_part
from stable_sam.runs.manifest import RunManifest, ShardPlan
from stable_sam.storage.parallel import ahead
from stable_sam.timing import carried
from tasks.actors.child import Answer
from tasks.actors.child_process import Limits
from tasks.actors.helper_work import HelperWork

Masks = Sequence[RefinedMask]


class NoHelperError(Exception):
    """Raised when no helper did the work: there is no node for helpers, or the helpers that tried were lost."""


class Helpers(Protocol):
    """Processes on other nodes, each of which does one piece of work at a time."""

    @property
    def room(self) -> int:
        """Return how many images the helpers may have at a time; 0 when there are no helpers."""
        ...

    def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
        """Call a method of `work` in a helper, wait for it, and return its answer.

        The times of the work are added to the caller's clock. Raises `NoHelperError`.
        """
        ...


class Offload:
    """The three steps of a shard for `complete_shard`: helpers do the first and the last, the model's is done here."""

    def __init__(
        self,
        helpers: Helpers,
        manifest: RunManifest,
        *,
        input_side: int,
        limits: Limits,
        work_class: type[HelperWork] = HelperWork,
    ) -> None:
        """Take the side in pixels of the model's square input, and the limits of one image in a helper."""
        self._helpers = helpers
        light = replace(manifest, shards=(), tombstones=())
        self._work = work_class(manifest=light, input_side=input_side, limits=limits)
        self._manifest = manifest

    def fetch_jobs(
        self, manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]
    ) -> Iterator[Job | list[RefinedMask]]:
        """Yield for each image what `image_jobs` yields, but prepared by a helper, or the failed masks of the image.

        poisoned: reasons of images whose prompts become failed rows untouched, by image_id.
        """

        def prepared(of_image: tuple[Prompt, ...]) -> Job | list[RefinedMask]:
            error = poisoned.get(of_image[0].image_id)
            if error is not None or all(prompt.error is not None for prompt in of_image):
                return image_job(of_image, manifest.images_uri, error)
            try:
                job: Job | list[RefinedMask] = self._call("prepare", of_image)
            except NoHelperError:
                return image_job(of_image, manifest.images_uri)
            return job

        depth = max(1, self._helpers.room)
        return ahead(prepared, by_image(prompts), depth, threads=depth)

    def refine_jobs(
        self, infer: Callable[[Iterator[Job | list[RefinedMask]]], Iterator[Answer]]
    ) -> Callable[[Iterator[Job | list[RefinedMask]]], Iterator[Masks | Future[Masks]]]:
        """Return a function that refines jobs with the model, while helpers finish a bounded number of images.

        infer: yields the model's answer to each job.
        """

        def refine(jobs: Iterator[Job | list[RefinedMask]]) -> Iterator[Masks | Future[Masks]]:
            depth = max(1, self._helpers.room)
            pool, finish = ThreadPoolExecutor(depth), carried(self._finish)
            unfinished: deque[Future[Masks]] = deque()
            try:
                for answer in infer(jobs):
                    if isinstance(answer, list):
                        yield answer
                        continue
                    assert isinstance(answer, InferredImage), "the answer of a model"
                    if len(unfinished) == depth:
                        wait([unfinished.popleft()])
                    unfinished.append(pool.submit(finish, answer))
                    yield unfinished[-1]
            finally:
                pool.shutdown(wait=False)

        return refine

    def write_rows(
        self,
        manifest: RunManifest,
        shard: ShardPlan,
        rows: list[tuple[Prompt, RefinedMask]],
        *,
        seconds: float,
        stage_seconds: Mapping[str, float],
    ) -> tuple[CommitRecord, bool]:
        """Have a helper write and commit the rows of a shard with `write_part`, and return what it returns."""
        try:
            written: tuple[CommitRecord, bool] = self._call("write", shard, rows, seconds, stage_seconds)
        except NoHelperError:
            return write_part(manifest, shard, rows, seconds=seconds, stage_seconds=stage_seconds)
        return written

    def _finish(self, image: InferredImage) -> Masks:
        try:
            masks: Masks = self._call("finish", image)
        except NoHelperError:
            return finish_job(self._manifest.config, image)
        return masks

    def _call(self, method: str, *arguments: Any) -> Any:
        answer = self._helpers.call(self._work, method, *arguments)
        if isinstance(answer, StableSamError):
            raise answer
        return answer
