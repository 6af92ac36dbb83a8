"""Helpers for an actor on a GPU node: Ray tasks of one core on the nodes that have no GPU.

This module chooses the nodes itself. Ray avoids GPU nodes for such tasks only while other nodes have room, and it
prefers the node that holds the large arguments of a task, which is the actor's own.
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
"""Number of helpers that may be lost, alone or with their node, before the actor does a piece of work itself. No image
fails by that: the actor's child has limits as well, and finds out what the image does."""
_PATIENCE_S = 60.0
"""Seconds without an answer after which a node that has work is given up, for as long again. Others use its cores, or
it is lost and Ray has not noticed yet; an image takes much less."""


@dataclass(slots=True, eq=False)
class _Node:
    node_id: str
    cores: float
    in_hand: int = 0
    """Pieces of work that the node has."""
    answered: float = 0.0
    """Monotonic time of the node's last answer."""
    given_up_until: float = 0.0


class CpuHelpers:
    """The helpers of one actor; several threads may call them at the same time."""

    def __init__(self, config: RayConfig, plan: ActorPlan) -> None:
        self._config = config
        self._plan = plan
        self._nodes: dict[str, _Node] = {}
        self._looked = -inf
        self._lock = threading.Lock()
        self._remote: Any = ray.remote(_work)

    @property
    def room(self) -> int:
        """Return how many images the helpers may have at a time; 0 when there is no node for helpers."""
        with self._lock:
            return helpers_each(self._config, self._plan, sum(node.cores for node in self._usable()))

    def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
        """Call a method of `work` on a node without a GPU, and return its answer; raises `NoHelperError`."""
        for _ in range(_TRIES):
            node = self._take()
            try:
                return self._call_on(node, work, method, arguments)
            except (RayError, _GivenUpError) as error:
                _log.warning("A helper on node %s could not %s: ... %s", node.node_id, method, one_line(error)[-300:])
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
                raise _GivenUpError(f"no answer for {_PATIENCE_S:g} s")
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
    """Raised when a node did not answer for too long."""


def _work(keep_spans: bool, work: HelperWork, method: str, *arguments: Any) -> tuple[Any, Times]:
    with StageClock(spans=SPANS_OF_AN_IMAGE if keep_spans else 0) as clock:
        done = getattr(work, method)(*arguments)
    return done, clock.times()
