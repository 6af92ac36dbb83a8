"""Runs SQL over a published table in DuckDB, which has `masks`, `history`, `runs` and all views of views.py."""

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

from stable_sam.errors import ConfigError, InputError, NotFoundError, StableSamError, StorageError, one_line
from stable_sam.records import Route
from stable_sam.table.current import newest_revisions
from stable_sam.table.layout import layout
from stable_sam.table.log import RunInfo, go_back, list_runs, open_table, storage_error
from stable_sam.table.views import make_views
from stable_sam.timing import STAGES

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
        ("stability_offset", pa.float64()),
        ("tiles", pa.string()),
        ("truth_uri", pa.string()),
        ("truth_matched", pa.int64()),
        ("truth_mean_iou", pa.float64()),
        ("truth_share_75", pa.float64()),
        ("truth_images", pa.int64()),
        ("truth_ap", pa.float64()),
        ("truth_ap50", pa.float64()),
        ("truth_ap75", pa.float64()),
        ("content_hash", pa.string()),
        ("actor_seconds", pa.float64()),
        *((f"{stage}_seconds", pa.float64()) for stage in STAGES),
    ]
)

MEMORY_LIMIT = "2GB"
"""Memory that DuckDB may take before it spills to disk. The answer takes further memory."""

EXACT_MEDIANS_ROWS = 2_000_000
"""For tables with more rows `score_median` is estimated by a t-digest, because an exact median keeps all values in
memory and cannot spill."""

_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.PRAGMA, duckdb.StatementType.CALL)
_OF_OTHERS = (duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)
"""EXPLAIN ANALYZE runs what it explains, and PIVOT, which is several statements, may stand in a COPY."""

_MASKS = f"""
    SELECT * FROM _current ANTI JOIN (SELECT prompt_id FROM _later) USING (prompt_id)
    UNION ALL
    SELECT * FROM _later SEMI JOIN ({newest_revisions("_later")}) USING (prompt_id, revision)
    WHERE status <> 'withdrawn'
"""


def query(table_uri: str, sql: str, *, as_of: str | None = None, memory_limit: str = MEMORY_LIMIT) -> pa.Table:
    """Run one SQL statement and return its rows.

    The views are `history`, all rows of all runs (columns of `stable_sam.table.schema.MASKS_SCHEMA`, null where a table
    of an older version lacks them); `masks`, the row of the newest revision of each prompt_id unless its annotation was
    withdrawn; `runs`, one row for each published run; and those of `stable_sam.table.views`. A query reads only the
    columns and, where DuckDB can push its filter down, the rows that it needs. It does not see runs that are published
    while it runs.

    as_of: queries the table as readers saw it then: a run_id (after that run), a Delta version, an ISO date (its first
    moment) or an ISO timestamp, in UTC unless it has an offset. None queries the newest version. It reaches as far back
    as `vacuum` kept the files.
    memory_limit: memory that DuckDB may take, such as "500MB" or "4GB", before it spills to a temporary folder.
    Raises `NotFoundError` when there is no table, or none at `as_of`; `InputError` when the SQL or `as_of` is wrong;
    `ConfigError` when the memory limit is wrong or too low; and `StorageError`.
    """
    with connected(table_uri, as_of=as_of, memory_limit=memory_limit) as connection:
        check_reads(sql)
        make_views(connection, sql)
        relation = connection.sql(sql)
        if relation is None:
            raise InputError("SQL: expected a query, got a statement without rows")
        return relation.to_arrow_table()


