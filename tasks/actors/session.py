"""Have Ray for the time of a run: the Ray of this process, a cluster, or a local Ray that listens on loopback only."""

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
"""Number of tries to start a local Ray, which gives its processes 30 s: too little for a busy machine at first."""
_CONNECT_S = 20.0
"""Seconds to wait for a connection to the cluster's head. Ray itself would wait for many minutes."""


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Connect to Ray or start it for the block, and disconnect or stop it afterwards.

    A Ray that already runs in this process is used and left running. Raises `ConfigError` when there is no such
    cluster, and `StableSamError` when a local Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without this, the workers would build the environment again under `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if config.address is None:
        _start_local(config.object_store_mb)
    else:
        _connect(config.address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        _reach(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(address=address, **_quiet())
    except (OSError, ValueError, RayError) as error:
        raise ConfigError(
            f"ray.address: expected a Ray cluster at {address}, found none: {one_line(error)[:300]}"
        ) from None


def _reach(address: str) -> None:
    """Raise OSError when nothing listens at an address host:port; Ray checks other forms of an address."""
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
                raise StableSamError(f"Ray did not start on this machine, which may be too busy: {problem}") from error
        else:
            return


def _quiet() -> dict[str, Any]:
    return {"logging_level": logging.ERROR, "log_to_driver": False}
