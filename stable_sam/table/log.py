"""Reads the runs of a table from its Delta log. Each published run is described in the metadata of its commit."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from stable_sam.errors import InputError, NotFoundError, StorageError
from stable_sam.storage.files import delta_options, exists, is_folder
from stable_sam.storage.s3 import whole
from stable_sam.storage.uris import check_table_uri
from stable_sam.table.schema import LATER_COLUMNS, MASKS_SCHEMA

RUN_KEY = "stable_sam_run"
"""Key of the run in the metadata of its commit."""
REVIEW_MODEL = "review"
"""`model_id` of a run that imported a review; `review:NAME` when the reviewer's name is known."""
COMMIT_ATTEMPTS = 8
"""Attempts to commit the next version of a table: another writer may be first, or the store's answer may be lost."""
_PAUSE = 0.2
"""Seconds before the second attempt; they double before each further one."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?![\d-])", re.ASCII)
"""The beginning of a date or time. Python also reads weeks, and dates without dashes, which look like versions."""
_RECENT = 20
"""Commits that are searched first for the newest run, because only a few compactions lie between two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A published run as its Delta commit describes it."""

    run_id: str
    revision: int
    content_hash: str
    parent_run_id: str | None
    rows: int
    failed: int
    routes: dict[str, int]
    """Number of rows by route."""
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
    """Random token of the driver that made the commit."""
    source_hash: str = ""
    """Hash of all prompts of the source, including those that were not refined, and of the versions of their images."""
    source_version: str | None = None
    """Hash of the versions of all files that were read. A later run that gets the same hash finds no changes."""
    current_prompts: int | None = None
    """Number of current prompts after this run."""
    changes: dict[str, int] = field(default_factory=dict)
    """Number of prompts by what was done with them, with the fields of `stable_sam.records.Changes`."""
    actor_seconds: float | None = None
    """Seconds that actors spent on the shards, summed; None when a shard did not record them."""
    stage_seconds: dict[str, float] | None = None
    """Seconds by stage, for every stage of `timing.STAGES`, summed over all threads; None when a shard did not record
    them."""
    jitter_count: int | None = None
    """Number K of jittered prompts behind each prompt_stability, which is comparable only between runs of equal K and
    scale. None for a run of an older version."""
    jitter_scale: float | None = None
    """Noise scale of the jittered prompts. None for a run of an older version."""
    stability_offset: float | None = None
    """Logit offset of each stability_score. None for a run of an older version."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule` of the run; None when all masks were made in the whole image."""
    truth_uri: str | None = None
    """True masks that the run was scored with; None when it was not. The next fields are those of
    `stable_sam.runs.truth_score.TruthScore`."""
    truth_matched: int | None = None
    truth_mean_iou: float | None = None
    truth_share_75: float | None = None
    truth_images: int | None = None
    truth_ap: float | None = None
    truth_ap50: float | None = None
    truth_ap75: float | None = None
    version: int
    """Delta version that this run made. The table opened at this version is what readers saw after this run."""
    published_at: datetime
    """Time of the run's Delta commit in UTC."""

    @property
    def is_review(self) -> bool:
        """Whether this run imported a review, so that it is no night and refined nothing."""
        return is_review(self.model_id)


def is_review(model_id: str) -> bool:
    """Tell whether rows with this `model_id` hold what a reviewer decided."""
    return model_id.partition(":")[0] == REVIEW_MODEL


def pause_after(attempt: int) -> None:
    """Wait after a failed attempt to commit, before the next one. The first attempt has number 0."""
    time.sleep(_PAUSE * 2**attempt)


def open_table(output_uri: str) -> DeltaTable | None:
    """Open the newest version of the table; returns None when there is no table yet.

    Raises `StorageError`, also for a table that other software or a newer version of this software wrote, and
    `ConfigError` like `check_table_uri`.
    """
    check_table_uri(output_uri)
    try:
        table: DeltaTable = whole(DeltaTable, output_uri, storage_options=delta_options(output_uri))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        if exists(output_uri) and not is_folder(output_uri):
            raise StorageError(f"{output_uri}: expected the folder of a masks table, got a file") from None
        raise storage_error(output_uri, "cannot open the table", error) from error
    _check_columns(table)
    return table


def go_back(table: DeltaTable, as_of: str) -> None:
    """Load the version of `table` that readers saw at an earlier moment.

    as_of: a run_id for the moment after that run, a Delta version, an ISO date for its first moment, or an ISO
    timestamp, in UTC unless it has an offset.
    Raises `InputError` when `as_of` is none of these, `NotFoundError` when the table did not exist yet, `StorageError`.
    """
    version = _version_at(table, as_of)
    try:
        whole(table.load_as_version, version)
    except (DeltaError, OSError) as error:
        raise storage_error(table.table_uri, f"cannot open version {version}", error) from error


