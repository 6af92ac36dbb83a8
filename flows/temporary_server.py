"""A temporary Prefect server for one command, which listens on loopback only and ends with the command's process.

Prefect's own temporary server stays behind when its process is killed, and does not say why it cannot start.
"""

from __future__ import annotations

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from stable_sam.errors import StableSamError, one_line
from stable_sam.storage.machine import too_busy

_LOOK_EVERY_S = 0.1
_STOP_S = 5.0
"""Seconds that a server has to end after it was asked to; then it is killed."""


def start_server(home: Path, timeout_s: float) -> str:
    """Start a server with its database in `home`, which ends when this process does, and return the URL of its API.

    Raises `StableSamError` with the reason when the server does not answer within `timeout_s`.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the server writes there as long as it lives
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        variables = {
            "PREFECT_HOME": str(home),
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from flows.temporary_server import serve; serve({listening.fileno()})"],
            stdin=subprocess.PIPE,  # closed by the system when this process ends, however it ends
            stdout=log,
            stderr=log,
            pass_fds=[listening.fileno()],
            env=os.environ | variables,
            start_new_session=True,  # Ctrl-C is for the command, which still tells the server what became of the run
        )
    atexit.register(_stop, server)
    end = time.monotonic() + timeout_s
    while not _answers(port):
        if server.poll() is not None:
            raise StableSamError(f"no temporary Prefect server starts on this machine: {_last_line(log)}")
        if time.monotonic() > end:
            _stop(server)
            raise StableSamError(
                f"no temporary Prefect server starts on this machine within {timeout_s:g} s{too_busy()}; start one "
                "(prefect server start) and set PREFECT_API_URL, or raise "
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
            )
        time.sleep(_LOOK_EVERY_S)
    return f"http://127.0.0.1:{port}/api"


def serve(listening: int) -> None:
    """Run the server on the socket with the file descriptor `listening` until the standard input is closed."""
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listening)])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _answers(port: int) -> bool:
    # Not by a client that obeys the variables for proxies: no proxy leads to this machine.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LOOK_EVERY_S * 10)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None, "a pipe"
    server.stdin.close()
    try:
        server.wait(2 * _STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return one_line(RuntimeError(lines[-1]))[:300] if lines else "it ended and said nothing"
