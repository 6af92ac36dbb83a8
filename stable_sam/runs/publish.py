"""Publishes a run: adds its committed parts to the Delta table in the output folder, as one version."""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyarrow.dataset import FileSystemDataset, ParquetFileFormat
from pyarrow.fs import PyFileSystem

from stable_sam.errors import ConservationError, StorageError
from stable_sam.runs.commits import CommitRecord, announce_publish, committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.truth_score import score_run
from stable_sam.storage.files import delta_options, list_files
from stable_sam.storage.uris import absolute_uri, join
from stable_sam.table.current import count_with
from stable_sam.table.log import (
    COMMIT_ATTEMPTS,
    RUN_KEY,
    RunInfo,
    list_runs,
    open_table,
    pause_after,
    recent_runs,
    storage_error,
)
from stable_sam.table.schema import MASKS_SCHEMA
from stable_sam.timing import summed
from stable_sam.wording import counted

CONFIGURATION: Mapping[str, str | None] = {
    # Old log entries must stay, because the runs are read from the log.
    "delta.enableExpiredLogCleanup": "false",
    # When a file has statistics of only some columns, readers take those of the others for null and wrongly skip rows.
    # A column of nulls never has statistics. So no file has any, neither a run's parts nor compacted files.
    "delta.dataSkippingNumIndexedCols": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What publishing a run did, or an earlier call had done."""

    version: int
    """Delta version of the table that this run made."""
    rows: int
    failed: int
    routes: dict[str, int]
    """Number of rows by route."""
    already_published: bool
    """Whether an earlier call or another driver had already published this run."""


def publish(manifest: RunManifest, *, commit_seconds: float = 0.0) -> PublishReport:
    """Make all rows of a run visible at once. Another call, also by another driver, changes nothing more.

    commit_seconds: seconds that creating the commit records took, as far as the caller knows.
    Raises `ConservationError` when a shard is not committed, its part is missing, the number of rows is not that of the
    prompts and tombstones, or the number of current prompts afterwards is not that of the source; `StorageError` when
    another run was published since this one was planned, or the store fails.
    """
    publisher = uuid.uuid4().hex
    announce_publish(manifest, publisher)
    records = committed(manifest)
    _check_run(manifest, records)
    run = _run_facts(manifest, records, publisher, commit_seconds)
    checked = False
    for attempt in range(COMMIT_ATTEMPTS):
        table = open_table(manifest.output_uri)
        published = None if table is None else _published(table, manifest)
        if published is not None:
            return _report(published, already_published=published.publisher != run["publisher"])
        if not checked:
            _check_table(manifest, table, records)
            run |= _score(manifest, table, records)
            checked = True
        try:
            _add(manifest, table, records, run)
        except (DeltaError, OSError) as error:
            # Another writer was first to write this version, or the store's answer was lost. The next attempt begins
            # by looking at the table.
            if attempt == COMMIT_ATTEMPTS - 1:
                raise storage_error(manifest.output_uri, f"cannot publish run {manifest.run_id}", error) from error
            pause_after(attempt)
    raise StorageError(f"{manifest.output_uri}: run {manifest.run_id} was published, but the table does not have it")


def _check_run(manifest: RunManifest, records: Mapping[str, CommitRecord]) -> None:
    """Check, from the commit records, that every prompt and every tombstone of the plan is one committed row."""
    planned = {shard.shard_id: shard for shard in (*manifest.shards, *manifest.tombstones)}
    missing = sorted(planned.keys() - records.keys())
    if missing or records.keys() - planned.keys():
        raise ConservationError(
            f"{manifest.folder_uri}: expected commit records of {counted(len(planned), 'planned shard')}, "
            f"got {len(planned) - len(missing)}, and {len(records.keys() - planned.keys())} that were not planned; "
            f"missing: {', '.join(missing[:3]) or 'none'}{' ...' if len(missing) > 3 else ''}"
        )
    for shard_id, record in records.items():
        if record.rows != planned[shard_id].prompts:
            raise ConservationError(
                f"{manifest.folder_uri}: shard {shard_id}: expected {counted(planned[shard_id].prompts, 'row')}, "
                f"got {record.rows}"
            )
    rows = sum(record.rows for record in records.values())
    if rows != manifest.rows:
        raise ConservationError(f"{manifest.folder_uri}: expected {counted(manifest.rows, 'row')}, got {rows}")
    stored = set(list_files(join(manifest.output_uri, "data", manifest.run_id)))
    for record in records.values():
        if join(manifest.output_uri, record.part) not in stored:
            raise ConservationError(
                f"{join(manifest.output_uri, record.part)}: expected the committed part, found none"
            )


def _check_table(manifest: RunManifest, table: DeltaTable | None, records: Mapping[str, CommitRecord]) -> None:
    """Check, from the rows themselves, that each prompt of the source is current once when the parts are added."""
    try:
        rows, distinct, current = count_with(table, _parts(manifest, records))
    except (DeltaError, OSError) as error:
        raise storage_error(manifest.output_uri, f"cannot read the rows of run {manifest.run_id}", error) from error
    if not rows == distinct == manifest.rows:
        raise ConservationError(
            f"{manifest.folder_uri}: expected one row for each of {counted(manifest.rows, 'prompt')}, "
            f"got {counted(rows, 'row')} of {counted(distinct, 'prompt')}"
        )
    if current != manifest.current_prompts:
        raise ConservationError(
            f"{manifest.output_uri}: expected {counted(manifest.current_prompts, 'current prompt')} after run "
            f"{manifest.run_id}, as many as in {manifest.annotations_uri}, got {current}"
        )


def _score(manifest: RunManifest, table: DeltaTable | None, records: Mapping[str, CommitRecord]) -> dict[str, Any]:
    """Score the rows with their true masks; empty when the run was given no truth."""
    if manifest.config.truth_uri is None:
        return {}
    try:
        score = score_run(manifest, table, _parts(manifest, records))
    except (DeltaError, OSError) as error:
        raise storage_error(manifest.output_uri, f"cannot read the rows of run {manifest.run_id}", error) from error
    return {"truth_uri": absolute_uri(manifest.config.truth_uri), **asdict(score)}


def _parts(manifest: RunManifest, records: Mapping[str, CommitRecord]) -> FileSystemDataset:
    return FileSystemDataset.from_paths(
        sorted(record.part for record in records.values()),
        schema=MASKS_SCHEMA,
        format=ParquetFileFormat(),
        filesystem=PyFileSystem(DeltaStorageHandler(manifest.output_uri, delta_options(manifest.output_uri))),
    )


def _published(table: DeltaTable, manifest: RunManifest) -> RunInfo | None:
    """Return this run as it stands in the log; None when it may still be added.

    Raises `StorageError` when another run was published since this one was planned.
    """
    # The log can be newer than `table`. Adding then rightly fails because its version exists already.
    runs = recent_runs(table)
    newest = runs[0].run_id if runs else None
    if newest == manifest.parent_run_id:
        return None
    for run in [*runs, *list_runs(table)]:
        if run.run_id == manifest.run_id:
            return run
    raise StorageError(
        f"{manifest.output_uri}: run {manifest.run_id} continues run {manifest.parent_run_id}, but the newest run "
        f"is now {newest}: another run was published meanwhile; start this one again"
    )


def _add(
    manifest: RunManifest, table: DeltaTable | None, records: Mapping[str, CommitRecord], run: Mapping[str, Any]
) -> None:
    actions = [
        AddAction(
            path=record.part,
            size=record.size,
            partition_values={},
            modification_time=0,
            data_change=True,
            # Only the number of rows; CONFIGURATION says why columns have no statistics.
            stats=json.dumps({"numRecords": record.rows}),
        )
        for _, record in sorted(records.items())
    ]
    properties = CommitProperties(
        custom_metadata={RUN_KEY: dict(run)},
        # Delta would retry an append on top of any other commit, even on top of one that added this same run.
        max_commit_retries=0,
    )
    if table is not None:
        _add_columns(table)
        table.create_write_transaction([*actions], "append", MASKS_SCHEMA, commit_properties=properties)
        return
    create_table_with_add_actions(
        manifest.output_uri,
        Schema.from_arrow(MASKS_SCHEMA),
        actions,
        mode="error",
        configuration=CONFIGURATION,
        storage_options=delta_options(manifest.output_uri),
        commit_properties=properties,
    )


def _add_columns(table: DeltaTable) -> None:
    """Add the columns that a table of an older version lacks; they are null in its rows."""
    there = {field.name for field in table.schema().fields}
    missing = [field for field in Schema.from_arrow(MASKS_SCHEMA).fields if field.name not in there]
    if missing:
        table.alter.add_columns(missing)


def _run_facts(
    manifest: RunManifest, records: Mapping[str, CommitRecord], publisher: str, commit_seconds: float
) -> dict[str, Any]:
    """Collect the fields of RunInfo that are written when the run is published."""
    routes: Counter[str] = Counter()
    for record in records.values():
        routes.update(record.routes)
    seconds = [records[shard.shard_id].seconds for shard in manifest.shards]
    return {
        "run_id": manifest.run_id,
        "revision": manifest.revision,
        "content_hash": manifest.content_hash,
        "parent_run_id": manifest.parent_run_id,
        "rows": manifest.rows,
        "failed": sum(record.failed for record in records.values()),
        "routes": dict(sorted(routes.items())),
        "images": manifest.images,
        "annotations_uri": manifest.annotations_uri,
        "images_uri": manifest.images_uri,
        "model_id": manifest.model.model_id,
        "weights_sha256": manifest.model.weights_sha256,
        "config_hash": manifest.config_hash,
        "code_version": manifest.code_version,
        "dtype": manifest.model.dtype,
        "logical_date": manifest.logical_date,
        "source_hash": manifest.source_hash,
        "source_version": manifest.source_version,
        "current_prompts": manifest.current_prompts,
        "changes": asdict(manifest.changes),
        "actor_seconds": None if None in seconds else math.fsum(second for second in seconds if second is not None),
        "stage_seconds": summed([records[shard.shard_id].stage_seconds for shard in manifest.shards], commit_seconds),
        "jitter_count": manifest.config.refiner.jitter_count,
        "jitter_scale": manifest.config.refiner.jitter_scale,
        "stability_offset": manifest.config.refiner.stability_offset,
        "tiles": manifest.config.refiner.tile_rule,
        "publisher": publisher,
    }


def _report(run: RunInfo, *, already_published: bool) -> PublishReport:
    return PublishReport(
        version=run.version, rows=run.rows, failed=run.failed, routes=run.routes, already_published=already_published
    )
