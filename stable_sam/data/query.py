"""SQL over a published table, by DuckDB: views `masks`, `history` and `runs`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from stable_sam.data.layout import layout, paths_of
from stable_sam.data.runs import RunInfo, go_back, list_runs, open_table, storage_error
from stable_sam.errors import InputError, NotFoundError, StableSamError, StorageError
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
        ("current_prompts", pa.int64()),
        ("annotations_uri", pa.string()),
        ("images_uri", pa.string()),
        ("model_id", pa.string()),
        ("weights_sha256", pa.string()),
        ("config_hash", pa.string()),
        ("code_version", pa.string()),
        ("dtype", pa.string()),
        ("jitter_count", pa.int64()),
        ("jitter_scale", pa.float64()),
        ("content_hash", pa.string()),
    ]
)

_NEWEST = """
    SELECT * FROM (SELECT * FROM {rows} QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY revision DESC) = 1)
    WHERE status <> 'withdrawn'
"""


def query(table_uri: str, sql: str, *, as_of: str | None = None) -> pa.Table:
    """Run one SQL statement and return its rows.

    Views: `history`, all rows of all runs (columns: `stable_sam.data.schema.MASKS_SCHEMA`; those that a table of an
    older version lacks are null); `masks`, of each prompt_id the row of the newest revision, without those whose
    annotation was withdrawn; `runs`, one row for each published run. Only the columns and, where DuckDB can push the
    filter down, the rows that are asked for get read. What is published meanwhile is not seen.
    as_of: what readers saw then: a run_id (after that run), a Delta version, or an ISO date (its first moment) or
    timestamp, UTC unless it says otherwise; None: now. Reaches as far back as `vacuum` left the files.
    Raises `NotFoundError` when there is no table, or none yet; `InputError` when the SQL or `as_of` is wrong;
    `StorageError`.
    """
    with connected(table_uri, as_of=as_of) as connection:
        relation = connection.sql(sql)
        if relation is None:
            raise InputError("SQL: expected a query, got nothing to run")
        return relation.to_arrow_table()


@contextmanager
def connected(table_uri: str, *, as_of: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """The connection on which `query` runs, for what is too large to be held or asks more than once.

    Errors of DuckDB become those that `query` raises.
    """
    table = open_table(table_uri)
    if table is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    if as_of is not None:
        go_back(table, as_of)
    # The log may be newer than the rows.
    runs = [run for run in list_runs(table) if run.version <= table.version()]
    with (
        tempfile.TemporaryDirectory(prefix="stable-sam-query-") as folder,
        duckdb.connect(config=_sandbox(folder)) as connection,
    ):
        try:
            _make_views(connection, table, runs)
            yield connection
        except duckdb.Error as error:
            raise _sql_error(error, table_uri) from error
        except (DeltaError, OSError) as error:
            raise storage_error(table_uri, "cannot read the table", error) from error
        except StorageError as error:
            if as_of is None:
                raise
            raise StorageError(f"{error} (older versions can be read until vacuum removes their files)") from error


def _make_views(connection: duckdb.DuckDBPyConnection, table: DeltaTable, runs: list[RunInfo]) -> None:
    files = layout(table)
    connection.register("runs", pa.Table.from_pylist([_run_row(run) for run in runs], schema=_RUNS_SCHEMA))
    connection.register("history", files.history)
    if not paths_of(files.current):
        # One run has each prompt once and withdraws none.
        masks = "SELECT * FROM history" if len(runs) == 1 else _NEWEST.format(rows="history")
    else:
        connection.register("_compacted", files.current)
        connection.register("_nights", files.nights)
        untouched = "SELECT * FROM _compacted ANTI JOIN (SELECT prompt_id FROM _nights) USING (prompt_id)"
        masks = f"{untouched} UNION ALL {_NEWEST.format(rows='_nights')}"
    connection.execute(f"CREATE VIEW masks AS {masks}")


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


def _sql_error(error: duckdb.Error, table_uri: str) -> StableSamError:
    # What follows is the statement again, with a marker that means nothing outside a terminal's columns.
    message = " ".join(str(error).partition("\n\nLINE ")[0].split())[:300]
    if re.search("registered as '\\w+' failed", message):
        return StorageError(f"{table_uri}: cannot read the table: {message}")
    return InputError(f"SQL: {message}")


def _run_row(run: RunInfo) -> dict[str, Any]:
    counts = {route: run.routes.get(route, 0) for route in get_args(Route)}
    return {name: counts[name] if name in counts else getattr(run, name) for name in _RUNS_SCHEMA.names}
