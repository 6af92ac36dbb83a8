"""The actor that refines shards: a plain class, which `tasks.actors.fleet` makes remote."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError, CredentialsError, StableSamError, StorageError, WeightsError, one_line
from stable_sam.records import ShardReport
from stable_sam.refining.shard_job import check_model, complete_shard, image_jobs
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_manifest, read_shard
from stable_sam.runs.trace import write_spans
from stable_sam.timing import SPANS_OF_A_SHARD, StageClock
from tasks.actors.child import ChildSettings
from tasks.actors.child_process import Limits, RefinerProcess
from tasks.actors.helper_work import HelperWork
from tasks.actors.offload import Helpers, Offload
from tasks.actors.sizing import ActorPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """The outcome of a shard that could not be finished; the run tries it again when it is started again."""

    shard_id: str
    error: str
    """What went wrong, in one line."""
    actor_is_lost: bool = False
    """Whether the actor lives but would fail every shard, as after a lost GPU. It is replaced."""


class ShardActor:
    """Refines shards of one run, with the model in a child process, which an image may kill.

    Several threads may call `work`. While the child refines one shard, the images of the next shard are fetched and the
    rows of the previous one are written here. Where the cluster has nodes without a GPU, helpers there do most of this
    work (`tasks.actors.offload`).

    The methods return errors instead of raising them, so an exception at the caller means that the process is gone or
    that Ray itself failed.
    """

    helper_work: ClassVar[type[HelperWork]] = HelperWork

    def __init__(self, manifest_uri: str, device: str, load: bytes, ray_config: RayConfig, plan: ActorPlan) -> None:
        """Take the run and the device of its model.

        load: a pickled `tasks.actors.child.LoadRefiner`.
        """
        self._manifest_uri = manifest_uri
        self._device = device
        self._load = load
        self._ray_config = ray_config
        self._limits = Limits(seconds=ray_config.image_timeout_s, memory_mb=ray_config.image_memory_mb)
        self._plan = plan
        self._turn = threading.Lock()

    def load(self) -> StableSamError | bool:
        """Read the manifest and load the model; returns True, or the error that every shard would meet."""
        try:
            with self._turn:
                check_model(self._process.start(), self.manifest)
        except StableSamError as error:
            return error
        except Exception as error:
            return StableSamError(f"the model cannot be loaded: {reason(error)}")
        return True

    def work(
        self, shard: ShardPlan, poisoned: Mapping[str, str] | None = None
    ) -> ShardReport | ShardFailure | StableSamError:
        """Refine and commit one shard.

        poisoned: reasons of images whose prompts become failed rows untouched, by image_id.
        """
        try:
            return self._complete(shard, poisoned)
        except (ConfigError, CredentialsError, WeightsError) as error:
            return error  # every other shard would meet this error too
        except StableSamError as error:
            return ShardFailure(shard_id=shard.shard_id, error=reason(error))
        except Exception as error:
            # Images that are wrong are failed rows by now. What is raised here is a lost GPU or similar.
            return ShardFailure(shard_id=shard.shard_id, error=reason(error), actor_is_lost=True)

    def probe(self, shard: ShardPlan, image_id: str) -> bool | ShardFailure:
        """Refine one image and write nothing; returns True when the actor survives, whatever the masks are.

        Returns a `ShardFailure` when the shard cannot be read, which says nothing about the image.
        """
        try:
            prompts = [prompt for prompt in read_shard(shard.uri) if prompt.image_id == image_id]
            with self._turn:
                for _ in self._process.refine(image_jobs(self.manifest, prompts, {})):
                    pass
        except Exception as error:
            return ShardFailure(shard_id=shard.shard_id, error=reason(error))
        return True

    def close(self) -> None:
        """End the child process; it also ends when Ray ends the actor."""
        self._process.stop()

    @cached_property
    def manifest(self) -> RunManifest:
        """Return the manifest of the run that the actor works for."""
        return read_manifest(self._manifest_uri)

    @cached_property
    def _helpers(self) -> Helpers | None:
        if self._plan.num_gpus == 0 or self._ray_config.helpers == 0:
            return None
        from tasks.actors.helpers import CpuHelpers  # imported here because this class works without Ray

        return CpuHelpers(self._ray_config, self._plan)

    def _complete(self, shard: ShardPlan, poisoned: Mapping[str, str] | None) -> ShardReport:
        clock = StageClock(spans=SPANS_OF_A_SHARD if self._ray_config.profile else 0)
        report = self._complete_by(clock, shard, poisoned)
        if self._ray_config.profile and not report.reused:
            try:
                write_spans(self.manifest, shard.shard_id, f"{platform.node()}:{os.getpid()}", clock.times())
            except StorageError as error:  # the shard is committed, and a missing profile must not make it fail
                logging.getLogger(__name__).warning("The profile has no spans of shard %s: %s", shard.shard_id, error)
        return report

    def _complete_by(self, clock: StageClock, shard: ShardPlan, poisoned: Mapping[str, str] | None) -> ShardReport:
        side = self._process.input_side
        if side is None or self._helpers is None or not self._helpers.room:
            return complete_shard(
                self.manifest, shard, self._process.refine, poisoned=poisoned, turn=self._turn, clock=clock
            )
        offload = Offload(
            self._helpers, self.manifest, input_side=side, limits=self._limits, work_class=self.helper_work
        )
        return complete_shard(
            self.manifest,
            shard,
            offload.refine_jobs(self._process.answers),
            poisoned=poisoned,
            turn=self._turn,
            fetch_jobs=offload.fetch_jobs,
            write_rows=offload.write_rows,
            clock=clock,
        )

    @cached_property
    def _process(self) -> RefinerProcess:
        config = self.manifest.config
        config = config.model_copy(update={"refiner": config.refiner.model_copy(update={"device": self._device})})
        settings = ChildSettings(
            load=self._load,
            config=config,
            threads=self._plan.threads,
            images_at_once=self._plan.images_at_once,
            keep_spans=self._ray_config.profile,
        )
        return RefinerProcess(settings, self._limits)


def reason(error: BaseException) -> str:
    """Return an error in one line, with its type when it is not a `StableSamError`."""
    return str(error) if isinstance(error, StableSamError) else f"{type(error).__name__}: {one_line(error)[:300]}"
