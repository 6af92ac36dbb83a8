"""Vacuums a table: removes the files that no reader and no run needs any more.

These files are kept, however old they are:
    all files of the versions that were the newest one at any time within the retention
    the newest plan that continues the newest run, which a driver can resume at any time: its manifest, its shards, its
    commit records and all its parts, committed or not
    the folder of the newest run

All other files in places that only this software writes to are removed when they were not modified within the
retention: parts of killed actors, parts that a compaction replaced, files of killed compactions, folders of published
and of abandoned runs, probes and partial files. Files in other places are never removed. All files of an unpublished
run are kept as long as one of them was modified within the retention.

A driver may resume an abandoned run (because its source is again as it was then) while its files are removed. No row is
lost. Either the driver's run fails because a shard or a commit record is missing, and the next start plans it anew; or
the driver has already read all commit records to publish them. It has then left a file that says so
(`announce_publish`), and the parts are kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from stable_sam.errors import ConfigError, NotFoundError, StorageError
from stable_sam.runs.commits import PUBLISHING
from stable_sam.runs.manifest import read_manifest
from stable_sam.storage.files import PARTIAL_SUFFIX, list_files, list_stored, remove_files
from stable_sam.storage.listing import StoredFile
from stable_sam.storage.uris import join
from stable_sam.table.layout import layout, paths_of
from stable_sam.table.log import RunInfo, list_runs, open_table, storage_error, versions_since

RETENTION_HOURS = 168.0
"""Age in hours from which files are removed unless another age is asked for."""
MIN_RETENTION_HOURS = 24.0
"""Longer than it takes to run a query, refine a shard, plan a run or compact a table. Their files are not yet referred
to, and only their age tells them from the files of killed processes."""
MAX_RETENTION_HOURS = 1_000_000
"""More than a century."""

Kind = Literal["part", "run", "leftover"]
_PLACES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    # Partial files come first, because they may lie anywhere. deltalake's have a version or a random number as name.
    ("leftover", re.compile(rf"(.*/)?\.[0-9a-f]{{32}}{re.escape(PARTIAL_SUFFIX)}")),
    ("leftover", re.compile(r"_probe-[0-9a-f]{32}")),
    ("leftover", re.compile(r"_delta_log/(_commit_[0-9a-f-]+\.json\.tmp|[^/]+#\d+)")),
    ("run", re.compile(r"_runs/(?P<run>[^/]+)/.+")),
    ("part", re.compile(r"data/(?P<run>[^/]+)/[^/]+\.parquet")),
    ("part", re.compile(r"data/compacted/[^/]+/[^/]+\.parquet")),
    # Other software that rewrites the table puts its files there.
    ("part", re.compile(r"part-[^/]+\.parquet")),
)
_ORDER = ("manifest.json", "commits/", "")
"""Order in which the files of a run's folder are removed. A run whose removal is interrupted can always be planned
again, because it never has a manifest without shards or a commit record without its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VacuumReport:
    """The files that were removed or, with `dry_run`, would be removed."""

    parts: tuple[StoredFile, ...]
    """Parquet files that no version within the retention refers to."""
    runs: tuple[StoredFile, ...]
    """Manifests, shards and commit records of runs that are over."""
    leftovers: tuple[StoredFile, ...]
    """Probes and partial files."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the report."""
        return (*self.leftovers, *self.runs, *self.parts)

    @property
    def size(self) -> int:
        """Size of all files together in bytes."""
        return sum(file.size for file in self.files)


def vacuum(
    table_uri: str, *, retention_hours: float = RETENTION_HOURS, dry_run: bool = False, force: bool = False
) -> VacuumReport:
    """Remove unneeded files that are older than `retention_hours`. Older versions can then no longer be read.

    Refine, publish, compact and readers may run at the same time. A retention below `MIN_RETENTION_HOURS` needs
    `force`, and is safe only while none of them runs; an interrupted run can still be resumed.
    dry_run: removes nothing.
    Raises `ConfigError` for a retention that is too short, `NotFoundError` when there is neither a table nor a run, and
    `StorageError`.
    """
    _check_retention(retention_hours, force)
    cutoff = datetime.now(UTC) - timedelta(hours=retention_hours)
    # Files are listed before the log is read, so that files added to the table in between are known to be live.
    listed = [(kind, found, file) for file in list_stored(table_uri) for kind, found in _place(file.path)]
    table = open_table(table_uri)
    if table is None and not any(kind == "run" for kind, _, _ in listed):
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a refine), found none")
    by_run: dict[str, list[StoredFile]] = defaultdict(list)
    for _, found, file in listed:
        if "run" in found.groupdict():
            by_run[found["run"]].append(file)
    published = [] if table is None else list_runs(table)
    kept = _kept_runs(table_uri, published, by_run, cutoff)
    live = set() if table is None else _live_paths(table, cutoff)
    dead: dict[Kind, list[StoredFile]] = {"part": [], "run": [], "leftover": []}
    for kind, found, file in listed:
        run = found.groupdict().get("run")
        if file.modified >= cutoff or file.path in live or (run is not None and run in kept.get(kind, ())):
            continue
        dead[kind].append(file)
    if not dry_run:
        _remove(table_uri, dead, {run.run_id for run in published})
    return VacuumReport(parts=tuple(dead["part"]), runs=tuple(dead["run"]), leftovers=tuple(dead["leftover"]))


