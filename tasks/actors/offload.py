"""A shard's CPU work done by helpers elsewhere, overlapped with the model's work here. Knows nothing of Ray.

Whatever the helpers do not do, because there are none any more, is done here, as it is where there never were any.
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
    """Nobody did it: there is no node for helpers, or those that tried were lost."""


class Helpers(Protocol):
    """Processes elsewhere that do one piece of work each."""

    @property
    def room(self) -> int:
        """Images that may be in their hands at a time; 0 when there are none."""
        ...

    def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
        """What the method of `work` returns there; waits for it, and puts what it took on the caller's clock.

        Raises `NoHelperError`.
        """
        ...


class Offload:
    """The stages of a shard for `complete_shard`: the first and the last by helpers, the model's here."""

    def __init__(
        self,
        helpers: Helpers,
        manifest: RunManifest,
        *,
        input_side: int,
        limits: Limits,
        work_class: type[HelperWork] = HelperWork,
    ) -> None:
        """`limits`: of an image, at a helper as in the model's process."""
        self._helpers = helpers
        light = replace(manifest, shards=(), tombstones=())
        self._work = work_class(manifest=light, input_side=input_side, limits=limits)
        self._manifest = manifest

    def fetch_jobs(
        self, manifest: RunManifest, prompts: Sequence[Prompt], poisoned: Mapping[str, str]
    ) -> Iterator[Job | list[RefinedMask]]:
        """As `image_jobs`, but the images come prepared, or as failed masks."""

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
        """`infer` is the model's; a bounded number of images is being finished while it works on."""

        def refine(jobs: Iterator[Job | list[RefinedMask]]) -> Iterator[Masks | Future[Masks]]:
            depth = max(1, self._helpers.room)
            pool, finish = ThreadPoolExecutor(depth), carried(self._finish)
            unfinished: deque[Future[Masks]] = deque()
            try:
                for answer in infer(jobs):
                    if isinstance(answer, list):
                        yield answer
                        continue
                    assert isinstance(answer, InferredImage), "what comes from a model"
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
        """As `write_part`."""
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
