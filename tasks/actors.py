"""The Ray boundary: shards out to actors, small reports back. The only module that imports ray.

What crosses is a shard's plan (a few hundred bytes) and a report of the same size; prompts, pixels and masks never do.
Calls in flight are bounded, errors are values, a dead actor is replaced, and a shard that keeps killing actors is
searched for the images that do it, whose prompts become failed rows.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from stable_sam.config import RayConfig
from stable_sam.data.manifest import RunManifest, ShardPlan, read_manifest, read_shard
from stable_sam.errors import ConfigError, CredentialsError, StableSamError, StorageError, WeightsError, one_line
from stable_sam.records import ShardReport
from tasks.actor_plan import plan_actors

if TYPE_CHECKING:
    from stable_sam.refiner import Refiner

POISON_REASON = "refining this image ended the worker process, twice (killed, or out of memory)"
_DEATHS = RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError
"""The process is gone, which an image can have done. Every other error of Ray is no image's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """A shard that could not be finished; the same run started again takes it up."""

    shard_id: str
    error: str
    """One line."""
    actor_is_lost: bool = False
    """True when the actor lives but fails for good, as after a lost GPU; it is replaced."""


class ShardActor:
    """Refines shards of one run in a process of its own; loads the model once.

    A plain class: `run_shards` makes it an actor. Its methods return errors instead of raising them, so an exception at
    the caller means that the process is gone, or that Ray itself failed.
    """

    def __init__(self, manifest_uri: str, threads: int, device: str) -> None:
        self._manifest_uri = manifest_uri
        self._threads = threads
        self._device = device

    def load(self) -> StableSamError | bool:
        """Read the manifest and the weights; returns True, or what is wrong with them for every shard alike."""
        try:
            return self.refiner is not None
        except StableSamError as error:
            return error
        except Exception as error:
            return StableSamError(f"the model cannot be loaded: {_reason(error)}")

    def refine(self, shard: ShardPlan, poisoned: Mapping[str, str]) -> ShardReport | ShardFailure | StableSamError:
        """Refine and commit one shard; the images in `poisoned` (image id -> reason) become failed rows untouched."""
        from stable_sam.shard_job import refine_shard

        try:
            return refine_shard(self.refiner, self.manifest, shard, poisoned)
        except (ConfigError, CredentialsError, WeightsError) as error:
            return error  # every other shard would meet it too
        except StableSamError as error:
            return ShardFailure(shard_id=shard.shard_id, error=_reason(error))
        except Exception as error:
            # `refine_shard` makes rows of whatever is wrong with an image; what passes it is a lost GPU or as bad.
            return ShardFailure(shard_id=shard.shard_id, error=_reason(error), actor_is_lost=True)

    def probe(self, shard: ShardPlan, image_id: str) -> bool | ShardFailure:
        """Do the work of one image and write nothing; returns True when the process survives it, whatever came out.

        A shard that cannot be read says nothing of the image and is a `ShardFailure`.
        """
        from stable_sam.data.images import decode_image
        from stable_sam.data.storage import read_bytes

        try:
            prompts = [prompt for prompt in read_shard(shard.uri) if prompt.image_id == image_id]
        except StableSamError as error:
            return ShardFailure(shard_id=shard.shard_id, error=_reason(error))
        with contextlib.suppress(Exception):
            name = prompts[0].image_uri
            max_pixels = self.manifest.config.refiner.max_image_pixels
            image = decode_image(read_bytes(name), name=name, max_pixels=max_pixels)
            self.refiner.refine_image(image, prompts)
        return True

    @cached_property
    def manifest(self) -> RunManifest:
        """The run this actor works for."""
        return read_manifest(self._manifest_uri)

    @cached_property
    def refiner(self) -> Refiner:
        """The loaded model; raises `WeightsError` or `ConfigError`."""
        import torch

        from stable_sam.refiner import Refiner

        torch.set_num_threads(self._threads)
        config = self.manifest.config
        return Refiner(config.refiner.model_copy(update={"device": self._device}), config.routing)


