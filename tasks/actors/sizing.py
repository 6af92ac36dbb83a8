"""How many actors a run gets, and how much of the cluster each of them asks for. Knows numbers only, not Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError

MAX_IMAGES_AT_ONCE = 8
"""Each may be of 100 megapixels and take a gigabyte or two."""
MOST_HELPERS = 16
"""Of an actor: each has some MB of pixels or logits on its way, and nothing feeds a GPU that more could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors, and what each of them asks Ray for."""

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int

    @property
    def images_at_once(self) -> int:
        """Images in the works at an actor: one at the model while others are decoded, or their masks encoded.

        Without a GPU the model keeps all threads busy, and one more image only hides what is not arithmetic.
        """
        return 2 if self.num_gpus == 0 else min(MAX_IMAGES_AT_ONCE, self.threads + 1)


def plan_actors(settings: RayConfig, cluster: Mapping[str, float], shards: int) -> ActorPlan:
    """Fit `settings` to the resources of the cluster; raises `ConfigError` when not even one actor fits.

    Where nodes come when they are asked for (`wait_for_nodes_s`) the settings count, and not what is there now.
    """
    cores, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    num_gpus, threads = settings.num_gpus, max(1, int(settings.num_cpus))
    if settings.wait_for_nodes_s:
        if settings.actors is None:
            raise ConfigError(
                "ray.actors: expected their number where nodes come on demand (wait_for_nodes_s), got none"
            )
        actors = min(shards, settings.actors)
        return ActorPlan(actors=actors, num_cpus=settings.num_cpus, num_gpus=num_gpus, threads=threads)
    if settings.actors is None and num_gpus == 0 and gpus >= 1:
        num_gpus = 1.0
    limits = [shards]
    if settings.actors is not None:
        limits.append(settings.actors)
    elif num_gpus == 0:
        limits.append(max(1, int(cores)))
    for name, asked, there in (("num_cpus", settings.num_cpus, cores), ("num_gpus", num_gpus, gpus)):
        if asked > there:
            raise ConfigError(f"ray.{name}: each actor asks for {asked:g}, the cluster has {there:g}")
        if asked:
            limits.append(int(there // asked))
    return ActorPlan(actors=min(limits), num_cpus=settings.num_cpus, num_gpus=num_gpus, threads=threads)


def fits(plan: ActorPlan, cluster: Mapping[str, float]) -> bool:
    """Whether the cluster has what one actor asks for, busy or not."""
    return plan.num_cpus <= cluster.get("CPU", 0.0) and plan.num_gpus <= cluster.get("GPU", 0.0)


def helpers_each(settings: RayConfig, plan: ActorPlan, cores: float) -> int:
    """Images that each actor may have prepared or finished elsewhere at a time; cores: of the nodes without a GPU.

    0 for actors without a GPU: they are on those nodes themselves.
    """
    if plan.num_gpus == 0 or cores < 1 or settings.helpers == 0:
        return 0
    return min(MOST_HELPERS, settings.helpers or ceil(cores / plan.actors))
