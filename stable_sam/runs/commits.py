"""Finished shards: a Parquet part under a name of its own, then one create-only commit record that makes it count.

    <output>/data/<run_id>/<shard_id>-<owner>.parquet      never overwritten; without a commit record it does not exist
    <output>/_runs/<run_id>/commits/<shard_id>.json        the first writer's stands, so each row counts once
    <output>/_runs/<run_id>/publishing/<owner>             a driver reads the records, to publish what they refer to

Whoever dies or is late between the two leaves at most a part that nobody refers to; `stable-sam vacuum` removes it.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.errors import ConservationError, NotFoundError, StorageError
from stable_sam.records import Prompt, RefinedMask
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_shard_table
from stable_sam.storage.files import create_bytes, list_files, read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.schema import MASKS_SCHEMA, mask_table, withdrawn_rows
from stable_sam.timing import timed
from stable_sam.wording import counted

PUBLISHING = "publishing"
_READERS = 16
"""Commit records that are read at the same time, because each is small and costs a round trip."""
_TEXT_THAT_REPEATS = [
    field.name
    for field in MASKS_SCHEMA
    if field.type == pa.string() and field.name not in ("prompt_id", "fingerprint", "mask_counts", "attributes")
]
"""Columns that are dictionary-encoded. Ids and run lengths never repeat, so trying to encode them would only take time.
"""
_FLOATS = {
    path: "BYTE_STREAM_SPLIT"
    for field in MASKS_SCHEMA
    for inner, path in (
        (pa.float64(), field.name),
        (pa.list_(pa.float64()), f"{field.name}.list.element"),
        (pa.list_(pa.list_(pa.float64())), f"{field.name}.list.element.list.element"),
    )
    if field.type == inner
}
PARQUET_OPTIONS: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": _TEXT_THAT_REPEATS,
    "column_encoding": _FLOATS,
}
"""Options of the Parquet files that hold rows of MASKS_SCHEMA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """Says that a shard is done and where its rows are."""

    shard_id: str
    part: str
    """Path of the Parquet file, relative to the table."""
    size: int
    """Size of the Parquet file in bytes."""
    rows: int
    failed: int
    images: int
    routes: dict[str, int]
    """Number of rows by route."""
    owner: str
    """Random token of the writer, which tells its record from another writer's record with the same figures."""
    seconds: float | None = None
    """Seconds that the actor spent on the shard; None in records of older versions and of tombstones."""
    stage_seconds: Mapping[str, float] | None = None
    """Seconds by stage of `timing.STAGES`, without the commit of this record; None in records of older versions and of
    tombstones."""


def write_part(
    manifest: RunManifest,
    shard: ShardPlan,
    rows: Sequence[tuple[Prompt, RefinedMask]],
    *,
    seconds: float | None = None,
    stage_seconds: Mapping[str, float] | None = None,
) -> tuple[CommitRecord, bool]:
    """Store the rows of a shard and commit them. Returns the record that is valid and whether this call made it.

    When another writer was first, its record is valid and these rows are dropped: both made them from the same content.
    seconds: time that making the rows took.
    stage_seconds: the same by stage; the time of writing is added to it in the record.
    Raises `ConservationError` unless `rows` has exactly one row for each prompt of the shard, and `StorageError`.
    """
    _check_rows(shard, rows)
    with timed("write", shard.shard_id) as made:
        table = mask_table(rows, manifest.provenance(shard.shard_id))
    if stage_seconds is not None:
        stage_seconds = {**stage_seconds, "write": made.seconds}
    routes = Counter(mask.route for _, mask in rows if mask.route is not None)
    failed = sum(mask.status == "failed" for _, mask in rows)
    routed: dict[str, int] = dict(sorted(routes.items()))
    return _commit(manifest, shard, table, failed=failed, routes=routed, seconds=seconds, stage_seconds=stage_seconds)


