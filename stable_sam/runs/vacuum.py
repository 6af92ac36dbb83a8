"""Vacuum: remove the files that no reader and no run needs any more.

What is needed, however old it is:
    every file of the versions that readers could open within the retention, the newest above all
    the newest plan that continues the newest run: it can be taken up at any time, so its manifest, its shards, its
    commit records and all its parts stay, committed or not
    the folder of the newest run

What else lies in places that only this software writes to, and was not touched within the retention, is removed: parts
of killed actors, parts that a compaction replaced, killed compactions, folders of published and of abandoned runs,
probes and partial files. Other files are never looked at. A run without publishing counts as touched as long as any of
its files is young.

An abandoned run may be taken up at the very moment at which it is removed (its source is again as it was then). No row
is lost: what is removed under a driver makes its run fail, by a missing shard or commit record, and the next start
plans it anew; a driver that is past that, because it has read all commit records to publish them, has said so before
(`announce_publish`), and its parts stay.
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
from stable_sam.storage.files import PARTIAL_SUFFIX, join, list_files, list_stored, remove_files
from stable_sam.storage.listing import StoredFile
from stable_sam.table.layout import layout, paths_of
from stable_sam.table.log import RunInfo, list_runs, open_table, storage_error, versions_since

RETENTION_HOURS = 168.0
MIN_RETENTION_HOURS = 24.0
"""Longer than a query runs, a shard is refined, a night is planned or a table compacted: these have files that nobody
refers to yet, and age is all that tells them from those of the dead."""
MAX_RETENTION_HOURS = 1_000_000
"""More than a century."""

Kind = Literal["part", "run", "leftover"]
_PLACES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    # First: a partial file may lie anywhere. The log's own are named after the version, or by a random number.
    ("leftover", re.compile(rf"(.*/)?\.[0-9a-f]{{32}}{re.escape(PARTIAL_SUFFIX)}")),
    ("leftover", re.compile(r"_probe-[0-9a-f]{32}")),
    ("leftover", re.compile(r"_delta_log/(_commit_[0-9a-f-]+\.json\.tmp|[^/]+#\d+)")),
    ("run", re.compile(r"_runs/(?P<run>[^/]+)/.+")),
    ("part", re.compile(r"data/(?P<run>[^/]+)/[^/]+\.parquet")),
    ("part", re.compile(r"data/compacted/[^/]+/[^/]+\.parquet")),
    # Where other software that rewrote the table puts its files.
    ("part", re.compile(r"part-[^/]+\.parquet")),
)
_ORDER = ("manifest.json", "commits/", "")
"""Below a run's folder. Whenever this is interrupted, what is left is a run that can be planned again: never a manifest
without shards, nor a commit record without its part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VacuumReport:
    """What was removed, or with `dry_run` would be: by kind, the files."""

    parts: tuple[StoredFile, ...]
    """Parquet files that no version within the retention refers to."""
    runs: tuple[StoredFile, ...]
    """Manifests, shards and commit records of runs that are over."""
    leftovers: tuple[StoredFile, ...]
    """Probes and partial files."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All of them."""
        return (*self.leftovers, *self.runs, *self.parts)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(file.size for file in self.files)


def vacuum(
    table_uri: str, *, retention_hours: float = RETENTION_HOURS, dry_run: bool = False, force: bool = False
) -> VacuumReport:
    """Remove what nobody needs and nobody touched for `retention_hours`; older versions can then no longer be read.

    Safe beside refine, publish, compact and readers. A retention below `MIN_RETENTION_HOURS` needs `force` and is safe
    only while none of them runs (a run that was interrupted is safe all the same). dry_run: nothing is removed.
    Raises `ConfigError` for a retention that is too short, `NotFoundError` when there is neither a table nor a run,
    `StorageError`.
    """
    _check_retention(retention_hours, force)
    cutoff = datetime.now(UTC) - timedelta(hours=retention_hours)
    # The listing comes before the log: what becomes part of the table in between is then known to be live.
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
            f"retention of {hours:g} hours: expected at least {MIN_RETENTION_HOURS:g}, or force while nothing else "
            "uses the table: files of running work would look like those of the dead"
        )


def _place(path: str) -> Iterable[tuple[Kind, re.Match[str]]]:
    """What a file of ours is; nothing for one that is not."""
    for kind, pattern in _PLACES:
        found = pattern.fullmatch(path)
        if found is not None:
            return ((kind, found),)
    return ()


def _kept_runs(
    table_uri: str, runs: Sequence[RunInfo], by_run: Mapping[str, Collection[StoredFile]], cutoff: datetime
) -> dict[Kind, set[str]]:
    """Runs of which everything of a kind stays."""
    newest = runs[0].run_id if runs else None
    published = {run.run_id: run for run in runs}
    folders, parts = ({newest} if newest is not None else set[str]()), set[str]()
    plans: list[tuple[datetime, str]] = []
    for run_id, files in by_run.items():
        young = any(file.modified >= cutoff for file in files)
        if run_id in published:
            # A driver that published it a moment ago may still read its folder.
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
    """Whether a run can still be published: it was planned on top of the newest one, by this version."""
    try:
        return read_manifest(manifest_uri).parent_run_id == newest
    except StorageError:
        return False


def _live_paths(table: DeltaTable, cutoff: datetime) -> set[str]:
    """Files of the version that readers saw at `cutoff` and of all later ones."""
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
    """Remove what is `dead`, and take from it the parts that turned out to be needed meanwhile."""
    remove_files(table_uri, [file.path for file in dead["leftover"]])
    rest = [file.path for file in dead["run"]]
    for step in _ORDER:
        now = [path for path in rest if path.split("/", 2)[2].startswith(step)]
        remove_files(table_uri, now)
        rest = [path for path in rest if path not in set(now)]
    # A driver may have taken up an abandoned run since its folder was looked at, and published it, or be about to.
    abandoned = {file.path.split("/")[1] for file in dead["run"]}.difference(published)
    taken_up = {run for run in abandoned if list_files(join(table_uri, "_runs", run, PUBLISHING))}
    needed = tuple(f"data/{run}/" for run in taken_up)
    table = open_table(table_uri)
    live = set() if table is None else set(paths_of(layout(table).history))
    dead["part"] = [file for file in dead["part"] if file.path not in live and not file.path.startswith(needed)]
    remove_files(table_uri, [file.path for file in dead["part"]])
