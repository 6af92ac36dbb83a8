"""How many actors a run gets, and how much of the cluster each of them asks for. Knows numbers only, not Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors, and what each of them asks Ray for."""

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int


def plan_actors(settings: RayConfig, cluster: Mapping[str, float], shards: int) -> ActorPlan:
    """Fit `settings` to the resources of the cluster; raises `ConfigError` when not even one actor fits.

    Never more actors than fit: one that waits for a place for ever would keep the shards handed to it.
    """
    cores, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    num_gpus = settings.num_gpus
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
    threads = max(1, int(settings.num_cpus))
    return ActorPlan(actors=min(limits), num_cpus=settings.num_cpus, num_gpus=num_gpus, threads=threads)
