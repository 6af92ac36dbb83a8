"""Errors that are the user's to mend are logged in one line; Prefect would add a traceback of its own engine."""

from __future__ import annotations

import logging

from stable_sam.errors import StableSamError


def log_user_errors_in_one_line() -> None:
    """Drop the traceback of every `StableSamError` that Prefect logs in this process; others keep theirs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], StableSamError):
        record.exc_info = None
    return True
