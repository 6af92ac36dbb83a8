"""The Ray boundary: work out to actors, small answers back. The only module that imports ray.

What crosses is a shard's plan (a few hundred bytes) and a report of the same size; prompts, pixels and masks never do.
An evaluation's share takes its pictures' true masks along, run-length encoded, and its records back.

Calls in flight are bounded, errors are values, and a dead actor is replaced. An image that ends the process of the
model costs no actor (`tasks.refiner_process`); a shard that keeps ending whole actors or nodes is searched for the
images that do it, whose prompts become failed rows.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from stable_sam.config import RayConfig
from stable_sam.data.manifest import ShardPlan, read_shard
from stable_sam.errors import ConfigError, StableSamError, StorageError
from stable_sam.evaluation.settings import EvaluationConfig
from stable_sam.records import ShardReport
from tasks.actor_plan import ActorPlan, fits, plan_actors
from tasks.evaluation_actor import EvaluationActor, EvaluationShare, ScoredShare
from tasks.refiner_child import LoadRefiner, load_refiner
from tasks.shard_actor import ShardActor, ShardFailure, reason

POISON_REASON = "refining this image ended its actor, 2 times (killed, or its node out of memory)"
_DEATHS = RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError
"""The process is gone, which an image can have done. Every other error of Ray is no image's fault."""
_LOOK_EVERY_S = 5.0
_GRACE_S = 60.0
"""How long a cluster may be without room for a single actor: a lost node may come back."""


def run_shards(
    manifest_uri: str,
    shards: Sequence[ShardPlan],
    settings: RayConfig,
    *,
    device: str = "auto",
    load: LoadRefiner = load_refiner,
    actor_class: type[ShardActor] = ShardActor,
) -> Iterator[ShardReport | ShardFailure]:
    """Have every shard refined and committed; yields one outcome for each, as they come.

    device: where the actors' model runs, as in `RefinerConfig`; the manifest's own is not used. load: makes that model.
    Raises `StableSamError` for what would fail every shard: weights, configuration, credentials, actors that do not
    start.
    """
    if not shards:
        return
    arguments = (manifest_uri, device, cloudpickle.dumps(load), settings)  # type: ignore[no-untyped-call]
    # Calls run side by side: one shard is refined, another is fetched or written.
    with _fleet(actor_class, arguments, len(shards), settings, concurrency=settings.in_flight_per_actor) as started:
        fleet, start = started
        deadly: list[ShardPlan] = []
        yield from _run_all(fleet, shards, settings.max_retries, deadly)
        fleet.stop()  # the search for killers needs their places
        for shard in deadly:
            yield _refine_around_killers(start, shard)


def score_shares(
    evaluation: EvaluationConfig,
    shares: Sequence[EvaluationShare],
    settings: RayConfig,
    *,
    actor_class: type[EvaluationActor] = EvaluationActor,
) -> Iterator[ScoredShare]:
    """Have the pictures of every share scored; yields the shares as they come, each once.

    Raises `StableSamError` when one of them cannot be: figures of a part of the pictures would be other figures.
    """
    with _fleet(actor_class, (evaluation,), len(shares), settings) as (fleet, _):
        deadly: list[EvaluationShare] = []
        for outcome in _run_all(fleet, shares, settings.max_retries, deadly):
            if isinstance(outcome, ShardFailure):
                raise StableSamError(f"{outcome.shard_id}: cannot be evaluated: {outcome.error}")
            yield outcome
        if deadly:
            raise StableSamError(
                f"{deadly[0].shard_id}: a picture there ends the process that evaluates it, every time"
            )


@contextmanager
def _fleet(
    actor_class: type, arguments: tuple[Any, ...], work: int, settings: RayConfig, concurrency: int = 1
) -> Iterator[tuple[_Fleet, Callable[[], Any]]]:
    """Ray, actors of `actor_class` made of `arguments` and the plan, and what starts one more."""
    with _ray(settings):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's annotations are partial
        plan = plan_actors(settings, resources, work)
        remote: Any = ray.remote(actor_class)
        remote = remote.options(
            num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, max_restarts=0, max_concurrency=concurrency
        )

        def start() -> Any:
            return remote.remote(*arguments, plan=plan)

        fleet = _Fleet(start, plan, settings)
        try:
            yield fleet, start
        finally:
            fleet.stop()


class _Work(Protocol):
    """A `ShardPlan` or an `EvaluationShare`."""

    @property
    def shard_id(self) -> str: ...


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    calls: dict[Any, _Work | None] = field(init=False)
    """In flight, oldest first: what was called for, None for the call that loads the model."""
    loaded: bool = False
    """Only then it gets shards: one that waits for a place in the cluster would keep them."""

    def __post_init__(self) -> None:
        self.calls = {self.handle.load.remote(): None}

    def submit(self, shard: _Work) -> None:
        self.calls[self.handle.work.remote(shard)] = shard


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    shard: _Work | None
    """None: the actor was loading."""
    answer: Any
    """A `ShardFailure`, or what the actor made of the shard. None: it died, or has merely loaded its model."""
    handed_back: Sequence[_Work] = ()
    """Shards that came after this one at an actor that is gone."""