def run_shards(
    manifest_uri: str,
    shards: Sequence[ShardPlan],
    settings: RayConfig,
    *,
    device: str = "auto",
    actor_class: type[ShardActor] = ShardActor,
) -> Iterator[ShardReport | ShardFailure]:
    """Have every shard refined and committed; yields one outcome for each, as they come.

    device: where the actors' model runs, as in `RefinerConfig`; the manifest's own is not used.
    Raises `StableSamError` for what would fail every shard: weights, configuration, credentials, actors that do not
    start.
    """
    if not shards:
        return
    with _ray(settings):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's annotations are partial
        plan = plan_actors(settings, resources, len(shards))
        remote = ray.remote(num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, max_restarts=0)(actor_class)

        def start() -> Any:
            return remote.remote(manifest_uri, plan.threads, device)

        deadly: list[ShardPlan] = []
        fleet = _Fleet(start, plan.actors, settings)
        try:
            yield from _run_all(fleet, shards, settings.max_retries, deadly)
        finally:
            fleet.stop()
        for shard in deadly:
            yield _refine_around_killers(start, shard)


@dataclass(frozen=True, slots=True)
class _Call:
    ref: Any
    shard: ShardPlan | None
    """None: the call that loads the model."""


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    calls: deque[_Call] = field(init=False)
    """In flight, oldest first: the order in which Ray runs them."""

    def __post_init__(self) -> None:
        self.calls = deque([_Call(self.handle.load.remote(), None)])

    @property
    def shards(self) -> int:
        return sum(call.shard is not None for call in self.calls)

    def submit(self, shard: ShardPlan) -> None:
        self.calls.append(_Call(self.handle.refine.remote(shard, {}), shard))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    shard: ShardPlan | None
    """None: the actor was loading."""
    answer: ShardReport | ShardFailure | None
    """None: the actor died, or has merely loaded its model."""
    handed_back: Sequence[ShardPlan] = ()
    """Shards that waited behind this one at an actor that is gone."""