def _check_retention(hours: float, force: bool) -> None:
    if not 0 <= hours <= MAX_RETENTION_HOURS:  # false of NaN, too
        raise ConfigError(f"retention of {hours:g} hours: expected a number from 0 to {MAX_RETENTION_HOURS:,}")
    if hours < MIN_RETENTION_HOURS and not force:
        raise ConfigError(
            f"retention of {hours:g} hours: expected at least {MIN_RETENTION_HOURS:g}, because files of running work "
            "look like those of killed processes; force a shorter one only while nothing else uses the table"
        )


def _place(path: str) -> Iterable[tuple[Kind, re.Match[str]]]:
    """Return the kind of a file that this software wrote, with the match of its path; empty for any other file."""
    for kind, pattern in _PLACES:
        found = pattern.fullmatch(path)
        if found is not None:
            return ((kind, found),)
    return ()


def _kept_runs(
    table_uri: str, runs: Sequence[RunInfo], by_run: Mapping[str, Collection[StoredFile]], cutoff: datetime
) -> dict[Kind, set[str]]:
    """Return the ids of the runs of which all files of a kind are kept."""
    newest = runs[0].run_id if runs else None
    published = {run.run_id: run for run in runs}
    folders, parts = ({newest} if newest is not None else set[str]()), set[str]()
    plans: list[tuple[datetime, str]] = []
    for run_id, files in by_run.items():
        young = any(file.modified >= cutoff for file in files)
        if run_id in published:
            # The driver that published the run may still be reading its folder.
            if young or published[run_id].published_at >= cutoff:
                folders.add(run_id)
            continue
        if young:
            folders.add(run_id)
            parts.add(run_id)
        manifest = f"_runs/{run_id}/manifest.json"
        planned = [file.modified for file in files if file.path == manifest]
        if planned and _continues(join(table_uri, manifest), newest):
            plans.append((planned[0], run_id))
    if plans:
        _, current = max(plans)
        folders.add(current)
        parts.add(current)
    return {"run": folders, "part": parts}


def _continues(manifest_uri: str, newest: str | None) -> bool:
    """Tell whether a run can still be published: this version of stable-sam planned it on top of the newest run."""
    try:
        return read_manifest(manifest_uri).parent_run_id == newest
    except StorageError:
        return False


def _live_paths(table: DeltaTable, cutoff: datetime) -> set[str]:
    """Return the paths of all files of the version that was the newest one at `cutoff` and of all later versions."""
    live = set(paths_of(layout(table).history))
    newest = table.version()
    for version in versions_since(table, cutoff):
        try:
            table.load_as_version(version)
            live.update(paths_of(layout(table).history))
        except (DeltaError, OSError) as error:
            raise storage_error(table.table_uri, f"cannot open version {version}", error) from error
    table.load_as_version(newest)
    return live


def _remove(table_uri: str, dead: dict[Kind, list[StoredFile]], published: Collection[str]) -> None:
    """Remove the files in `dead`, without the parts that a run has come to need meanwhile, which leave `dead`."""
    remove_files(table_uri, [file.path for file in dead["leftover"]])
    rest = [file.path for file in dead["run"]]
    for step in _ORDER:
        now = [path for path in rest if path.split("/", 2)[2].startswith(step)]
        remove_files(table_uri, now)
        rest = [path for path in rest if path not in set(now)]
    # A driver may have resumed an abandoned run since its folder was listed, and published it or be about to.
    abandoned = {file.path.split("/")[1] for file in dead["run"]}.difference(published)
    taken_up = {run for run in abandoned if list_files(join(table_uri, "_runs", run, PUBLISHING))}
    needed = tuple(f"data/{run}/" for run in taken_up)
    table = open_table(table_uri)
    live = set() if table is None else set(paths_of(layout(table).history))
    dead["part"] = [file for file in dead["part"] if file.path not in live and not file.path.startswith(needed)]
    remove_files(table_uri, [file.path for file in dead["part"]])
