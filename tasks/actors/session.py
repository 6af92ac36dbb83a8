"""Ray for the time of a run: one that already runs in this process, a cluster, or a local one on loopback only."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError, StableSamError, one_line

_STARTS = 3
"""Ray gives its own processes 30 s to start, which a busy machine may not manage the first time."""
_CONNECT_S = 20.0
"""For the cluster's head to take a connection. Ray's client asks a dead one for many minutes."""


@contextmanager
def ray_session(settings: RayConfig) -> Iterator[None]:
    """Connect or start, and end what was begun here.

    Raises `ConfigError` when there is no such cluster, `StableSamError` when a local Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Under `uv run` the workers would otherwise build the environment again.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if settings.address is None:
        _start_local(settings.object_store_mb)
    else:
        _connect(settings.address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        _reach(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(address=address, **_quiet())
    except (OSError, ValueError, RayError) as error:
        raise ConfigError(f"ray.address: no Ray cluster at {address}: {one_line(error)[:300]}") from None


def _reach(address: str) -> None:
    """Raise OSError when nothing listens at host:port; other forms of an address are Ray's to judge."""
    if found := re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=_CONNECT_S).close()


def _start_local(object_store_mb: int) -> None:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a node that listens on loopback only
    for attempt in range(_STARTS):
        try:
            ray.init("local", include_dashboard=False, object_store_memory=object_store_mb * 2**20, **_quiet())
        except Exception as error:  # a plain Exception is what Ray raises when its processes take too long
            ray.shutdown()
            if attempt == _STARTS - 1:
                problem = f"{type(error).__name__}: {one_line(error)[:300]}"
                raise StableSamError(f"Ray does not start on this machine (too busy?): {problem}") from error
        else:
            return


def _quiet() -> dict[str, Any]:
    return {"logging_level": logging.ERROR, "log_to_driver": False}
