"""The work of helpers on nodes without a GPU, one piece at a time in each process. It does not know Ray.

Helpers decode images and encode masks in a child process under the limits of the model's child. An image that crashes
the child, hangs in it or uses up its memory is tried twice, and its prompts become failed rows with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stable_sam.errors import StableSamError
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import ImageJob
from stable_sam.refining.shard_job import image_job
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.runs.commits import CommitRecord, write_part
from stable_sam.runs.manifest import RunManifest, ShardPlan
from stable_sam.timing import keeps_spans
from tasks.actors.child import Answer, ChildSettings
from tasks.actors.child_process import Limits, RefinerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperWork:
    """The three kinds of work that helpers do for one run. Errors of stores are returned, as by `ShardActor`."""

    manifest: RunManifest
    """Manifest of the run. It may leave out its lists of shards, because it travels with every piece of work."""
    input_side: int
    """Side in pixels of the model's square input."""
    limits: Limits
    """Limits of one image."""

    def prepare(self, prompts: tuple[Prompt, ...]) -> PreparedImage | list[RefinedMask] | StableSamError:
        """Fetch, decode and resize the image of `prompts`; returns failed masks when the image is wrong."""
        try:
            job = image_job(prompts, self.manifest.images_uri)
            answer = self._in_child(job)
        except StableSamError as error:
            return error
        assert not isinstance(answer, InferredImage), "there is no model here"
        return answer

    def finish(self, image: InferredImage) -> list[RefinedMask]:
        """Make the masks of original size, run-length encoded, and their scores."""
        answer = self._in_child(image)
        assert isinstance(answer, list), "the last step"
        return answer

    def write(
        self,
        shard: ShardPlan,
        rows: list[tuple[Prompt, RefinedMask]],
        seconds: float,
        stage_seconds: Mapping[str, float],
    ) -> tuple[CommitRecord, bool] | StableSamError:
        """Write and commit the rows of a shard with `write_part`, which may be repeated when its answer was lost."""
        try:
            return write_part(self.manifest, shard, rows, seconds=seconds, stage_seconds=stage_seconds)
        except StableSamError as error:
            return error

    def _in_child(self, job: ImageJob | InferredImage) -> Answer:
        settings = ChildSettings(
            load=self.input_side, config=self.manifest.config, threads=1, images_at_once=1, keep_spans=keeps_spans()
        )
        (answer,) = _children.of(settings, self.limits).answers(iter([job]))
        return answer


class _Children:
    """The child of this process, which is replaced when another one is asked for."""

    def __init__(self) -> None:
        self._made_for: tuple[ChildSettings, Limits] | None = None
        self._child: RefinerProcess | None = None

    def of(self, settings: ChildSettings, limits: Limits) -> RefinerProcess:
        if self._child is None or self._made_for != (settings, limits):
            if self._child is not None:
                self._child.stop()
            self._made_for, self._child = (settings, limits), RefinerProcess(settings, limits)
        return self._child


_children = _Children()