class _Fleet:
    """A fixed number of actors, each with a bounded number of calls in flight; dead ones are replaced."""

    def __init__(self, start: Callable[[], Any], size: int, settings: RayConfig) -> None:
        self._start = start
        self._size = size
        self._depth = settings.in_flight_per_actor
        self._actors: list[_Actor] = []
        self._failed_starts_left = settings.max_retries + size

    @property
    def busy(self) -> bool:
        """Whether any shard is in flight."""
        return any(actor.shards for actor in self._actors)

    def fill(self, queue: deque[ShardPlan]) -> None:
        """Hand out shards evenly until every actor has its share or `queue` is empty; start the actors this takes."""
        for _ in range(min(self._size - len(self._actors), len(queue))):
            self._actors.append(_Actor(self._start()))
        for depth in range(1, self._depth + 1):
            for actor in self._actors:
                if queue and actor.shards < depth:
                    actor.submit(queue.popleft())

    def next_outcome(self) -> _Outcome:
        """Wait for the oldest call of any actor.

        Raises the `StableSamError` that an actor reports for all shards, or one when actors do not even start.
        """
        oldest = {actor.calls[0].ref: actor for actor in self._actors if actor.calls}
        (ready, *_), _ = ray.wait(list(oldest), num_returns=1)
        actor = oldest[ready]
        shard = actor.calls.popleft().shard
        try:
            answer = ray.get(ready)
        except RayError as error:
            failure = None
            if shard is None:
                self._count_failed_start(error)
            elif not isinstance(error, _DEATHS):
                failure = ShardFailure(shard_id=shard.shard_id, error=_reason(error), actor_is_lost=True)
            return _Outcome(shard=shard, answer=failure, handed_back=self._bury(actor))
        if isinstance(answer, StableSamError):
            raise answer
        if shard is None:
            return _Outcome(shard=None, answer=None)
        lost = isinstance(answer, ShardFailure) and answer.actor_is_lost
        return _Outcome(shard=shard, answer=answer, handed_back=self._bury(actor) if lost else ())

    def stop(self) -> None:
        """End all actors and give their resources back."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors = []

    def _count_failed_start(self, error: RayError) -> None:
        self._failed_starts_left -= 1
        if self._failed_starts_left < 0:
            raise StableSamError(f"Ray actors die while they start: {_reason(error)}")

    def _bury(self, lost: _Actor) -> list[ShardPlan]:
        """Remove the actor; returns the shards that it had not begun."""
        ray.kill(lost.handle)
        self._actors.remove(lost)
        return [call.shard for call in lost.calls if call.shard is not None]


def _run_all(
    fleet: _Fleet, shards: Sequence[ShardPlan], max_retries: int, deadly: list[ShardPlan]
) -> Iterator[ShardReport | ShardFailure]:
    """Bring every shard to an outcome but those that kill actors again and again: these are added to `deadly`."""
    queue = deque(shards)
    retries: Counter[str] = Counter()
    while queue or fleet.busy:
        fleet.fill(queue)
        outcome = fleet.next_outcome()
        queue.extendleft(reversed(outcome.handed_back))
        shard, answer = outcome.shard, outcome.answer
        if shard is None:
            continue
        if isinstance(answer, ShardReport):
            yield answer
            continue
        retries[shard.shard_id] += 1
        if retries[shard.shard_id] <= max_retries:
            queue.append(shard)
        elif answer is None:
            deadly.append(shard)
        else:
            yield answer


def _refine_around_killers(start: Callable[[], Any], shard: ShardPlan) -> ShardReport | ShardFailure:
    """Find the images that end the process by trying one after the other, then refine the shard without them.

    One by one costs each image one more pass and one new actor for each death; halving would cost new actors, which are
    dearer. An image is condemned by two deaths, since one may be the machine's fault. Where the search itself fails, no
    image is condemned and the shard waits for the next run.
    """
    poisoned: dict[str, str] = {}
    actor = None
    try:
        images = sorted({prompt.image_id for prompt in read_shard(shard.uri)})
    except StorageError as error:
        return ShardFailure(shard_id=shard.shard_id, error=_reason(error))
    for image_id in images:
        for _attempt in range(2):
            actor = actor or _started(start)
            survived = _answer(actor.probe.remote(shard, image_id), shard)
            if isinstance(survived, ShardFailure):
                ray.kill(actor)
                return survived
            if survived:
                break
            ray.kill(actor)
            actor = None
        else:
            poisoned[image_id] = POISON_REASON
    actor = actor or _started(start)
    try:
        answer: ShardReport | ShardFailure | None = _answer(actor.refine.remote(shard, poisoned), shard)
    finally:
        ray.kill(actor)
    if answer is None:
        reason = "ends its actor, though none of its other images does alone; try a smaller shard_images"
        return ShardFailure(shard_id=shard.shard_id, error=reason)
    return answer


def _started(start: Callable[[], Any]) -> Any:
    """A new actor that has loaded its model, so that a later death is the image's doing."""
    actor = start()
    try:
        answer = ray.get(actor.load.remote())
    except RayError as error:
        raise StableSamError(f"Ray actors die while they start: {_reason(error)}") from error
    if isinstance(answer, StableSamError):
        raise answer
    return actor


def _answer(ref: Any, shard: ShardPlan) -> Any:
    """What the call returned, or None when the process died; raises the `StableSamError` that it returned."""
    try:
        answer = ray.get(ref)
    except _DEATHS:
        return None
    except RayError as error:
        return ShardFailure(shard_id=shard.shard_id, error=_reason(error), actor_is_lost=True)
    if isinstance(answer, StableSamError):
        raise answer
    return answer


@contextmanager
def _ray(settings: RayConfig) -> Iterator[None]:
    """Ray for the time of a run: one that already runs in this process, a cluster, or a local one on loopback only."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Under `uv run` the workers would otherwise build the environment again.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if settings.address is not None:
        try:
            ray.init(address=settings.address, **quiet)
        except (ConnectionError, ValueError, RayError) as error:
            raise ConfigError(f"ray.address: no Ray cluster at {settings.address}: {_reason(error)}") from None
    else:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a node that listens on loopback only
        try:
            ray.init(include_dashboard=False, object_store_memory=settings.object_store_mb * 2**20, **quiet)
        except Exception as error:  # a plain Exception is what Ray raises when its processes take more than 30 s
            ray.shutdown()
            raise StableSamError(f"Ray does not start on this machine (too busy?): {_reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, StableSamError) else f"{type(error).__name__}: {one_line(error)[:300]}"