def versions_since(table: DeltaTable, moment: datetime) -> list[int]:
    """Return, in ascending order, the versions that were the newest one at `moment` or later. Raises `StorageError`."""
    commits = sorted(_history(table), key=lambda commit: int(commit["version"]))
    before = [index for index, commit in enumerate(commits) if _when(commit) <= moment]
    return [int(commit["version"]) for commit in commits[max(before, default=0) :]]


def list_runs(table: DeltaTable, limit: int | None = None) -> list[RunInfo]:
    """Return the published runs of at least the newest `limit` commits, or of all commits, newest first.

    Raises `StorageError`.
    """
    return [_run(table, commit) for commit in _history(table, limit) if RUN_KEY in commit]


def newest_run(output_uri: str) -> RunInfo | None:
    """Return the run that was published last; None when there is no table.

    Raises `StorageError`, also for a table that stable-sam did not make.
    """
    table = open_table(output_uri)
    runs = [] if table is None else recent_runs(table)
    return runs[0] if runs else None


def recent_runs(table: DeltaTable) -> list[RunInfo]:
    """Return some of the newest runs, newest first. They are none only when the table has no runs at all.

    Reads the log as it is now, which may be newer than `table`. Raises `StorageError`.
    """
    return list_runs(table, _RECENT) or list_runs(table)


def storage_error(uri: str, what: str, error: Exception) -> StorageError:
    """Make a `StorageError` of one line from an error of deltalake, which has many lines and colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error))
    return StorageError(f"{unquote(uri)}: {what}: {' '.join(plain.split())[:300]}")


def _check_columns(table: DeltaTable) -> None:
    ours = {field.name: field.type for field in Schema.from_arrow(MASKS_SCHEMA).fields}
    there = {field.name: field.type for field in table.schema().fields}
    unlike = {name for name in ours if (name in there or name not in LATER_COLUMNS) and there.get(name) != ours[name]}
    if unlike:
        raise StorageError(
            f"{unquote(table.table_uri)}: expected a table that stable-sam made, got one without its columns "
            f"{_some(unlike)}"
        )
    if there.keys() - ours.keys():
        raise _newer(table, f"columns {_some(there.keys() - ours.keys())}")


def _run(table: DeltaTable, commit: Mapping[str, Any]) -> RunInfo:
    facts = commit[RUN_KEY]
    unknown = facts.keys() - {field.name for field in fields(RunInfo)}
    if unknown:
        raise _newer(table, f"facts {_some(unknown)} of run {facts.get('run_id')}")
    return RunInfo(**facts, version=commit["version"], published_at=_when(commit))


def _history(table: DeltaTable, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the newest commits, newest first: all of them or at least `limit`. The log may be newer than `table`."""
    try:
        commits = whole(table.history, limit)
    except (DeltaError, OSError) as error:
        raise storage_error(table.table_uri, "cannot read the table's history", error) from error
    # deltalake counts versions down from that of `table`, although the commits come from the log as it is now.
    up_to_table = table.version() + 1 if limit is None else min(limit, table.version() + 1)
    newest = table.version() + len(commits) - up_to_table
    return [{**commit, "version": newest - index} for index, commit in enumerate(commits)]


def _version_at(table: DeltaTable, as_of: str) -> int:
    commits = _history(table)
    versions = [int(commit["version"]) for commit in commits]
    for commit in commits:
        if commit.get(RUN_KEY, {}).get("run_id") == as_of:
            return int(commit["version"])
    if as_of.isdecimal():
        if int(as_of) not in versions:
            raise InputError(f"as of {as_of}: expected a version from {min(versions)} to {max(versions)}")
        return int(as_of)
    try:
        moment = iso_moment(as_of)
    except ValueError as error:
        raise InputError(
            f"as of {as_of}: expected a run_id, a version, or an ISO date or timestamp such as 2026-11-22T06:00"
        ) from error
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    seen = [version for version, commit in zip(versions, commits, strict=True) if _when(commit) <= moment]
    if not seen:
        first = min(map(_when, commits)).isoformat(timespec="seconds")
        raise NotFoundError(f"as of {as_of}: expected a moment since the table's first version of {first}")
    return max(seen)


def iso_moment(text: str) -> datetime:
    """Return the moment of YYYY-MM-DD or YYYY-MM-DDTHH:MM, with or without seconds and an offset.

    Raises `ValueError` for any other text, such as a week (2026-W01) or a date without dashes.
    """
    if _MOMENT.match(text) is None:
        raise ValueError(f"expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got {text!r}")
    return datetime.fromisoformat(text)


def _when(commit: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(commit["timestamp"] / 1000, tz=UTC)


def _newer(table: DeltaTable, what: str) -> StorageError:
    return StorageError(
        f"{unquote(table.table_uri)}: a newer version of stable-sam wrote the table, and this one does not know its "
        f"{what}; install the newer version"
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