@contextmanager
def connected(
    table_uri: str, *, as_of: str | None = None, memory_limit: str = MEMORY_LIMIT
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the connection on which `query` runs, for several queries or for an answer too large to be held.

    It has `masks`, `history` and `runs`; `stable_sam.table.views.make_views` adds the other views.
    Errors of DuckDB become those that `query` raises.
    """
    if re.fullmatch(r"[1-9][0-9]{0,4} ?[MGT]i?B", memory_limit) is None:
        raise ConfigError(f"memory limit {memory_limit!r}: expected a number and a unit, such as 500MB or 4GB")
    table = open_table(table_uri)
    if table is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    if as_of is not None:
        go_back(table, as_of)
    # The log is read as it is now, which may be newer than the version of the table.
    runs = [run for run in list_runs(table) if run.version <= table.version()]
    with (
        tempfile.TemporaryDirectory(prefix="stable-sam-query-") as folder,
        duckdb.connect(config=_sandbox(folder, memory_limit)) as connection,
        user_errors(table_uri, as_of=as_of, memory_limit=memory_limit),
    ):
        _make_views(connection, table, runs)
        yield connection


@contextmanager
def user_errors(table_uri: str, *, as_of: str | None = None, memory_limit: str = MEMORY_LIMIT) -> Iterator[None]:
    """Turn errors of DuckDB and deltalake over a table into those that `query` raises."""
    try:
        yield
    except duckdb.Error as error:
        raise _explained(_sql_error(error, table_uri, memory_limit), as_of) from error
    except (DeltaError, OSError) as error:
        raise _explained(storage_error(table_uri, "cannot read the table", error), as_of) from error
    except StorageError as error:
        if as_of is None:
            raise
        raise _explained(error, as_of) from error


def check_reads(sql: str) -> None:
    """Raise `InputError` unless all of `sql` only reads, and DuckDB's own errors when it is no SQL.

    The sandbox is not enough: it lets COPY write a file that is called `:memory:`, and EXPORT make a folder.
    """
    for statement in duckdb.extract_statements(sql):
        inner = statement.type in _OF_OTHERS and re.search(r"\b(COPY|EXPORT)\b", statement.query, re.IGNORECASE)
        if inner or statement.type not in (*_READING, *_OF_OTHERS):
            raise InputError(f"SQL: expected a query, got {statement.type.name}, which does not only read")


def rows_of(
    connection: duckdb.DuckDBPyConnection, sql: str, params: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Run a query with a small answer and return its rows, each as a mapping by column."""
    rows: list[dict[str, Any]] = connection.sql(sql, params=params).to_arrow_table().to_pylist()
    return rows


def _explained(error: StableSamError, as_of: str | None) -> StableSamError:
    if as_of is None or not isinstance(error, StorageError):
        return error
    return StorageError(f"{error} (older versions can be read until vacuum removes their files)")


def _make_views(connection: duckdb.DuckDBPyConnection, table: DeltaTable, runs: list[RunInfo]) -> None:
    files = layout(table, next((run.run_id for run in runs if run.parent_run_id is None), None))
    connection.register("runs", pa.Table.from_pylist([_run_row(run) for run in runs], schema=_RUNS_SCHEMA))
    connection.register("history", files.history)
    connection.register("_current", files.current)
    connection.register("_later", files.later)
    connection.execute(f"CREATE VIEW masks AS {_MASKS}")
    median = "median(x)" if sum(run.rows for run in runs) <= EXACT_MEDIANS_ROWS else "approx_quantile(x, 0.5)"
    connection.execute(f"CREATE MACRO score_median(x) AS {median}")


def _sandbox(folder: str, memory_limit: str) -> dict[str, Any]:
    """Configure DuckDB so that SQL reads the registered views and nothing else, and cannot change this configuration.

    SQL has no access to files, the network, extensions or Python variables of this process. What does not fit into
    memory is spilled to `folder`, the only place that DuckDB may touch.
    """
    return {
        "python_enable_replacements": False,
        "enable_external_access": False,
        "autoload_known_extensions": False,
        "temp_directory": folder,
        "memory_limit": memory_limit,
        # DuckDB does not know how many rows a dataset has: it would take a table of millions for the small side of a
        # join and hold it whole. In our views the small side is written on the right.
        "disabled_optimizers": "build_side_probe_side",
        "lock_configuration": True,
    }


def _sql_error(error: duckdb.Error, table_uri: str, memory_limit: str) -> StableSamError:
    if isinstance(error, duckdb.OutOfMemoryException):
        what = one_line(error).partition(" Possible solutions")[0].removeprefix("Out of Memory Error: ")
        return ConfigError(
            f"SQL: expected a query for which the memory limit of {memory_limit} is enough, got one that needs "
            f"more: {what[:200]}; raise the limit (--memory-limit) or query less"
        )
    # After "LINE" DuckDB repeats the statement with a marker that only fits in a terminal of fixed-width columns.
    message = " ".join(str(error).partition("\n\nLINE ")[0].split())[:300]
    if re.search("registered as '\\w+' failed", message):
        return StorageError(f"{table_uri}: cannot read the table: {message}")
    return InputError(f"SQL: {message}")


def _run_row(run: RunInfo) -> dict[str, Any]:
    inner: dict[str, Any] = {route: run.routes.get(route, 0) for route in get_args(Route)}
    inner |= {f"{stage}_seconds": (run.stage_seconds or {}).get(stage) for stage in STAGES}
    return {name: inner[name] if name in inner else getattr(run, name) for name in _RUNS_SCHEMA.names}


def in_sample(part: float) -> str:
    """Return an SQL condition on `prompt_id` that holds for this `part` of all prompts, above 0 and up to 1.

    A larger part contains every smaller one. Raises `ConfigError` for any other number.
    """
    if not 0 < part <= 1:
        raise ConfigError(f"sample: expected a part above 0 and up to 1, such as 0.05, got {part:g}")
    return "true" if part == 1 else f"substr(md5(prompt_id), 1, 8) < '{int(part * 2**32):08x}'"
