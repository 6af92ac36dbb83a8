"""SQL over a published table, by DuckDB: views `masks`, `history` and `runs`."""

from __future__ import annotations

import tempfile
from typing import Any, get_args

import duckdb
import pyarrow as pa
from deltalake.exceptions import DeltaError

from stable_sam.data.runs import RunInfo, list_runs, open_table, storage_error
from stable_sam.errors import InputError, NotFoundError, StorageError
from stable_sam.records import Route

_RUNS_SCHEMA = pa.schema(
    [
        ("revision", pa.int64()),
        ("run_id", pa.string()),
        ("parent_run_id", pa.string()),
        ("version", pa.int64()),
        ("published_at", pa.timestamp("ms", tz="UTC")),
        ("logical_date", pa.string()),
        ("images", pa.int64()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        *((route, pa.int64()) for route in get_args(Route)),
        ("annotations_uri", pa.string()),
        ("images_uri", pa.string()),
        ("model_id", pa.string()),
        ("weights_sha256", pa.string()),
        ("config_hash", pa.string()),
        ("code_version", pa.string()),
        ("dtype", pa.string()),
        ("content_hash", pa.string()),
    ]
)

_ALL = "SELECT * FROM history"
_NEWEST = (
    "SELECT * FROM history WHERE (prompt_id, revision) IN "
    "(SELECT (prompt_id, max(revision)) FROM history GROUP BY prompt_id)"
)


def query(table_uri: str, sql: str) -> pa.Table:
    """Run one SQL statement and return its rows.

    Views: `history`, all rows of all runs (columns: `stable_sam.data.schema.MASKS_SCHEMA`); `masks`, of each prompt_id
    the row of the newest revision; `runs`, one row for each published run. Only the columns and, where DuckDB can push
    the filter down, the rows that are asked for get read.
    Raises `NotFoundError` when there is no table, `InputError` when the SQL is wrong, `StorageError`.
    """
    table = open_table(table_uri)
    if table is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    runs = list_runs(table)
    with (
        tempfile.TemporaryDirectory(prefix="stable-sam-query-") as folder,
        duckdb.connect(config=_sandbox(folder)) as connection,
    ):
        try:
            connection.register("history", table.to_pyarrow_dataset())
            connection.register("runs", pa.Table.from_pylist([_run_row(run) for run in runs], schema=_RUNS_SCHEMA))
            connection.execute(f"CREATE VIEW masks AS {_ALL if len(runs) == 1 else _NEWEST}")
            return _run(connection, table_uri, sql)
        except (DeltaError, OSError) as error:
            raise storage_error(table_uri, "cannot read the table", error) from error


def _sandbox(folder: str) -> dict[str, Any]:
    """Settings under which SQL reaches the registered views and nothing else, and cannot change the settings.

    No files, no network, no extensions, no Python variables of this process; what does not fit into memory is spilled
    to `folder`, the one place that DuckDB may touch.
    """
    return {
        "python_enable_replacements": False,
        "enable_external_access": False,
        "autoload_known_extensions": False,
        "temp_directory": folder,
        "lock_configuration": True,
    }


def _run(connection: duckdb.DuckDBPyConnection, table_uri: str, sql: str) -> pa.Table:
    try:
        relation = connection.sql(sql)
        if relation is None:
            raise InputError("SQL: expected a query, got nothing to run")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        # What follows is the statement again, with a marker that means nothing outside a terminal's columns.
        message = " ".join(str(error).partition("\n\nLINE ")[0].split())[:300]
        if "registered as 'history' failed" in message:
            raise StorageError(f"{table_uri}: cannot read the table: {message}") from error
        raise InputError(f"SQL: {message}") from error


def _run_row(run: RunInfo) -> dict[str, Any]:
    counts = {route: run.routes.get(route, 0) for route in get_args(Route)}
    return {name: counts[name] if name in counts else getattr(run, name) for name in _RUNS_SCHEMA.names}
