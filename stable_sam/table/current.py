"""Finds the current rows of a table by SQL, and loads the current prompts into DuckDB to compare a source with them.

Of the rows with one prompt_id, the row with the highest revision is current, unless it says that the annotation was
withdrawn.

DuckDB then has two relations:
candidates  all rows of the table that can be current (see layout.py)
live        prompt_id, revision, prompt_hash, image_hash and flags of the current rows
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
from deltalake import DeltaTable
from pyarrow.dataset import Dataset

from stable_sam.errors import StorageError, one_line
from stable_sam.table.fingerprint import STORED_IMAGE_HASH, STORED_PROMPT_HASH
from stable_sam.table.layout import layout, paths_of
from stable_sam.table.schema import MASKS_SCHEMA

NEWEST_FIRST = "row_number() OVER (PARTITION BY prompt_id ORDER BY revision DESC)"
"""SQL that numbers the rows of each prompt_id: 1 is the newest row, 2 the one before it, and so on."""
CURRENT = f"SELECT * FROM history QUALIFY {NEWEST_FIRST} = 1 AND status <> 'withdrawn'"
"""SQL of the current rows for engines that know only the view `history`. Our own queries read fewer files, as
`stable_sam.table.layout` allows."""
MADE_BEFORE_REVIEW = f"""
    SELECT * FROM history SEMI JOIN (SELECT prompt_id FROM masks WHERE status = 'reviewed') USING (prompt_id)
    WHERE status = 'ok' QUALIFY {NEWEST_FIRST} = 1
"""
"""SQL of the rows that were reviewed: for each prompt that is reviewed now, the newest row that a model made."""
FAILED, OTHER_MODEL, OTHER_CODE, REVIEWED = 1, 2, 4, 8
"""Bits of `flags`: the row failed, was made with another model or config than `Maker` says, was made by another version
of this software, or holds what a reviewer decided."""
_MEMORY_LIMIT = "800MB"
"""Memory that DuckDB may take before it spills to disk."""


def newest_revisions(rows: str) -> str:
    """Return SQL for the prompt_id and revision of the newest row of each prompt in the relation `rows`.

    DuckDB pushes any filter through a join with it, but only filters of prompt_id through a window function.
    """
    return f"SELECT prompt_id, max(revision) AS revision FROM {rows} GROUP BY prompt_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """The model, config and software version of a run, with which those of existing rows are compared."""

    model_id: str
    weights_sha256: str
    dtype: str
    config_hash: str
    code_version: str


@contextmanager
def workspace() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with bounded memory and a folder to spill to, which is removed at the end.

    Errors of DuckDB become a `StorageError`: the table cannot be read, or the folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="stable-sam-plan-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": folder,
            "python_enable_replacements": False,
            "preserve_insertion_order": False,  # every query that needs an order has an ORDER BY
        }
        try:
            with duckdb.connect(config=config) as connection:
                yield connection
        except duckdb.Error as error:
            raise StorageError(f"{folder}: cannot compare source and table: {one_line(error)[:300]}") from error


def load_live(connection: duckdb.DuckDBPyConnection, table: DeltaTable | None, maker: Maker | None = None) -> int:
    """Make the relations `candidates` and `live` and return the number of current prompts.

    maker: what OTHER_MODEL and OTHER_CODE compare with; None sets neither of them.
    """
    files = None if table is None else layout(table)
    nothing = MASKS_SCHEMA.empty_table()
    connection.register("compacted", nothing if files is None else files.current)
    connection.register("later", nothing if files is None else files.later)
    connection.execute("CREATE VIEW candidates AS SELECT * FROM compacted UNION ALL SELECT * FROM later")
    flags = f"CASE status WHEN 'failed' THEN {FAILED} WHEN 'reviewed' THEN {REVIEWED} ELSE 0 END"
    parameters: list[str] = []
    if maker is not None:
        flags += (
            f" + CASE WHEN (model_id, weights_sha256, dtype, config_hash) IS DISTINCT FROM ($1, $2, $3, $4) "
            f"THEN {OTHER_MODEL} ELSE 0 END + CASE WHEN code_version <> $5 THEN {OTHER_CODE} ELSE 0 END"
        )
        parameters = [maker.model_id, maker.weights_sha256, maker.dtype, maker.config_hash, maker.code_version]
    # Rows without a fingerprint have a null, which arg_max would skip in favour of an older row's value. So 0 stands
    # for "no fingerprint".
    columns = f"""
        prompt_id, revision, {flags} AS flags, status = 'withdrawn' AS withdrawn,
        coalesce({STORED_PROMPT_HASH}, 0)::UBIGINT AS prompt_hash,
        coalesce({STORED_IMAGE_HASH}, 0)::UBIGINT AS image_hash
    """
    untouched = ""
    if files is not None and paths_of(files.current):
        # Without files in `current` this part would only open the files in `later` a second time.
        untouched = f"""
            UNION ALL BY NAME
            SELECT {columns} FROM compacted ANTI JOIN (SELECT prompt_id FROM later) USING (prompt_id)
        """
    connection.execute(
        f"""
        CREATE TABLE live AS
        SELECT prompt_id, revision, nullif(prompt_hash, 0) AS prompt_hash, image_hash, flags FROM (
            SELECT prompt_id, max(revision) AS revision,
                   arg_max(prompt_hash, revision) AS prompt_hash,
                   arg_max(image_hash, revision) AS image_hash,
                   arg_max(flags, revision) AS flags,
                   arg_max(withdrawn, revision) AS withdrawn
            FROM (SELECT {columns} FROM later)
            GROUP BY prompt_id
            {untouched}
        )
        WHERE NOT withdrawn
        """,
        parameters,
    )
    return int(first_row(connection, "SELECT count(*) FROM live")[0])


def count_with(table: DeltaTable | None, added: Dataset) -> tuple[int, int, int]:
    """Count the rows of `added`, their distinct prompts, and the current prompts of the table once `added` is in it."""
    with workspace() as connection:
        load_live(connection, table)
        connection.register("added_rows", added)
        connection.execute("CREATE TABLE added AS SELECT prompt_id, status = 'withdrawn' AS gone FROM added_rows")
        rows, distinct, there = first_row(
            connection, "SELECT count(*), count(DISTINCT prompt_id), count(*) FILTER (NOT gone) FROM added"
        )
        (untouched,) = first_row(connection, "SELECT count(*) FROM live ANTI JOIN added USING (prompt_id)")
    return rows, distinct, there + untouched


def first_row(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Run a query that has exactly one row and return this row."""
    (row,) = connection.execute(sql, parameters).fetchall()
    return tuple(row)
