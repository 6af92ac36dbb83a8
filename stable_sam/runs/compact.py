"""Compacts a table: rewrites its many small parts as a few large files, which separate current from past rows.

Only data files change. Every earlier version still reads as before, `history` has the same rows, and queries of current
rows no longer read past rows (see `stable_sam.table.layout`). Runs may be published at the same time: when a publish
comes first, the compaction commits its files on top of it, and the other way round.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from stable_sam.errors import ConservationError, NotFoundError, StorageError
from stable_sam.runs.commits import PARQUET_OPTIONS
from stable_sam.storage.files import remove_files, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.current import newest_revisions
from stable_sam.table.layout import COMPACTED, layout, paths_of, subset
from stable_sam.table.log import COMMIT_ATTEMPTS, open_table, pause_after, storage_error
from stable_sam.table.schema import MASKS_SCHEMA
from stable_sam.wording import counted

TARGET_BYTES = 128 * 2**20
"""Size of a compacted file: large enough that opening it costs little compared with reading, and small enough to be
built in memory."""
_COMPACTION_KEY = "stable_sam_compaction"
_ROW_GROUP = 50_000
"""Rows of a row group, which a filter skips or reads as a whole."""
_MEMORY_LIMIT = "1GB"
"""Memory that DuckDB may take before it spills to disk."""
_BUCKET_ROWS = 200_000
"""Least rows of a bucket, which is sorted as a whole; more when there would be more than `_MAX_BUCKETS` buckets."""
_MAX_BUCKETS = 64
# Current rows are sorted by image and past rows by run, so that a query finds its rows in few row groups. Rows are
# wide: their places are computed from the keys alone, each row is written to its bucket on disk, and one bucket at a
# time is sorted.
_PLACES = f"""
    CREATE TABLE places AS
    WITH newest AS ({newest_revisions("candidates")}), keys AS (
        SELECT rows.prompt_id, rows.revision, image_uri, image_id,
               status = 'withdrawn' OR rows.revision < newest.revision AS is_past
        FROM candidates rows JOIN newest ON rows.prompt_id = newest.prompt_id
        UNION ALL SELECT prompt_id, revision, image_uri, image_id, true FROM past
    )
    SELECT prompt_id, revision, is_past, row_number() OVER (
        PARTITION BY is_past ORDER BY CASE WHEN is_past THEN revision END, image_uri, image_id, prompt_id
    ) AS place FROM keys
"""
_BUCKETS = """
    COPY (
        SELECT rows.* REPLACE (coalesce(moved.image_uri, rows.image_uri) AS image_uri,
                               coalesce(moved.fingerprint, rows.fingerprint) AS fingerprint),
               is_past, place, place // {bucket_rows} AS bucket
        FROM (SELECT * FROM candidates UNION ALL SELECT * FROM past) rows JOIN places
        ON rows.prompt_id = places.prompt_id AND rows.revision = places.revision
        LEFT JOIN moved ON rows.prompt_id = moved.prompt_id AND rows.revision = moved.revision
    ) TO '{folder}' (FORMAT parquet, PARTITION_BY (is_past, bucket))
