"""What integration tests share: Ray and Prefect, each started once, both on loopback; a dataset for a table."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stable_sam.storage.uris import join
from tests.integration.masks_dataset import Dataset, new_dataset


@pytest.fixture(scope="session")
def ray_local(s3: str) -> Iterator[None]:
    """A small Ray on loopback for all tests that need one; started after `s3`, whose settings its workers inherit."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine starves them, and limits are met
        settings = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        for attempt in range(3):
            try:  # local: whatever else runs on this machine
                ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, **settings)
                break
            except Exception:  # Ray gives its own processes 30 s, which a busy machine may not manage
                ray.shutdown()
                if attempt == 2:
                    raise
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API URL of a Prefect server with an empty database, used by this process and by those it starts."""
    folder = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    variables = {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    arguments = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with pytest.MonkeyPatch.context() as environment, (folder / "server.log").open("w") as log:
        for name, value in variables.items():
            environment.setenv(name, value)
        server = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        try:
            wait_for_answer(f"{url}/health", server, seconds=120)
            with temporary_settings({PREFECT_API_URL: url}):
                yield url
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(params=["local", "s3"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """Pictures, and a place for a table beside them."""
    # The blank and the letters beyond ASCII are what paths have and URIs have not.
    name = f"tàble {uuid.uuid4().hex[:8]}"
    return new_dataset(str(tmp_path / name) if request.param == "local" else join(request.getfixturevalue("s3"), name))


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    """The same, always on the disk."""
    return new_dataset(str(tmp_path / "tàble 1"))


def wait_for_answer(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, f"no answer from {url}"
            time.sleep(0.2)
