"""The fault matrix: what is done to the runs on each kind of store, and how often."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.reliability.proxy import Rule
from tests.reliability.stores import Store
from tests.reliability.torment import (
    ExpiringCredentials,
    FullDisk,
    KillDrivers,
    KillDriversAndVacuum,
    KillRole,
    StoreFaults,
    Torment,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    name: str
    fault: str
    make: Callable[[Store, random.Random], Torment]
    drivers: int = 1
    own_ray: bool = False
    """The driver starts its own Ray, as on a single machine; otherwise it joins one that outlives it."""
    command: bool = False
    """By `stable-sam refine` and a Prefect server instead of the flow's body alone."""
    outputs: int = 1
    """At least. Empty ones and ones that hold a first night in turn; which comes first is drawn."""


UNDISTURBED = Case(name="none", fault="none", make=lambda store, draw: Torment())
"""Makes the first night's table that other outputs begin with."""


def kills(scale: float, *, s3: bool) -> list[Case]:
    """SIGKILLs: `scale` 1 makes more than 50 over a folder and one S3 store."""

    def times(count: int) -> int:
        return max(1, round(count * scale))

    def driver(count: int) -> Callable[[Store, random.Random], Torment]:
        return lambda store, draw: KillDrivers(times(count), draw, store)

    def role(name: str, count: int, **more: float) -> Callable[[Store, random.Random], Torment]:
        return lambda store, draw: KillRole(name, times(count), draw, **more)  # type: ignore[arg-type]

    return [
        Case(name="driver", fault="SIGKILL of the driver", make=driver(14 if s3 else 8)),
        Case(name="actor", fault="SIGKILL of the actor", make=role("actor", 6)),
        Case(name="model", fault="SIGKILL of the model's process", make=role("model process", 6)),
        Case(
            name="raylet",
            fault="SIGKILL of the raylet",
            make=role("raylet", 2, seconds=14.0, per_attempt=1),
            own_ray=True,
        ),
        Case(
            name="gcs",
            fault="SIGKILL of Ray's control store",
            make=role("gcs", 1, seconds=14.0, per_attempt=1),
            own_ray=True,
        ),
        Case(
            name="command",
            fault="SIGKILL of `stable-sam refine`",
            make=lambda store, draw: KillDrivers(times(3), draw, store, seconds=25.0),
            own_ray=True,
            command=True,
        ),
        Case(
            name="vacuum",
            fault="SIGKILL of the driver, vacuum before each resume",
            make=lambda store, draw: KillDriversAndVacuum(times(6), draw, store),
        ),
        Case(name="two-drivers", fault="two drivers at once", make=lambda store, draw: Torment(), drivers=2, outputs=2),
        Case(name="three-drivers", fault="three drivers at once, SIGKILL of some", make=driver(4), drivers=3),
    ]


def store_faults() -> list[Case]:
    """Faults of an S3 store or of the network to it."""

    def always(*rules: Callable[[], Rule]) -> Callable[[Store, random.Random], Torment]:
        return lambda store, draw: StoreFaults(store, draw, lambda: [rule() for rule in rules])

    def storms(answer: str) -> Callable[[Store, random.Random], Torment]:
        return always(lambda: Rule(answer, bursts=True), lambda: Rule(answer, share=0.1))

    def expiring(store: Store, draw: random.Random) -> Torment:
        return ExpiringCredentials(store, draw, 4)

    cases = [
        Case(
            name="lost",
            fault="answer lost after a successful PUT",
            make=always(lambda: Rule("lost", "^PUT", share=0.3)),
        ),
        Case(name="503", fault="503 storms", make=storms("503")),
        Case(name="429", fault="429 storms", make=storms("429")),
        Case(name="reset", fault="connection resets", make=always(lambda: Rule("reset", share=0.2))),
        Case(name="truncated", fault="truncated answers", make=always(lambda: Rule("truncated", "^GET", share=0.2))),
        Case(name="cut", fault="requests cut in the middle", make=always(lambda: Rule("cut", "^PUT", share=0.2))),
        Case(name="slow", fault="slow answers (3 s each)", make=always(lambda: Rule("slow", "^GET", share=0.1))),
        Case(name="expired", fault="credentials expire in the middle", make=expiring),
        Case(
            name="all",
            fault="lost, 503, reset, truncated together; two drivers",
            make=always(
                lambda: Rule("lost", "^PUT", share=0.15),
                lambda: Rule("503", share=0.1),
                lambda: Rule("reset", share=0.1),
                lambda: Rule("truncated", "^GET", share=0.1),
            ),
            drivers=2,
        ),
    ]
    return [replace(case, outputs=2) for case in cases]


def full_disk() -> list[Case]:
    """A disk that is full at one step after the other. Empty where nothing may be mounted."""
    if os.geteuid() != 0:
        return []
    return [
        Case(
            name="disk",
            fault="disk full",
            make=lambda store, draw: FullDisk(Path(store.uri, "disk-0"), draw),
        )
    ]
