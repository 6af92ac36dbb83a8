"""The runs of a table, read from its Delta log: each publish leaves its run's facts in the commit it makes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from stable_sam.data.schema import LATER_COLUMNS, MASKS_SCHEMA
from stable_sam.data.storage import delta_options
from stable_sam.errors import StorageError

RUN_KEY = "stable_sam_run"
"""Key of the run in the metadata of its commit."""
_RECENT = 20
"""Commits looked at first for the newest run: between two runs lie at most a few compactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A published run, as its Delta commit tells it."""

    run_id: str
    revision: int
    content_hash: str
    parent_run_id: str | None
    rows: int
    failed: int
    routes: dict[str, int]
    """Rows by route."""
    images: int
    annotations_uri: str
    images_uri: str
    model_id: str
    weights_sha256: str
    config_hash: str
    code_version: str
    dtype: str
    logical_date: str | None
    publisher: str
    """Random token of the driver whose commit it was."""
    source_hash: str = ""
    """Hash of all prompts of the source and of the versions of their images, whether or not they were refined."""
    source_version: str | None = None
    """Hash of the versions of everything that was read; the same again means that nothing has changed."""
    current_prompts: int | None = None
    """Prompts that are current since this run."""
    changes: dict[str, int] = field(default_factory=dict)
    """Prompts by what was done with them: the fields of `stable_sam.records.Changes`."""
    actor_seconds: float | None = None
    """What its shards took, summed; None when not all of them said."""
    version: int
    """Delta version that this run made: open the table at it to see what readers saw after this run."""
    published_at: datetime


def open_table(output_uri: str) -> DeltaTable | None:
    """Open the newest version of the table; None when there is none yet. Raises `StorageError`."""
    try:
        return DeltaTable(output_uri, storage_options=delta_options(output_uri))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise storage_error(output_uri, "cannot open the table", error) from error


def list_runs(table: DeltaTable, limit: int | None = None) -> list[RunInfo]:
    """Published runs, newest first, found in the newest `limit` commits (None: in all). Raises `StorageError`."""
    try:
        history = table.history(limit)
    except (DeltaError, OSError) as error:
        raise storage_error(table.table_uri, "cannot read the table's history", error) from error
    return [
        RunInfo(
            **commit[RUN_KEY],
            version=commit["version"],
            published_at=datetime.fromtimestamp(commit["timestamp"] / 1000, tz=UTC),
        )
        for commit in history
        if RUN_KEY in commit
    ]


def newest_run(output_uri: str) -> RunInfo | None:
    """The run that was published last; None when there is no table. Raises `StorageError`, also for a foreign table."""
    table = open_table(output_uri)
    runs = [] if table is None else recent_runs(table)
    return runs[0] if runs else None


def recent_runs(table: DeltaTable) -> list[RunInfo]:
    """The newest runs, newest first; none only when there are none at all.

    Reads the log as it is now, which may be newer than `table`. Raises `StorageError`, also for a foreign table.
    """
    columns = {field.name for field in table.schema().fields}
    others = (columns ^ set(MASKS_SCHEMA.names)) - (LATER_COLUMNS - columns)
    if others:
        raise StorageError(
            f"{unquote(table.table_uri)}: expected the columns of this version of stable-sam, got a table with "
            f"other columns: {', '.join(sorted(others)[:5])}"
        )
    return list_runs(table, _RECENT) or list_runs(table)


def storage_error(uri: str, what: str, error: Exception) -> StorageError:
    """One line of what the Delta library tells in many, with colours and a percent-encoded URI."""
    plain = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error))
    return StorageError(f"{unquote(uri)}: {what}: {' '.join(plain.split())[:300]}")
