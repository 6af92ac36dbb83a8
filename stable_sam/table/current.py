"""Which rows of a table are current, in SQL; and the current prompts as a DuckDB table beside which others are laid.

Of the rows with one prompt_id the one with the highest revision is current, unless it says that the annotation was
withdrawn.

candidates  the table's rows that can be current (see layout.py), read column by column
live        prompt_id, revision, prompt_hash, image_hash, flags    the newest rows, without withdrawn ones
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
"""1 for the newest of the rows with one prompt_id, 2 for the one before it, and so on."""
CURRENT = f"SELECT * FROM history QUALIFY {NEWEST_FIRST} = 1 AND status <> 'withdrawn'"
"""The current rows, for engines that see all rows and nothing else. Ours reads less: see `stable_sam.table.layout`."""
MADE_BEFORE_REVIEW = f"""
    SELECT * FROM history SEMI JOIN (SELECT prompt_id FROM masks WHERE status = 'reviewed') USING (prompt_id)
    WHERE status = 'ok' QUALIFY {NEWEST_FIRST} = 1
"""
"""Of each prompt that is reviewed now, the row that was reviewed: the newest that a model made."""
FAILED, OTHER_MODEL, OTHER_CODE, REVIEWED = 1, 2, 4, 8
"""Bits of `flags`: the row failed; other weights or settings made it than `Maker` says; another version did; people
did, and what they decided stands."""
_MEMORY_LIMIT = "800MB"
"""What DuckDB may hold before it spills."""


def newest_revisions(rows: str) -> str:
    """SQL of prompt_id and revision of the newest of `rows` with each prompt_id.

    Filters pass a join with it; only those of prompt_id would pass a window function.
    """
    return f"SELECT prompt_id, max(revision) AS revision FROM {rows} GROUP BY prompt_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What a row must have been made by not to be another's."""

    model_id: str
    weights_sha256: str
    dtype: str
    config_hash: str
    code_version: str


@contextmanager
def workspace() -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with bounded memory and a folder to spill to, which is removed at the end.

    What DuckDB raises becomes a `StorageError`: the table cannot be read, or the folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="stable-sam-plan-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": folder,
            "python_enable_replacements": False,
            "preserve_insertion_order": False,  # whatever needs an order asks for it
        }
        try:
            with duckdb.connect(config=config) as connection:
                yield connection
        except duckdb.Error as error:
            raise StorageError(f"cannot compare source and table, in {folder}: {one_line(error)[:300]}") from error


def load_live(connection: duckdb.DuckDBPyConnection, table: DeltaTable | None, maker: Maker | None = None) -> int:
    """Make `candidates` and `live`; returns how many prompts are current. Without a `maker` no row is another's."""
    files = None if table is None else layout(table)
    nothing = MASKS_SCHEMA.empty_table()
    connection.register("compacted", nothing if files is None else files.current)
    connection.register("nights", nothing if files is None else files.nights)
    connection.execute("CREATE VIEW candidates AS SELECT * FROM compacted UNION ALL SELECT * FROM nights")
    flags = f"CASE status WHEN 'failed' THEN {FAILED} WHEN 'reviewed' THEN {REVIEWED} ELSE 0 END"
    parameters: list[str] = []
    if maker is not None:
        flags += (
            f" + CASE WHEN (model_id, weights_sha256, dtype, config_hash) IS DISTINCT FROM ($1, $2, $3, $4) "
            f"THEN {OTHER_MODEL} ELSE 0 END + CASE WHEN code_version <> $5 THEN {OTHER_CODE} ELSE 0 END"
        )
        parameters = [maker.model_id, maker.weights_sha256, maker.dtype, maker.config_hash, maker.code_version]
    # Rows of a table without fingerprints have a null. That of the newest row must not let an older row's value
    # through, as arg_max would; 0 stands for "none".
    columns = f"""
        prompt_id, revision, {flags} AS flags, status = 'withdrawn' AS withdrawn,
        coalesce({STORED_PROMPT_HASH}, 0)::UBIGINT AS prompt_hash,
        coalesce({STORED_IMAGE_HASH}, 0)::UBIGINT AS image_hash
    """
    untouched = ""
    if files is not None and paths_of(files.current):
        # Only then: the nights' files are opened once more for it.
        untouched = f"""
            UNION ALL BY NAME
            SELECT {columns} FROM compacted ANTI JOIN (SELECT prompt_id FROM nights) USING (prompt_id)
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
            FROM (SELECT {columns} FROM nights)
            GROUP BY prompt_id
            {untouched}
        )
        WHERE NOT withdrawn
        """,
        parameters,
    )
    return int(first_row(connection, "SELECT count(*) FROM live")[0])


def count_with(table: DeltaTable | None, added: Dataset) -> tuple[int, int, int]:
    """Rows and distinct prompts of `added`, and prompts that are current when these rows are in the table."""
    with workspace() as connection:
        load_live(connection, table)
        connection.register("added_rows", added)
        connection.execute("CREATE TABLE added AS SELECT prompt_id, status = 'withdrawn' AS gone FROM added_rows")
        rows, distinct, there = first_row(
            connection, "SELECT count(*), count(DISTINCT prompt_id), count(*) FILTER (NOT gone) FROM added"
        )
        (untouched,) = first_row(connection, "SELECT count(*) FROM live ANTI JOIN added USING (prompt_id)")
    return rows, distinct, there + untouched


def first_row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The row that a query of exactly one row gives."""
    (row,) = connection.execute(sql).fetchall()
    return tuple(row)
