"""Helpers for an actor on a GPU node: Ray tasks of one core on the nodes that have no GPU.

The nodes are chosen here: Ray avoids GPU nodes for such tasks too, but only while others have room, and it prefers the
node that holds a task's large arguments, which is the actor's own.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stable_sam.config import RayConfig
from stable_sam.errors import one_line
from stable_sam.timing import SPANS_OF_AN_IMAGE, StageClock, Times, add_times, keeps_spans
from tasks.actors.helper_work import HelperWork
from tasks.actors.offload import NoHelperError
from tasks.actors.sizing import ActorPlan, helpers_each

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 5.0
_TRIES = 2
"""Helpers that are lost, with their node or without, before a piece of work is the actor's own. That condemns no image:
the actor's child has limits as well, and says what an image does to it."""
_PATIENCE_S = 60.0
"""A node is given up, for as long again, that has work and from which nothing came for so long: its cores are others',
or it is lost and Ray has not seen it yet. An image takes much less."""


@dataclass(slots=True, eq=False)
class _Node:
    node_id: str
    cores: float
    in_hand: int = 0
    answered: float = 0.0
    """When something last came back from it."""
    given_up_until: float = 0.0


class CpuHelpers:
    """The helpers of one actor; several threads may call."""

    def __init__(self, settings: RayConfig, plan: ActorPlan) -> None:
        self._settings = settings
        self._plan = plan
        self._nodes: dict[str, _Node] = {}
        self._looked = -inf
        self._lock = threading.Lock()
        self._remote: Any = ray.remote(_work)

    @property
    def room(self) -> int:
        """Images that may be in the helpers' hands at a time; 0 when there is no node for them."""
        with self._lock:
            return helpers_each(self._settings, self._plan, sum(node.cores for node in self._usable()))

    def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
        """What the method of `work` returns on a node without a GPU. Raises `NoHelperError`."""
        for _ in range(_TRIES):
            node = self._take()
            try:
                return self._call_on(node, work, method, arguments)
            except (RayError, _GivenUpError) as error:
                _log.warning("a helper on node %s did not %s: ... %s", node.node_id, method, one_line(error)[-300:])
                if isinstance(error, (NodeDiedError, TaskUnschedulableError, _GivenUpError)):
                    node.given_up_until = time.monotonic() + _PATIENCE_S
            finally:
                with self._lock:
                    node.in_hand -= 1
        raise NoHelperError

    def _call_on(self, node: _Node, work: HelperWork, method: str, arguments: tuple[Any, ...]) -> Any:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        task = self._remote.options(num_cpus=1, max_retries=0, scheduling_strategy=there)
        answer = task.remote(keeps_spans(), work, method, *arguments)
        submitted = time.monotonic()
        while not ray.wait([answer], timeout=_LOOK_EVERY_S)[0]:
            if time.monotonic() - max(submitted, node.answered) > _PATIENCE_S:
                with suppress(RayError):
                    ray.cancel(answer, force=True)
                raise _GivenUpError(f"nothing came for {_PATIENCE_S:g} s")
        node.answered = time.monotonic()
        done, times = ray.get(answer)
        add_times(times)
        return done

    def _take(self) -> _Node:
        """The node with the least work for its cores; raises `NoHelperError` when there is none."""
        with self._lock:
            node = min(self._usable(), key=lambda node: node.in_hand / node.cores, default=None)
            if node is None:
                raise NoHelperError
            node.in_hand += 1
            return node

    def _usable(self) -> list[_Node]:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            found = {
                node["NodeID"]: node["Resources"].get("CPU", 0.0)
                for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's annotations are partial
                if node["Alive"] and not node["Resources"].get("GPU")
            }
            self._nodes = {
                node_id: self._nodes.get(node_id) or _Node(node_id, cores)
                for node_id, cores in found.items()
                if cores >= 1
            }
        return [node for node in self._nodes.values() if now >= node.given_up_until]


class _GivenUpError(Exception):
    """Nothing came from the node for too long."""


def _work(keep_spans: bool, work: HelperWork, method: str, *arguments: Any) -> tuple[Any, Times]:
    with StageClock(spans=SPANS_OF_AN_IMAGE if keep_spans else 0) as clock:
        done = getattr(work, method)(*arguments)
    return done, clock.times()
