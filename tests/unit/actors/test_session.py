import signal
import socket
import subprocess
import sys

import pytest
import ray

from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError
from tasks.actors import session
from tasks.actors.session import ray_session


@pytest.fixture(autouse=True)
def _not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may be."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_a_cluster_that_is_gone_is_an_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"ray.address: expected a Ray cluster at {address}, .*refused"),
            ray_session(RayConfig(address=address)),
        ):
            pass


def test_an_address_that_is_none_is_an_error() -> None:
    with (
        pytest.raises(ConfigError, match="ray.address: expected a Ray cluster at nowhere.invalid:6379"),
        ray_session(RayConfig(address="nowhere.invalid:6379")),
    ):
        pass


def test_sigterm_is_handed_on_when_ray_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Told(BaseException):
        pass

    def tell(number: int, frame: object) -> None:
        told.append("handler from before")
        raise Told

    monkeypatch.setattr(session, "_start_local", lambda object_store_mb: None)
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("end of Ray"))
    before = signal.signal(signal.SIGTERM, tell)
    try:
        with pytest.raises(Told), ray_session(RayConfig()):
            signal.raise_signal(signal.SIGTERM)
        assert told == ["end of Ray", "handler from before"]
        assert signal.getsignal(signal.SIGTERM) is tell
    finally:
        signal.signal(signal.SIGTERM, before)


DEPLOYED = """
import signal, ray
from stable_sam.config import RayConfig
from tasks.actors import session
session._start_local = lambda object_store_mb: None
ray.shutdown = lambda: print("end of Ray", flush=True)
session.end_by_sigterm()
with session.ray_session(RayConfig()):
    signal.raise_signal(signal.SIGTERM)
"""


def test_in_a_deployed_run_sigterm_ends_the_process_when_ray_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", DEPLOYED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "end of Ray\n", "")
