"""Set Prefect up for the flows: its settings, a check that its server answers, and how it logs user errors."""

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
    """Set Prefect up for a command that prints its own progress.

    Raises `StableSamError` when no Prefect server answers.
    """
    from rich.console import Console

    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    Console(stderr=True).print("Starting Prefect and Ray ...")
    check_prefect_api()


def check_prefect_api() -> None:
    """Raise `StableSamError` when no Prefect server answers, because a flow would then end in pages of traceback.

    The error names the URL of the configured server. Where none is configured, Prefect starts a temporary server here,
    which the flow then uses.
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
            f"a temporary Prefect server did not start on this machine, which may be too busy, and PREFECT_API_URL "
            f"names no other server: {one_line(problem)[:300]}"
        )
    raise StableSamError(
        f"{url}: expected a Prefect server at this URL (PREFECT_API_URL), got: {one_line(problem)[:300]}; "
        "start the server, or unset PREFECT_API_URL to use a temporary one"
    )


def log_user_errors_in_one_line() -> None:
    """Let Prefect log every `StableSamError` of this process without a traceback; other errors keep theirs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], StableSamError):
        record.exc_info = None
    return True