class _Fleet:
    """A fixed number of actors, each with a bounded number of calls in flight; dead ones are replaced."""

    def __init__(self, start: Callable[[], Any], plan: ActorPlan, settings: RayConfig) -> None:
        self._start = start
        self._plan = plan
        self._settings = settings
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        self._homeless_since: float | None = None

    @property
    def busy(self) -> bool:
        """Whether any shard is in flight."""
        return any(actor.loaded and actor.calls for actor in self._actors)

    def fill(self, queue: deque[_Work]) -> None:
        """Hand out shards evenly until every loaded actor has its share; start the actors that this takes.

        A second shard is not handed out while actors that are still loading would then have none.
        """
        for _ in range(min(self._plan.actors - len(self._actors), len(queue))):
            self._actors.append(_Actor(self._start()))
        loaded = [actor for actor in self._actors if actor.loaded]
        for depth in range(1, self._settings.in_flight_per_actor + 1):
            kept = 0 if depth == 1 else len(self._actors) - len(loaded)
            for actor in loaded:
                if len(queue) > kept and len(actor.calls) < depth:
                    actor.submit(queue.popleft())

    def next_outcome(self) -> _Outcome:
        """Wait for a call of any actor.

        Raises the `StableSamError` that an actor reports for all shards, or one when actors do not even start.
        """
        calls = {ref: actor for actor in self._actors for ref in actor.calls}
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=_LOOK_EVERY_S)
            self._check_room()
        actor = calls[ready[0]]
        shard = actor.calls[ready[0]]
        try:
            answer = ray.get(ready[0])
        except RayError as error:
            if shard is None:
                self._count_failed_start(error)
            elif not isinstance(error, _DEATHS):
                failure = ShardFailure(shard_id=shard.shard_id, error=reason(error), actor_is_lost=True)
                del actor.calls[ready[0]]
                return _Outcome(shard=shard, answer=failure, handed_back=self._bury(actor))
            lost, *others = self._bury(actor) or [None]
            return _Outcome(shard=lost, answer=None, handed_back=others)
        del actor.calls[ready[0]]
        if isinstance(answer, StableSamError):
            raise answer
        if shard is None:
            actor.loaded, self._failed_starts = True, 0
            return _Outcome(shard=None, answer=None)
        lost = isinstance(answer, ShardFailure) and answer.actor_is_lost
        return _Outcome(shard=shard, answer=answer, handed_back=self._bury(actor) if lost else ())

    def stop(self) -> None:
        """End all actors and give their resources back."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors = []

    def _check_room(self) -> None:
        """Raise `StableSamError` when no actor lives and for too long no node had room for one."""
        cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's annotations are partial
        if any(actor.loaded for actor in self._actors) or fits(self._plan, cluster):
            self._homeless_since = None
            return
        now = time.monotonic()
        self._homeless_since = self._homeless_since or now
        patience = max(_GRACE_S, self._settings.wait_for_nodes_s)
        if now - self._homeless_since > patience:
            asked = f"{self._plan.num_cpus:g} cores and {self._plan.num_gpus:g} GPUs"
            raise StableSamError(f"no node of the Ray cluster had room for an actor of {asked} for {patience:g} s")

    def _count_failed_start(self, error: RayError) -> None:
        self._failed_starts += 1
        if self._failed_starts > self._settings.max_retries + self._plan.actors:
            raise StableSamError(f"Ray actors die while they start: {reason(error)}")

    def _bury(self, lost: _Actor) -> list[Any]:
        """Remove the actor; returns the shards that it had, oldest first."""
        ray.kill(lost.handle)
        self._actors.remove(lost)
        return [shard for shard in lost.calls.values() if shard is not None]


def _run_all(fleet: _Fleet, shards: Sequence[_Work], max_retries: int, deadly: list[Any]) -> Iterator[Any]:
    """Bring every shard to an outcome but those that kill actors again and again: these are added to `deadly`."""
    queue: deque[_Work] = deque(shards)
    retries: Counter[str] = Counter()
    while queue or fleet.busy:
        fleet.fill(queue)
        outcome = fleet.next_outcome()
        queue.extendleft(reversed(outcome.handed_back))
        shard, answer = outcome.shard, outcome.answer
        if shard is None:
            continue
        if answer is not None and not isinstance(answer, ShardFailure):
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
    """Find the images that end their actor by trying one after the other, then refine the shard without them.

    This is for what takes the actor or its node along, as a node without memory does. One by one costs each image one
    more pass and one new actor for each death; halving would cost new actors, which are dearer. An image is condemned
    by two deaths, since one may be the machine's fault. Where the search itself fails, no image is condemned and the
    shard waits for the next run.
    """
    poisoned: dict[str, str] = {}
    actor = None
    try:
        images = sorted({prompt.image_id for prompt in read_shard(shard.uri)})
    except StorageError as error:
        return ShardFailure(shard_id=shard.shard_id, error=reason(error))
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
        answer: ShardReport | ShardFailure | None = _answer(actor.work.remote(shard, poisoned), shard)
    finally:
        ray.kill(actor)
    if answer is None:
        problem = "ends its actor, though none of its other images does alone; try a smaller shard_images"
        return ShardFailure(shard_id=shard.shard_id, error=problem)
    return answer


def _started(start: Callable[[], Any]) -> Any:
    """A new actor that has loaded its model, so that a later death is the image's doing."""
    actor = start()
    try:
        answer = ray.get(actor.load.remote())
    except RayError as error:
        raise StableSamError(f"Ray actors die while they start: {reason(error)}") from error
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
        return ShardFailure(shard_id=shard.shard_id, error=reason(error), actor_is_lost=True)
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
            raise ConfigError(f"ray.address: no Ray cluster at {settings.address}: {reason(error)}") from None
    else:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a node that listens on loopback only
        try:
            ray.init(include_dashboard=False, object_store_memory=settings.object_store_mb * 2**20, **quiet)
        except Exception as error:  # a plain Exception is what Ray raises when its processes take more than 30 s
            ray.shutdown()
            raise StableSamError(f"Ray does not start on this machine (too busy?): {reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
