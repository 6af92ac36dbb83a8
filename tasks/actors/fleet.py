"""Keep a number of Ray actors at work: hand out work, bound the calls in flight, and replace dead actors.

Actors return errors instead of raising them. Work that keeps ending actors is told apart from work that fails.
"""

from __future__ import annotations

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
from stable_sam.errors import StableSamError
from tasks.actors.session import ray_session
from tasks.actors.shard_actor import ShardFailure, reason
from tasks.actors.sizing import ActorPlan, fits, plan_actors

_DEATHS = RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError
"""Errors of Ray that mean that the process is gone, which an image may have caused. No image causes the others."""
_LOOK_EVERY_S = 5.0
_GRACE_S = 60.0
"""Seconds that a cluster may be without room for a single actor, because a lost node may come back."""


class Work(Protocol):
    """One piece of work for the method `work` of an actor: a `ShardPlan` or an `EvaluationShare`."""

    @property
    def shard_id(self) -> str:
        """Return the name of the work in messages."""
        ...


@contextmanager
def fleet_of(
    actor_class: type, arguments: tuple[Any, ...], work: int, config: RayConfig, concurrency: int = 1
) -> Iterator[Fleet]:
    """Start or connect Ray, and give the block a fleet of actors; both end with the block.

    actor_class: a plain class made from `arguments` and the keyword `plan`, an `ActorPlan`, whose methods `load` and
    `work` return errors. work: number of pieces of work. concurrency: number of calls that an actor runs at a time.
    Raises `StableSamError` when Ray does not start, and `ConfigError` when there is no such cluster or no room in it.
    """
    with ray_session(config):
        plan = plan_actors(config, ray.cluster_resources(), work)  # type: ignore[no-untyped-call]  # Ray's are partial
        remote: Any = ray.remote(actor_class)
        remote = remote.options(
            num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, max_restarts=0, max_concurrency=concurrency
        )
        fleet = Fleet(lambda: remote.remote(*arguments, plan=plan), plan, config)
        try:
            yield fleet
        finally:
            fleet.stop()


def pickled(function: Callable[..., Any]) -> bytes:
    """Pickle a function as Ray does, by value where other processes cannot import it."""
    data: bytes = cloudpickle.dumps(function)  # type: ignore[no-untyped-call]
    return data


