"""The Ray boundary: a number of actors that are kept at work. Ray is imported here, and by what stands around this.

Calls in flight are bounded, errors are values, and a dead actor is replaced; work that keeps ending actors is told
apart from work that fails.
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
"""The process is gone, which an image can have done. Every other error of Ray is no image's fault."""
_LOOK_EVERY_S = 5.0
_GRACE_S = 60.0
"""How long a cluster may be without room for a single actor: a lost node may come back."""


class Work(Protocol):
    """What an actor's `work` takes: a `ShardPlan` or an `EvaluationShare`."""

    @property
    def shard_id(self) -> str:
        """What it is called in messages."""
        ...


@contextmanager
def fleet_of(
    actor_class: type, arguments: tuple[Any, ...], work: int, settings: RayConfig, concurrency: int = 1
) -> Iterator[Fleet]:
    """Ray, and actors of `actor_class` for so many pieces of work; all of it ends with the block.

    The class is made of `arguments` and `plan`, an `ActorPlan`; its methods `load` and `work` return errors.
    concurrency: calls that an actor runs at a time. Raises `StableSamError` when Ray does not start, `ConfigError` when
    there is no such cluster or no room in it.
    """
    with ray_session(settings):
        plan = plan_actors(settings, ray.cluster_resources(), work)  # type: ignore[no-untyped-call]  # Ray's are partial
        remote: Any = ray.remote(actor_class)
        remote = remote.options(
            num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, max_restarts=0, max_concurrency=concurrency
        )
        fleet = Fleet(lambda: remote.remote(*arguments, plan=plan), plan, settings)
        try:
            yield fleet
        finally:
            fleet.stop()


def pickled(function: Callable[..., Any]) -> bytes:
    """As Ray pickles, by value what other processes cannot import."""
    data: bytes = cloudpickle.dumps(function)  # type: ignore[no-untyped-call]
    return data


class Fleet:
    """A fixed number of actors, each with a bounded number of calls in flight; dead ones are replaced."""

    def __init__(self, start: Callable[[], Any], plan: ActorPlan, settings: RayConfig) -> None:
        self._start = start
        self._plan = plan
        self._settings = settings
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        self._homeless_since: float | None = None

    def run(self, shards: Sequence[Work]) -> Iterator[tuple[Any, Any]]:
        """Bring every shard to an end, as they come: the shard, and what its actor made of it, a `ShardFailure` for
        one that failed each time, None for one whose actor was gone each time.

        Raises the `StableSamError` that an actor returns, or one when actors do not even start.
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
            if failed and retries[shard.shard_id] <= self._settings.max_retries:
                queue.append(shard)
            else:
                yield shard, answer

    @contextmanager
    def sole_actor(self) -> Iterator[SoleActor]:
        """Put one actor in the place of all others, for the time of the block."""
        self.stop()
        actor = SoleActor(self._start)
        try:
            yield actor
        finally:
            actor.stop()

    def stop(self) -> None:
        """End all actors and give their resources back."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors = []

    @property
    def _busy(self) -> bool:
        return any(actor.loaded and actor.calls for actor in self._actors)

    def _fill(self, queue: deque[Work]) -> None:
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

    def _next_call(self) -> tuple[_Actor, Any]:
        """Wait until a call of any actor has come to its end."""
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
            if self._failed_starts > self._settings.max_retries + self._plan.actors:
                raise _does_not_start(error) from error
        else:
            del actor.calls[call]
            actor.loaded, self._failed_starts = True, 0

    def _finish(self, actor: _Actor, call: Any) -> tuple[Work, Any, list[Work]]:
        """A shard, its answer, and the shards that an actor which is gone had beside it.

        Whichever shard ended the actor, its oldest is suspected: it is in the works the longest.
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

    def _bury(self, lost: _Actor) -> list[Work]:
        """Remove the actor; returns the shards that it had, oldest first."""
        ray.kill(lost.handle)
        self._actors.remove(lost)
        return [shard for shard in lost.calls.values() if shard is not None]


class SoleActor:
    """One actor that is called method by method, and replaced when it died."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._handle: Any = None

    def call(self, method: str, shard: Work, *arguments: Any) -> Any:
        """What `method` returns for the shard; None: the process died of it.

        Any other error of Ray is a `ShardFailure`. Raises the `StableSamError` that the actor returns, or one when it
        dies while it loads.
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
    """In flight, oldest first: what was called for, None for the call that loads the model."""
    loaded: bool = False
    """Only then it gets shards: one that waits for a place in the cluster would keep them."""

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
