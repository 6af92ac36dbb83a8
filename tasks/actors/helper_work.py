"""What helpers do on nodes without a GPU, one piece of work at a time in each of their processes. Knows nothing of Ray.

Image files are decoded, and masks encoded, in a child under the same limits as the model's: an image that crashes it,
hangs in it or eats memory is tried twice and becomes failed rows with the reason, and the helper lives.
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
    """The three pieces of work of one run. Errors of stores are returned, as by `ShardActor`."""

    manifest: RunManifest
    """Its lists of shards are not needed, and travel with every piece of work."""
    input_side: int
    """Of the model's square input, in pixels."""
    limits: Limits

    def prepare(self, prompts: tuple[Prompt, ...]) -> PreparedImage | list[RefinedMask] | StableSamError:
        """Fetch, decode and downscale the image of `prompts`."""
        try:
            job = image_job(prompts, self.manifest.images_uri)
            answer = self._in_child(job)
        except StableSamError as error:
            return error
        assert not isinstance(answer, InferredImage), "there is no model here"
        return answer

    def finish(self, image: InferredImage) -> list[RefinedMask]:
        """Masks of original size and their scores, run-length encoded."""
        answer = self._in_child(image)
        assert isinstance(answer, list), "the last stage"
        return answer

    def write(
        self,
        shard: ShardPlan,
        rows: list[tuple[Prompt, RefinedMask]],
        seconds: float,
        stage_seconds: Mapping[str, float],
    ) -> tuple[CommitRecord, bool] | StableSamError:
        """See `write_part`; done again after a lost answer, it finds its own record."""
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
    """The one child of this process, for as long as it is asked for the same."""

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