"""


MOVED = "CREATE TABLE moved(prompt_id VARCHAR, revision BIGINT, image_uri VARCHAR, fingerprint VARCHAR)"
"""Rows that get another image_uri and fingerprint, which only `stable_sam.runs.move_images` fills in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did."""

    version: int | None
    """Delta version that the compaction made; None when there was nothing to do."""
    rows: int = 0
    """Number of rows that were rewritten."""
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


def compact(
    table_uri: str, *, target_bytes: int = TARGET_BYTES, move: Callable[[duckdb.DuckDBPyConnection], int] | None = None
) -> CompactReport:
    """Rewrite the current rows and the parts of all runs since the last compaction as files of about `target_bytes`.

    Files of past rows are only rewritten when several of them are small. The old files stay for older versions and
    their readers until `vacuum`. A compaction that was killed leaves files that no version refers to.

    move: fills the table `moved` from `candidates`, which has all rows that may be current, and returns its number of
    rows; these are rewritten even when nothing else has to be. With 0 nothing happens.
    Raises `NotFoundError` when there is no table, `ConservationError` when the number of rewritten rows is not the
    table's, and `StorageError`, also when another compaction was faster.
    """
    table = open_table(table_uri)
    if table is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    try:
        return _compact(table, table_uri, target_bytes, move)
    except (DeltaError, OSError, duckdb.Error, pa.ArrowException) as error:
        raise storage_error(table_uri, "cannot compact the table", error) from error


def _compact(
    table: DeltaTable, table_uri: str, target_bytes: int, move: Callable[[duckdb.DuckDBPyConnection], int] | None
) -> CompactReport:
    files = layout(table)
    known = _files(table)
    small = [path for path in paths_of(files.past) if known[path][0] < target_bytes / 2]
    past = small if len(small) > 1 else []
    later = paths_of(files.later)
    if not later and not past and move is None:
        return CompactReport(version=None)
    # Past rows stay past. Without later rows and rows to move, the current files stay as they are.
    candidates = [*paths_of(files.current), *later] if later or move else []
    removed = [*candidates, *past]
    expected = sum(known[path][1] for path in removed)
    folder = f"{COMPACTED}{uuid.uuid4().hex}"
    with (
        tempfile.TemporaryDirectory(prefix="stable-sam-compact-") as spill,
        duckdb.connect(config={"memory_limit": _MEMORY_LIMIT, "temp_directory": spill}) as connection,
    ):
        connection.register("candidates", subset(files.history, candidates))
        connection.register("past", subset(files.history, past))
        connection.execute(MOVED)
        if move is not None and move(connection) == 0:
            return CompactReport(version=None)
        connection.execute(_PLACES)
        bucket_rows = max(_BUCKET_ROWS, math.ceil(expected / _MAX_BUCKETS))
        connection.execute(_BUCKETS.format(bucket_rows=bucket_rows, folder=f"{spill}/buckets"))
        adds = []
        for name, is_past in (("current", "false"), ("past", "true")):
            batches = _sorted(connection, Path(spill, "buckets", f"is_past={is_past}"))
            adds += list(_write(batches, table_uri, f"{folder}/{name}", target_bytes, data_change=move is not None))
    rows = sum(_rows(add) for add in adds)
    if rows != expected:
        remove_files(table_uri, [add.path for add in adds])
        raise ConservationError(
            f"{table_uri}: expected {counted(expected, 'row')} after compaction, got {rows}; nothing changed"
        )
    version = _commit(table, table_uri, adds, {path: known[path][0] for path in removed})
    return CompactReport(
        version=version,
        rows=rows,
        files_before=len(removed),
        files_after=len(adds),
        bytes_before=sum(known[path][0] for path in removed),
        bytes_after=sum(add.size for add in adds),
    )


def _files(table: DeltaTable) -> dict[str, tuple[int, int]]:
    """Return size in bytes and number of rows of the table's files, by path."""
    actions = pa.table(table.get_add_actions())
    columns = (actions.column(name).to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {path: (size, rows) for path, size, rows in zip(*columns, strict=True)}


def _sorted(connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of MASKS_SCHEMA in the buckets of `folder`, in the order of their places."""
    columns = ", ".join(MASKS_SCHEMA.names)
    for bucket in sorted(folder.glob("bucket=*"), key=lambda path: int(path.name.partition("=")[2])):
        sql = f"SELECT {columns} FROM read_parquet('{bucket}/*.parquet') ORDER BY place"
        yield from connection.sql(sql).to_arrow_reader(_ROW_GROUP)


def _write(
    batches: Iterator[pa.RecordBatch], table_uri: str, path: str, target_bytes: int, *, data_change: bool
) -> Iterator[AddAction]:
    for number in count():
        rows, buffer = 0, io.BytesIO()
        with pq.ParquetWriter(buffer, MASKS_SCHEMA, **PARQUET_OPTIONS) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(MASKS_SCHEMA))
                rows += batch.num_rows
                if buffer.tell() >= target_bytes:
                    break
        if not rows:
            return
        add = AddAction(
            path=f"{path}-{number:05}.parquet",
            size=buffer.tell(),
            partition_values={},
            modification_time=_now(),
            data_change=data_change,
            # Only the number of rows: columns have no statistics, for the reason given in publish.py's CONFIGURATION.
            stats=json.dumps({"numRecords": rows}),
        )
        write_bytes(join(table_uri, add.path), buffer.getvalue())
        yield add


def _commit(table: DeltaTable, table_uri: str, adds: Sequence[AddAction], removed: dict[str, int]) -> int:
    removes = [
        RemoveAction(path, data_change=adds[0].data_change, deletion_timestamp=_now(), size=size, partition_values={})
        for path, size in removed.items()
    ]
    properties = CommitProperties(
        custom_metadata={_COMPACTION_KEY: {"removed": len(removes), "added": len(adds)}},
        # Before a retry, this function has to look at what another writer committed.
        max_commit_retries=0,
    )
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            table.create_write_transaction([*adds, *removes], "append", table.schema(), commit_properties=properties)
        except (DeltaError, OSError):
            if attempt == COMMIT_ATTEMPTS - 1:
                raise
        else:
            return table.version() + 1
        pause_after(attempt)
        # Another writer was first to write this version, or the store's answer was lost.
        newest = open_table(table_uri)
        there = set() if newest is None else set(_files(newest))
        if newest is not None and adds[0].path in there:
            return table.version() + 1
        if newest is None or not there.issuperset(removed):
            remove_files(table_uri, [add.path for add in adds])
            raise StorageError(f"{table_uri}: another compaction was faster; this one changed nothing")
        table = newest
    raise AssertionError("the last attempt returns or raises")


def _rows(add: AddAction) -> int:
    return int(json.loads(add.stats)["numRecords"])


def _now() -> int:
    return time.time_ns() // 1_000_000