def write_tombstones(manifest: RunManifest, shard: ShardPlan) -> tuple[CommitRecord, bool]:
    """Store and commit a row of status "withdrawn" for each prompt of one of the manifest's `tombstones`.

    The fields of the prompt are as they last were; mask and scores are null. Returns what `write_part` returns. Raises
    `StorageError`.
    """
    table = withdrawn_rows(read_shard_table(shard.uri), manifest.provenance(shard.shard_id))
    return _commit(manifest, shard, table, failed=0, routes={}, seconds=None, stage_seconds=None)


def commit_of(manifest: RunManifest, shard_id: str) -> CommitRecord | None:
    """Read the commit record of a shard; None while it has none. Raises `StorageError`."""
    try:
        return _read_record(_record_uri(manifest, shard_id))
    except NotFoundError:
        return None


def announce_publish(manifest: RunManifest, owner: str) -> None:
    """Leave a file that says that `owner` is about to read the commit records for publishing; raises `StorageError`.

    A vacuum removes records, then looks for such files, then removes parts. So either the publishing driver finds
    records missing, or the vacuum finds its file and leaves the parts.
    """
    write_bytes(join(manifest.folder_uri, PUBLISHING, owner), b"")


def committed(manifest: RunManifest) -> dict[str, CommitRecord]:
    """Read the commit records of all finished shards, which a resumed run need not refine again, by shard_id.

    Raises `StorageError`.
    """
    uris = [uri for uri in list_files(_commits_uri(manifest)) if uri.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as readers:
        records = list(readers.map(_read_record, uris))
    return {record.shard_id: record for record in records}


def _check_rows(shard: ShardPlan, rows: Sequence[tuple[Prompt, RefinedMask]]) -> None:
    distinct = len({prompt.prompt_id for prompt, _ in rows})
    if not len(rows) == distinct == shard.prompts:
        raise ConservationError(
            f"{shard.uri}: expected one row for each of {counted(shard.prompts, 'prompt')}, "
            f"got {counted(len(rows), 'row')} of {counted(distinct, 'prompt')}"
        )


def _commit(
    manifest: RunManifest, shard: ShardPlan, table: pa.Table, *, failed: int, routes: dict[str, int],
    seconds: float | None, stage_seconds: Mapping[str, float] | None,
) -> tuple[CommitRecord, bool]:  # fmt: skip
    owner = uuid.uuid4().hex
    part = f"data/{manifest.run_id}/{shard.shard_id}-{owner}.parquet"
    with timed("write", shard.shard_id) as written:
        data = _parquet(manifest, table)
        write_bytes(join(manifest.output_uri, part), data)
    if stage_seconds is not None:
        total = {**stage_seconds, "write": stage_seconds.get("write", 0.0) + written.seconds}
        stage_seconds = {stage: round(taken, 6) for stage, taken in total.items()}
    record = CommitRecord(
        shard_id=shard.shard_id,
        part=part,
        size=len(data),
        rows=table.num_rows,
        failed=failed,
        images=shard.images,
        routes=routes,
        owner=owner,
        seconds=seconds,
        stage_seconds=stage_seconds,
    )
    uri = _record_uri(manifest, shard.shard_id)
    with timed("commit", shard.shard_id):
        created = create_bytes(uri, json.dumps(asdict(record)).encode())
    if created:
        return record, True
    return _read_record(uri), False


def _parquet(manifest: RunManifest, table: pa.Table) -> bytes:
    # Scores are comparable only when they were made alike, so the file says how.
    source = asdict(manifest.model.score_source(manifest.config.refiner))
    table = table.replace_schema_metadata({name: str(value) for name, value in source.items() if value is not None})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **PARQUET_OPTIONS)
    return buffer.getvalue()


def _commits_uri(manifest: RunManifest) -> str:
    return join(manifest.folder_uri, "commits")


def _record_uri(manifest: RunManifest, shard_id: str) -> str:
    return join(_commits_uri(manifest), f"{shard_id}.json")


def _read_record(uri: str) -> CommitRecord:
    data = read_bytes(uri)
    try:
        raw: Mapping[str, Any] = json.loads(data)
        return CommitRecord(**raw)
    except (ValueError, TypeError) as error:
        raise StorageError(f"{uri}: expected a commit record of this version of stable-sam: {error}") from error
