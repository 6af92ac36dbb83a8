"""A Prefect server of the reliability programs' own, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def prefect_server(folder: Path) -> Iterator[None]:
    """A Prefect server with an empty database below `folder`; its address is in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", f"--port={port}", "--no-ui"]
    with (folder / "prefect.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            with suppress(OSError):
                urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(60)
