"""The runs of a table, read from its Delta log: each publish leaves its run's facts in the commit it makes."""

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
from stable_sam.storage.files import check_table_uri, delta_options
from stable_sam.storage.s3 import whole
from stable_sam.table.schema import LATER_COLUMNS, MASKS_SCHEMA

RUN_KEY = "stable_sam_run"
"""Key of the run in the metadata of its commit."""
REVIEW_MODEL = "review"
"""`model_id` of a run that people made, by an import; `review:NAME` where it is known who."""
COMMIT_ATTEMPTS = 8
"""At the next version of a table, which somebody else may write first, or whose answer may be lost."""
_PAUSE = 0.2
"""Seconds before the second attempt, then doubled."""
_RECENT = 20
"""Commits looked at first for the newest run: between two runs lie at most a few compactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A published run, as its Delta commit tells it."""

    run_id: str
    revision: int
    content_hash: str
    parent_run_id: str | None
    rows: int
    failed: int
    routes: dict[str, int]
    """Rows by route."""
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
    """Random token of the driver whose commit it was."""
    source_hash: str = ""
    """Hash of all prompts of the source and of the versions of their images, whether or not they were refined."""
    source_version: str | None = None
    """Hash of the versions of everything that was read; the same again means that nothing has changed."""
    current_prompts: int | None = None
    """Prompts that are current since this run."""
    changes: dict[str, int] = field(default_factory=dict)
    """Prompts by what was done with them: the fields of `stable_sam.records.Changes`."""
    actor_seconds: float | None = None
    """What its shards took, summed; None when not all of them said."""
    stage_seconds: dict[str, float] | None = None
    """The same by stage of `timing.STAGES`, each of them; seconds of threads, also of those beside the model's."""
    jitter_count: int | None = None
    """K behind each prompt_stability of the run: only equal K and scale compare. None for a run of an older version."""
    jitter_scale: float | None = None
    """Noise scale of the K moved prompts."""
    stability_offset: float | None = None
    """Logit offset of each stability_score. None for a run of an older version."""
    tiles: str | None = None
    """`RefinerConfig.tile_rule`: which objects were asked in tiles. None: none were."""
    truth_uri: str | None = None
    """True masks that the run was scored against; None where it was not. What follows: see `truth_score.TruthScore`."""
    truth_matched: int | None = None
    truth_mean_iou: float | None = None
    truth_share_75: float | None = None
    truth_images: int | None = None
    truth_ap: float | None = None
    truth_ap50: float | None = None
    truth_ap75: float | None = None
    version: int
    """Delta version that this run made: open the table at it to see what readers saw after this run."""
    published_at: datetime

    @property
    def is_review(self) -> bool:
        """Whether people made it: no night, and nothing of it was refined."""
        return is_review(self.model_id)


def is_review(model_id: str) -> bool:
    """Whether rows with this `model_id` are what people decided."""
    return model_id.partition(":")[0] == REVIEW_MODEL


def pause_after(attempt: int) -> None:
    """Wait before the attempt at a commit that follows this one; the first is 0."""
    time.sleep(_PAUSE * 2**attempt)


def open_table(output_uri: str) -> DeltaTable | None:
    """Open the newest version of the table; None when there is none yet.

    Raises `StorageError`, also for a table of another software or of a newer version of this one; `ConfigError` as
    `check_table_uri`.
    """
    check_table_uri(output_uri)
    try:
        table: DeltaTable = whole(DeltaTable, output_uri, storage_options=delta_options(output_uri))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise storage_error(output_uri, "cannot open the table", error) from error
    _check_columns(table)
    return table


def go_back(table: DeltaTable, as_of: str) -> None:
    """Load what readers of `table` saw at a moment: an ISO date (its first moment) or timestamp, UTC unless it says
    otherwise; after the run of this id; or at this Delta version.

    Raises `InputError` when `as_of` is none of these, `NotFoundError` when the table did not exist yet, `StorageError`.
    """
    version = _version_at(table, as_of)
    try:
        whole(table.load_as_version, version)
    except (DeltaError, OSError) as error:
        raise storage_error(table.table_uri, f"cannot open version {version}", error) from error


def versions_since(table: DeltaTable, moment: datetime) -> list[int]:
    """The versions that readers could open at `moment` or later, in ascending order. Raises `StorageError`."""
    commits = sorted(_history(table), key=lambda commit: int(commit["version"]))
    before = [index for index, commit in enumerate(commits) if _when(commit) <= moment]
    return [int(commit["version"]) for commit in commits[max(before, default=0) :]]


def list_runs(table: DeltaTable, limit: int | None = None) -> list[RunInfo]:
    """Published runs, newest first, found in the newest `limit` commits (None: in all). Raises `StorageError`."""
    return [_run(table, commit) for commit in _history(table, limit) if RUN_KEY in commit]


def newest_run(output_uri: str) -> RunInfo | None:
    """The run that was published last; None when there is no table. Raises `StorageError`, also for a foreign table."""
    table = open_table(output_uri)
    runs = [] if table is None else recent_runs(table)
    return runs[0] if runs else None


def recent_runs(table: DeltaTable) -> list[RunInfo]:
    """The newest runs, newest first; none only when there are none at all.

    Reads the log as it is now, which may be newer than `table`. Raises `StorageError`.
    """
    return list_runs(table, _RECENT) or list_runs(table)


def storage_error(uri: str, what: str, error: Exception) -> StorageError:
    """One line of what the Delta library tells in many, with colours and a percent-encoded URI."""
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
    """The newest commits, newest first, at least `limit` of them; the log may be newer than `table`."""
    try:
        commits = whole(table.history, limit)
    except (DeltaError, OSError) as error:
        raise storage_error(table.table_uri, "cannot read the table's history", error) from error
    # deltalake numbers them from the version of `table`, although they come from the log as it is now.
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
        moment = datetime.fromisoformat(as_of)
    except ValueError as error:
        raise InputError(
            f"as of {as_of}: expected a run_id, a version, or an ISO date or timestamp such as 2026-11-22T06:00"
        ) from error
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    seen = [version for version, commit in zip(versions, commits, strict=True) if _when(commit) <= moment]
    if not seen:
        first = min(map(_when, commits)).isoformat(timespec="seconds")
        raise NotFoundError(f"as of {as_of}: expected a moment since the table's first version, {first}")
    return max(seen)


def _when(commit: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(commit["timestamp"] / 1000, tz=UTC)


def _newer(table: DeltaTable, what: str) -> StorageError:
    return StorageError(
        f"{unquote(table.table_uri)}: the table was written by a newer version of stable-sam, this one does not know "
        f"its {what}: install that version"
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
