"""Ray for the time of a run: one that already runs in this process, a cluster, or a local one on loopback only."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError, StableSamError, StorageError, one_line
from stable_sam.storage.machine import can_hold_files, check_room, too_busy

_STARTS = 3
"""Ray gives its own processes 30 s to start, which a busy machine may not manage the first time."""
_CONNECT_S = 20.0
"""For the cluster's head to take a connection. Ray's client asks a dead one for many minutes."""
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 a node's processes listen on loopback only."""
_SOCKET_PATH_BYTES = 107
"""What the system allows the path of a socket."""
_BELOW_TEMP = "/ray/session_2026-11-30_17-31-50_123456_1234567/sockets/plasma_store_12345"
"""The longest path of a socket that Ray makes in the temporary folder."""
_ROOM_MB = 100
"""For Ray's logs and sockets in the temporary folder."""


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
        with loopback_only():
            _start_local(settings.object_store_mb)
            try:
                yield
            finally:
                ray.shutdown()
        return
    _connect(settings.address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray that starts in this block listens on loopback only, in this process and in its own.

    Its processes read the variable; this one has read it already, when Ray was imported.
    """
    before = os.environ.get(_LOOPBACK_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOOPBACK_ONLY], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        variable, ray_constants.ENABLE_RAY_CLUSTER = before
        if variable is None:
            del os.environ[_LOOPBACK_ONLY]
        else:
            os.environ[_LOOPBACK_ONLY] = variable


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
    temp = _temp_folder()
    _have_token()
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": object_store_mb * 2**20,
        "_temp_dir": f"{temp}/ray",
    }
    for attempt in range(_STARTS):
        try:
            ray.init("local", **options, **_quiet())
        except Exception as error:  # a plain Exception is what Ray raises when its processes take too long
            ray.shutdown()
            if attempt == _STARTS - 1 or isinstance(error, OSError):
                problem = f"{type(error).__name__}: {one_line(error)[:300]}"
                raise StableSamError(f"Ray does not start on this machine{too_busy()}: {problem}") from error
        else:
            return


def _temp_folder() -> str:
    """Where Ray keeps its sockets and logs: the temporary folder, or /tmp where that one's path is too long.

    Raises `StorageError` when it cannot be written or has no room.
    """
    given = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    fitting = [folder for folder in (given, "/tmp") if len(os.fsencode(folder + _BELOW_TEMP)) <= _SOCKET_PATH_BYTES]
    folder = next((folder for folder in fitting if can_hold_files(Path(folder))), None)
    if folder is None:
        longest = _SOCKET_PATH_BYTES - len(_BELOW_TEMP)
        raise StorageError(
            f"{given}: expected a temporary folder that can be written, with a path of at most {longest} characters "
            "for the sockets of Ray; set RAY_TMPDIR to one"
        )
    check_room(Path(folder), _ROOM_MB, "free some, or set RAY_TMPDIR to a folder that has room and a short path")
    return folder


def _have_token() -> None:
    """Where Ray cannot keep the secret of its processes in the user's home, they get it by a variable."""
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or can_hold_files(Path.home() / ".ray")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _quiet() -> dict[str, Any]:
    return {"logging_level": logging.ERROR, "log_to_driver": False}
