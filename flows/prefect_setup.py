"""Prefect around the flows: its settings, whether its server answers, and how it logs errors of the user."""

from __future__ import annotations

import logging
import os

from stable_sam.errors import StableSamError, one_line

PREFECT_DEFAULTS = {
    # Without a configured server a temporary one starts, which takes 10 s on a free machine and longer on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The command prints its own progress, summary and errors; Prefect's log still goes to a configured server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def start_prefect() -> None:
    """Set Prefect up for a command that prints its own progress; raises `StableSamError` when its server is away."""
    from rich.console import Console

    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    Console(stderr=True).print("Starting Prefect and Ray ...")
    check_prefect_api()


def check_prefect_api() -> None:
    """Raise `StableSamError` naming the URL when the configured server does not answer.

    A flow that meets none ends in pages of traceback. Without a configured server a temporary one starts, which the
    flow then uses.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # a plain RuntimeError is what Prefect raises when its temporary server fails
        problem = error
    if problem is None:
        return
    if url is None:
        raise StableSamError(
            f"no temporary Prefect server starts on this machine (too busy?), and PREFECT_API_URL names no other: "
            f"{one_line(problem)[:300]}"
        )
    raise StableSamError(
        f"{url}: expected a Prefect server there (PREFECT_API_URL), got: {one_line(problem)[:300]}; "
        "start it, or unset PREFECT_API_URL to use a temporary one"
    )


def log_user_errors_in_one_line() -> None:
    """Drop the traceback of every `StableSamError` that Prefect logs in this process; others keep theirs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], StableSamError):
        record.exc_info = None
    return True
