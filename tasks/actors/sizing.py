"""Decide how many actors a run gets, and how much of the cluster each of them asks for. It does not know Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError

MAX_IMAGES_AT_ONCE = 8
"""Most images in an actor at a time: an image of 100 megapixels takes a gigabyte or two."""
MOST_HELPERS = 16
"""Most helpers of an actor: each has some MB of pixels or logits on the way, and more would not feed a GPU faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """The number of actors, and what each of them asks Ray for."""

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int
    """Number of threads of the model's arithmetic in each actor."""

    @property
    def images_at_once(self) -> int:
        """Return how many images an actor has at a time: one in the model, others being decoded or encoded.

        Without a GPU the model keeps all threads busy, and one more image only fills the pauses of the arithmetic.
        """
        return 2 if self.num_gpus == 0 else min(MAX_IMAGES_AT_ONCE, self.threads + 1)


def plan_actors(config: RayConfig, cluster: Mapping[str, float], shards: int) -> ActorPlan:
    """Fit the config to the resources of the cluster, and to the number of shards.

    Where nodes are started on demand (`wait_for_nodes_s`), only the config counts and not what is there now. Raises
    `ConfigError` when not even one actor fits.
    """
    cores, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    num_gpus, threads = config.num_gpus, max(1, int(config.num_cpus))
    if config.wait_for_nodes_s:
        if config.actors is None:
            raise ConfigError(
                "ray.actors: expected a number, because nodes are started on demand (wait_for_nodes_s), got none"
            )
        actors = min(shards, config.actors)
        return ActorPlan(actors=actors, num_cpus=config.num_cpus, num_gpus=num_gpus, threads=threads)
    if config.actors is None and num_gpus == 0 and gpus >= 1:
        num_gpus = 1.0
    limits = [shards]
    if config.actors is not None:
        limits.append(config.actors)
    elif num_gpus == 0:
        limits.append(max(1, int(cores)))
    for name, asked, there in (("num_cpus", config.num_cpus, cores), ("num_gpus", num_gpus, gpus)):
        if asked > there:
            raise ConfigError(f"ray.{name}: each actor asks for {asked:g}, the cluster has {there:g}")
        if asked:
            limits.append(int(there // asked))
    return ActorPlan(actors=min(limits), num_cpus=config.num_cpus, num_gpus=num_gpus, threads=threads)


def fits(plan: ActorPlan, cluster: Mapping[str, float]) -> bool:
    """Return whether the cluster has what one actor asks for, busy or not."""
    return plan.num_cpus <= cluster.get("CPU", 0.0) and plan.num_gpus <= cluster.get("GPU", 0.0)


def helpers_each(config: RayConfig, plan: ActorPlan, cores: float) -> int:
    """Return how many images each actor may give to helpers at a time.

    cores: number of cores of the nodes without a GPU. Actors without a GPU get 0, because they use these cores
    themselves.
    """
    if plan.num_gpus == 0 or cores < 1 or config.helpers == 0:
        return 0
    return min(MOST_HELPERS, config.helpers or ceil(cores / plan.actors))
