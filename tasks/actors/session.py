"""Have Ray for the time of a run: the Ray of this process, a cluster, or a local Ray that listens on loopback only."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
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
"""Number of tries to start a local Ray, which gives its processes 30 s: too little for a busy machine at first."""
_CONNECT_S = 20.0
"""Seconds to wait for a connection to the cluster's head. Ray itself would wait for many minutes."""
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable with which, when it is 0, the processes of a node listen on loopback only."""
_SOCKET_PATH_BYTES = 107
"""Longest path of a socket that the system allows."""
_BELOW_TEMP = "/ray/session_2026-11-30_17-31-50_123456_1234567/sockets/plasma_store_12345"
"""The longest path of a socket that Ray makes in the temporary folder."""
_ROOM_MB = 100
"""Free space that Ray's logs and sockets need in the temporary folder."""


_worker = threading.Event()
"""Set in the process of a deployed run."""


def end_by_sigterm() -> None:
    """From now on, SIGTERM during a session of Ray ends this process without a word, once Ray has ended.

    A worker of Prefect then says what became of its run: cancelled, or crashed.
    """
    _worker.set()


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
    with _interrupted_by_sigterm() as after_start:
        if config.address is None:
            with loopback_only():
                _start_local(config.object_store_mb)
                after_start()
                try:
                    yield
                finally:
                    ray.shutdown()
            return
        _connect(config.address)
        after_start()
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[Callable[[], None]]:
    """Let SIGTERM interrupt this process as Ctrl-C does, from the call of the yielded function to the end of the block.

    Ray answers SIGTERM by an exit that may abort the process, and while it waits it swallows what any other handler
    raises, except a KeyboardInterrupt. Only the main thread can have a handler.

    When Ray has ended, the handler from before gets the signal, or the process ends (`end_by_sigterm`).
    """
    handler = signal.getsignal(signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def after_start() -> None:
        if in_main:
            signal.signal(signal.SIGTERM, interrupt)

    try:
        yield after_start
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if interrupted and _worker.is_set() else handler)
        if interrupted:
            signal.raise_signal(signal.SIGTERM)


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
        raise ConfigError(
            f"ray.address: expected a Ray cluster at {address}, found none: {one_line(error)[:300]}"
        ) from None


def _reach(address: str) -> None:
    """Raise OSError when nothing listens at an address host:port; Ray checks other forms of an address."""
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
                raise StableSamError(f"Ray did not start on this machine{too_busy()}: {problem}") from error
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
