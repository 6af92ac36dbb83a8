"""Set Prefect up for the flows: its settings, a check that its server answers, and how it logs user errors."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import typer

from flows.temporary_server import start_server
from stable_sam.errors import ConfigError, StableSamError, one_line
from stable_sam.storage.machine import can_hold_files, check_room, scratch_folder

PREFECT_DEFAULTS = {
    # Without a configured server a temporary one starts, which takes 10 s on a free machine and longer on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The command prints its own progress, summary and errors; Prefect's log still goes to a configured server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_CONNECT_S = 5.0
_ROOM_MB = 50
"""For the temporary server's database."""


def start_prefect() -> None:
    """Set Prefect up for a command that prints its own progress.

    Where no server is configured, a temporary one starts, which ends with this process. Raises `StableSamError` when no
    Prefect server answers.
    """
    from rich.console import Console

    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    _ask_no_proxy_for_this_machine()
    _check_own_server()
    _have_a_home()
    Console(stderr=True).print("Starting Prefect and Ray ...")
    from prefect.settings import PREFECT_API_URL, get_current_settings

    if PREFECT_API_URL.value() is not None:
        check_prefect_api()
        return
    settings = get_current_settings()
    check_room(settings.home, _ROOM_MB, "free some, or set PREFECT_HOME to a folder that has room")
    os.environ["PREFECT_API_URL"] = start_server(settings.home, settings.server.ephemeral.startup_timeout_seconds)
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


@contextmanager
def resumable() -> Iterator[None]:
    """End the command in a line that says how to go on, and with exit code 130, when it is told to stop."""
    from prefect.exceptions import TerminationSignal

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal):
        typer.echo("interrupted: what is committed is kept; run the same command again and it continues", err=True)
        raise typer.Exit(130) from None


def check_prefect_api() -> None:
    """Raise `StableSamError` when no Prefect server answers, because a flow would then end in pages of traceback.

    The error names the URL of the server, and where it is set.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url is None:
        raise ConfigError("PREFECT_API_URL: expected the URL of a Prefect server, got none")
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:
        problem = error
    if problem is not None:
        raise _no_server(url, problem)


def log_user_errors_in_one_line() -> None:
    """Let Prefect log every `StableSamError` of this process without a traceback; other errors keep theirs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], StableSamError):
        record.exc_info = None
    return True


def _ask_no_proxy_for_this_machine() -> None:
    """The servers of a local run listen on loopback, where no proxy leads."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() != "*":
        hosts = [host for host in map(str.strip, given.split(",")) if host]
        given = ",".join([*hosts, *(host for host in _THIS_MACHINE if host not in hosts)])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = given


def _have_a_home() -> None:
    """Give Prefect a folder for the time of this process where it cannot have one in the user's home.

    Importing Prefect already asks for the home. Raises `ConfigError` when PREFECT_HOME is a folder that cannot be
    written.
    """
    try:
        home = Path.home()
    except RuntimeError:  # neither a variable HOME nor an entry for this user
        home = scratch_folder()
        os.environ["HOME"] = str(home)
    if given := os.environ.get("PREFECT_HOME"):
        if not can_hold_files(Path(given).expanduser()):
            raise ConfigError(f"PREFECT_HOME: expected a folder that can be written, got {given}")
        return
    usual = home / ".prefect"
    if not can_hold_files(usual):
        os.environ["PREFECT_HOME"] = str(scratch_folder())
        if (profiles := usual / "profiles.toml").is_file():
            os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))


def _check_own_server() -> None:
    """Raise `StableSamError` when the server should run on this machine and nothing listens there.

    This takes a moment, whereas importing Prefect, which asks any server, takes seconds.
    """
    url, _ = _given_url()
    try:
        parts = urlsplit(url or "")
        host, port = parts.hostname, parts.port
    except ValueError:
        return  # Prefect says what is wrong with the URL
    if url is None or host not in _THIS_MACHINE or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _no_server(url, error) from None


def _no_server(url: str, problem: Exception) -> StableSamError:
    return StableSamError(
        f"{url}: expected a Prefect server at this URL (PREFECT_API_URL, set in {_given_url()[1]}), got: "
        f"{one_line(problem)[:300]}; start the server, or unset PREFECT_API_URL there to use a temporary one"
    )


def _given_url() -> tuple[str | None, str]:
    """Return PREFECT_API_URL, None where only Prefect's profile may set it, and the place where it is set.

    Prefect's own order is: the environment, files of the working directory, the profile.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return url, "the environment"
    from dotenv import dotenv_values

    file = Path(".env").absolute()
    for name, value in dotenv_values(file).items():
        if name.upper() == "PREFECT_API_URL" and value:
            return value, str(file)
    return None, "what `prefect config view --show-sources` names"
