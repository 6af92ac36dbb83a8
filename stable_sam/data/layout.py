"""Which files of a table can hold current rows.

    data/<run_id>/...                        parts of a run: each prompt_id at most once
    data/compacted/<id>/current-<n>.parquet  of each prompt_id the row that was current then, no withdrawn ones
    data/compacted/<id>/past-<n>.parquet     rows that were not: replaced by newer rows, or tombstones

A compaction takes up every row there is but those in earlier `past` files. So all rows of later parts are newer than
all `current` ones, and `past` rows are never current again. Files in other places, which other software made of these,
tell nothing; then every file may hold current rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deltalake import DeltaTable
from pyarrow.dataset import FileSystemDataset

from stable_sam.data.schema import MASKS_SCHEMA

COMPACTED = "data/compacted/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one version of a table, as Arrow datasets of MASKS_SCHEMA; older columns are null."""

    history: FileSystemDataset
    """All of them."""
    current: FileSystemDataset
    """Rows of which each is current unless `nights` has its prompt_id."""
    nights: FileSystemDataset
    """Rows that are newer than those of `current`, several for a prompt_id."""
    past: FileSystemDataset
    """Rows that are not current."""


def layout(table: DeltaTable) -> Layout:
    """Tell the files of `table` apart by their paths."""
    history = table.to_pyarrow_dataset(schema=MASKS_SCHEMA)
    paths = [fragment.path for fragment in history.get_fragments()]
    compacted = {path.rpartition("/")[0] for path in paths if _is(path, "current")}
    if len(compacted) > 1 or not all(path.startswith("data/") for path in paths):
        return Layout(history=history, current=subset(history, ()), nights=history, past=subset(history, ()))
    current = {path for path in paths if _is(path, "current")}
    past = {path for path in paths if _is(path, "past")}
    return Layout(
        history=history,
        current=subset(history, current),
        nights=subset(history, set(paths) - current - past),
        past=subset(history, past),
    )


def subset(rows: FileSystemDataset, paths: Iterable[str]) -> FileSystemDataset:
    """Those files of a dataset that lie at `paths`."""
    wanted = set(paths)
    fragments = [fragment for fragment in rows.get_fragments() if fragment.path in wanted]
    return FileSystemDataset(fragments, rows.schema, rows.format, rows.filesystem)


def paths_of(rows: FileSystemDataset) -> list[str]:
    """Paths of a dataset's files, relative to the table."""
    return [fragment.path for fragment in rows.get_fragments()]


def _is(path: str, kind: str) -> bool:
    return path.startswith(COMPACTED) and path.rpartition("/")[2].startswith(f"{kind}-")
