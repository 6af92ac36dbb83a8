"""Publishing: the committed parts of a run become one version of the Delta table, which is the output folder itself."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from stable_sam.data.commits import CommitRecord, committed
from stable_sam.data.manifest import RunManifest
from stable_sam.data.runs import RUN_KEY, RunInfo, list_runs, newest_run, open_table, recent_runs, storage_error
from stable_sam.data.schema import MASKS_SCHEMA
from stable_sam.data.storage import delta_options, join, list_files
from stable_sam.errors import ConservationError, StorageError

__all__ = ["PublishReport", "RunInfo", "newest_run", "publish"]

_ATTEMPTS = 8
_PAUSE = 0.2
"""Seconds before the second attempt, then doubled."""
_CONFIGURATION: Mapping[str, str | None] = {
    # The runs are read from the log, so old log entries must stay.
    "delta.enableExpiredLogCleanup": "false",
    # Where a file has statistics of some columns, readers compare the others with null and skip rows that are there,
    # and an all-null column never has any. So no column has them: not in a run's files, not after a compaction.
    "delta.dataSkippingNumIndexedCols": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What a publish did, or found done."""

    version: int
    """Delta version of the table that this run made."""
    rows: int
    failed: int
    routes: dict[str, int]
    """Rows by route."""
    already_published: bool
    """True when an earlier call, or another driver, had published this run."""


def publish(manifest: RunManifest) -> PublishReport:
    """Make all rows of a run visible at once; calling it again, or from two drivers, changes nothing more.

    Raises `ConservationError` when a shard is not committed, its part is missing, or the rows are not as many as the
    prompts; `StorageError` when another run was published since this one was planned, or the store fails.
    """
    records = committed(manifest)
    _check_conservation(manifest, records)
    run = _run_facts(manifest, records)
    for attempt in range(_ATTEMPTS):
        table = open_table(manifest.output_uri)
        published = None if table is None else _published(table, manifest)
        if published is not None:
            return _report(published, already_published=published.publisher != run["publisher"])
        try:
            _add(manifest, table, records, run)
        except (DeltaError, OSError) as error:
            # Somebody else wrote this version, or the answer was lost: look at the table before another attempt.
            if attempt == _ATTEMPTS - 1:
                raise storage_error(manifest.output_uri, f"cannot publish run {manifest.run_id}", error) from error
            time.sleep(_PAUSE * 2**attempt)
    raise StorageError(f"{manifest.output_uri}: published run {manifest.run_id}, but cannot find it in the table")


def _check_conservation(manifest: RunManifest, records: Mapping[str, CommitRecord]) -> None:
    planned = {shard.shard_id: shard for shard in manifest.shards}
    missing = sorted(planned.keys() - records.keys())
    if missing or records.keys() - planned.keys():
        raise ConservationError(
            f"{manifest.folder_uri}: expected commit records of {len(planned)} planned shards, "
            f"got {len(planned) - len(missing)}, and {len(records.keys() - planned.keys())} that were not planned; "
            f"missing: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    for shard_id, record in records.items():
        if record.rows != planned[shard_id].prompts:
            raise ConservationError(
                f"{manifest.folder_uri}: shard {shard_id}: expected {planned[shard_id].prompts} rows, got {record.rows}"
            )
    rows = sum(record.rows for record in records.values())
    if rows != manifest.prompts:
        raise ConservationError(f"{manifest.folder_uri}: expected {manifest.prompts} rows, got {rows}")
    stored = set(list_files(join(manifest.output_uri, "data", manifest.run_id)))
    for record in records.values():
        if join(manifest.output_uri, record.part) not in stored:
            raise ConservationError(
                f"{join(manifest.output_uri, record.part)}: expected the committed part, found none"
            )


def _published(table: DeltaTable, manifest: RunManifest) -> RunInfo | None:
    """This run as the log tells it, None when it may be added; raises `StorageError` when it may no longer."""
    # The log can be newer than `table`. Then adding meets a version that exists, and fails, which is right.
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
            # Nothing but the count: see _CONFIGURATION.
            stats=json.dumps({"numRecords": record.rows}),
        )
        for _, record in sorted(records.items())
    ]
    properties = CommitProperties(
        custom_metadata={RUN_KEY: dict(run)},
        # Delta would retry an append on top of whatever came between, also on top of this very run.
        max_commit_retries=0,
    )
    if table is not None:
        table.create_write_transaction([*actions], "append", MASKS_SCHEMA, commit_properties=properties)
        return
    create_table_with_add_actions(
        manifest.output_uri,
        Schema.from_arrow(MASKS_SCHEMA),
        actions,
        mode="error",
        configuration=_CONFIGURATION,
        storage_options=delta_options(manifest.output_uri),
        commit_properties=properties,
    )


def _run_facts(manifest: RunManifest, records: Mapping[str, CommitRecord]) -> dict[str, Any]:
    """The fields of RunInfo that publishing writes."""
    routes: Counter[str] = Counter()
    for record in records.values():
        routes.update(record.routes)
    return {
        "run_id": manifest.run_id,
        "revision": manifest.revision,
        "content_hash": manifest.content_hash,
        "parent_run_id": manifest.parent_run_id,
        "rows": manifest.prompts,
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
        "publisher": uuid.uuid4().hex,
    }


def _report(run: RunInfo, *, already_published: bool) -> PublishReport:
    return PublishReport(
        version=run.version, rows=run.rows, failed=run.failed, routes=run.routes, already_published=already_published
    )
