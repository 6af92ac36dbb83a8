"""Is a night being made? An import that is published meanwhile would take its place, and all its work would be lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stable_sam.data.manifest import read_manifest
from stable_sam.data.runs import RunInfo, is_review
from stable_sam.data.storage import iter_files, join
from stable_sam.errors import ConfigError, StorageError

STILL = timedelta(minutes=30)
"""A night that wrote nothing for so long is taken for dead: a shard takes a minute or so."""


def check_no_night(table_uri: str, newest: RunInfo) -> None:
    """Raise `ConfigError` when a run that continues the newest one was worked on a moment ago."""
    touched: dict[str, datetime] = {}
    for file in iter_files(join(table_uri, "_runs")):
        run_id = file.path.partition("/")[0]
        touched[run_id] = max(file.modified, touched.get(run_id, file.modified))
    now = datetime.now(UTC)
    for run_id, when in touched.items():
        if run_id != newest.run_id and when > now - STILL and _continues(table_uri, run_id, newest):
            minutes = max(0, int((now - when).total_seconds() // 60))
            raise ConfigError(
                f"{table_uri}: run {run_id} is being made (it wrote {minutes} min ago) and could not be published "
                "after an import: import when it is through, or by force, and start it again"
            )


def _continues(table_uri: str, run_id: str, newest: RunInfo) -> bool:
    try:
        manifest = read_manifest(join(table_uri, "_runs", run_id, "manifest.json"))
    except StorageError:
        return False  # of another version, or not there yet
    return manifest.parent_run_id == newest.run_id and not is_review(manifest.model.model_id)