class Fleet:
    """A fixed number of actors, each with a bounded number of calls in flight; dead actors are replaced."""

    def __init__(self, start: Callable[[], Any], plan: ActorPlan, config: RayConfig) -> None:
        self._start = start
        self._plan = plan
        self._config = config
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        self._homeless_since: float | None = None

    def run(self, shards: Sequence[Work]) -> Iterator[tuple[Any, Any]]:
        """Have every shard worked on, and yield each shard with its outcome, in the order in which they finish.

        The outcome is what the actor returned, a `ShardFailure` for a shard that failed at every try, or None for a
        shard whose actor died at every try. Raises the `StableSamError` that an actor returns, and one when actors die
        while they start or find no room.
        """
        queue: deque[Work] = deque(shards)
        retries: Counter[str] = Counter()
        while queue or self._busy:
            self._fill(queue)
            actor, call = self._next_call()
            if actor.calls[call] is None:
                self._finish_start(actor, call)
                continue
            shard, answer, handed_back = self._finish(actor, call)
            queue.extendleft(reversed(handed_back))
            failed = answer is None or isinstance(answer, ShardFailure)
            retries[shard.shard_id] += failed
            if failed and retries[shard.shard_id] <= self._config.max_retries:
                queue.append(shard)
            else:
                yield shard, answer

    @contextmanager
    def sole_actor(self) -> Iterator[SoleActor]:
        """End all actors, and give the block a single one."""
        self.stop()
        actor = SoleActor(self._start)
        try:
            yield actor
        finally:
            actor.stop()

    def stop(self) -> None:
        """End all actors, which gives their resources back."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors = []

    @property
    def _busy(self) -> bool:
        return any(actor.loaded and actor.calls for actor in self._actors)

    def _fill(self, queue: deque[Work]) -> None:
        """Start the actors that are missing, and hand out shards evenly until every loaded actor has enough of them.

        No actor gets a second shard while actors that are still loading would have none left.
        """
        for _ in range(min(self._plan.actors - len(self._actors), len(queue))):
            self._actors.append(_Actor(self._start()))
        loaded = [actor for actor in self._actors if actor.loaded]
        for depth in range(1, self._config.in_flight_per_actor + 1):
            kept = 0 if depth == 1 else len(self._actors) - len(loaded)
            for actor in loaded:
                if len(queue) > kept and len(actor.calls) < depth:
                    actor.submit(queue.popleft())

    def _next_call(self) -> tuple[_Actor, Any]:
        """Wait until a call of any actor is finished."""
        calls = {call: actor for actor in self._actors for call in actor.calls}
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=_LOOK_EVERY_S)
            self._check_room()
        return calls[ready[0]], ready[0]

    def _finish_start(self, actor: _Actor, call: Any) -> None:
        try:
            _loaded(call)
        except RayError as error:
            self._bury(actor)
            self._failed_starts += 1
            if self._failed_starts > self._config.max_retries + self._plan.actors:
                raise _does_not_start(error) from error
        else:
            del actor.calls[call]
            actor.loaded, self._failed_starts = True, 0

    def _finish(self, actor: _Actor, call: Any) -> tuple[Work, Any, list[Work]]:
        """Return a shard, its answer, and the other shards of an actor that is gone.

        The oldest shard of a dead actor is suspected of its death, because the actor worked on it the longest.
        """
        shard = actor.calls[call]
        assert shard is not None, "a call of `work`"
        answer = _answer(call, shard)
        if answer is None:
            suspect, *others = self._bury(actor)
            return suspect, None, others
        del actor.calls[call]
        return shard, answer, self._bury(actor) if _is_lost(answer) else []

    def _check_room(self) -> None:
        """Raise `StableSamError` when no actor is loaded and no node has had room for one for too long."""
        cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's annotations are partial
        if any(actor.loaded for actor in self._actors) or fits(self._plan, cluster):
            self._homeless_since = None
            return
        now = time.monotonic()
        self._homeless_since = self._homeless_since or now
        patience = max(_GRACE_S, self._config.wait_for_nodes_s)
        if now - self._homeless_since > patience:
            asked = f"num_cpus {self._plan.num_cpus:g} and num_gpus {self._plan.num_gpus:g}"
            raise StableSamError(f"no node of the Ray cluster had room for an actor with {asked} for {patience:g} s")

    def _bury(self, lost: _Actor) -> list[Work]:
        """Remove an actor; returns the shards that it had, oldest first."""
        ray.kill(lost.handle)
        self._actors.remove(lost)
        return [shard for shard in lost.calls.values() if shard is not None]


class SoleActor:
    """A single actor whose methods are called one at a time, and which is replaced when it dies."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._handle: Any = None

    def call(self, method: str, shard: Work, *arguments: Any) -> Any:
        """Return what `method` returns for the shard, or None when the process died.

        Another error of Ray is returned as a `ShardFailure`. Raises the `StableSamError` that the actor returns, and
        one when the actor dies while it loads.
        """
        if self._handle is None:
            self._handle = self._start()
            try:
                _loaded(self._handle.load.remote())
            except RayError as error:
                raise _does_not_start(error) from error
        answer = _answer(getattr(self._handle, method).remote(shard, *arguments), shard)
        if answer is None or _is_lost(answer):
            self.stop()
        return answer

    def stop(self) -> None:
        """End the actor."""
        if self._handle is not None:
            ray.kill(self._handle)
            self._handle = None


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    calls: dict[Any, Work | None] = field(init=False)
    """Calls in flight, oldest first, with the work of each; None for the call that loads the model."""
    loaded: bool = False
    """Whether the model is loaded. Only then does the actor get shards: while it waits for room, it would keep them."""

    def __post_init__(self) -> None:
        self.calls = {self.handle.load.remote(): None}

    def submit(self, shard: Work) -> None:
        self.calls[self.handle.work.remote(shard)] = shard


def _loaded(call: Any) -> None:
    answer = ray.get(call)
    if isinstance(answer, StableSamError):
        raise answer


def _does_not_start(error: RayError) -> StableSamError:
    return StableSamError(f"Ray actors die while they start: {reason(error)}")


def _answer(call: Any, shard: Work) -> Any:
    """What the actor returned, or None when its process is gone; raises the `StableSamError` that it returned."""
    try:
        answer = ray.get(call)
    except _DEATHS:
        return None
    except RayError as error:
        return ShardFailure(shard_id=shard.shard_id, error=reason(error), actor_is_lost=True)
    if isinstance(answer, StableSamError):
        raise answer
    return answer


def _is_lost(answer: Any) -> bool:
    return isinstance(answer, ShardFailure) and answer.actor_is_lost
