"""Tells by their paths which files of a table can hold current rows.

    data/<run_id>/...                        parts of a run, in which each prompt_id occurs at most once
    data/compacted/<id>/current-<n>.parquet  the rows that were current at the compaction, one for each prompt_id
    data/compacted/<id>/past-<n>.parquet     the other rows, which newer rows had replaced, and tombstones

A compaction rewrites all rows except those in earlier `past` files. So all rows of later parts are newer than all
`current` rows, and `past` rows are never current again. Before the first compaction, the parts of the first run take
the place of the `current` files, because the first run withdraws nothing. When other software has rewritten files and
put them elsewhere, their paths say nothing, and every file may hold current rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.dataset import FileSystemDataset, ParquetFileFragment

from stable_sam.table.schema import MASKS_SCHEMA

COMPACTED = "data/compacted/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one version of a table, as Arrow datasets of MASKS_SCHEMA. Columns that a file lacks are null."""

    history: FileSystemDataset
    """All files."""
    current: FileSystemDataset
    """Files of rows that are current unless `later` has a row with the same prompt_id."""
    later: FileSystemDataset
    """Files of rows that are newer than those of `current`; several rows may have the same prompt_id."""
    past: FileSystemDataset
    """Files of rows that are not current."""


def layout(table: DeltaTable, first_run_id: str | None = None) -> Layout:
    """Divide the files of `table` by their paths.

    first_run_id: id of the table's first run, whose parts then count as `current` until the first compaction.
    """
    found = table.to_pyarrow_dataset(schema=MASKS_SCHEMA)
    history = _dataset(found, [_of_its_run(fragment) for fragment in found.get_fragments()])
    paths = paths_of(history)
    compacted = {path.rpartition("/")[0] for path in paths if _is(path, "current")}
    if len(compacted) > 1 or not all(path.startswith("data/") for path in paths):
        return Layout(history=history, current=subset(history, ()), later=history, past=subset(history, ()))
    current = {path for path in paths if _is(path, "current") or (not compacted and _run_of(path) == first_run_id)}
    past = {path for path in paths if _is(path, "past")}
    return Layout(
        history=history,
        current=subset(history, current),
        later=subset(history, set(paths) - current - past),
        past=subset(history, past),
    )


def subset(rows: FileSystemDataset, paths: Iterable[str]) -> FileSystemDataset:
    """Return the dataset of those files of `rows` that lie at `paths`, relative to the table."""
    wanted = set(paths)
    return _dataset(rows, [fragment for fragment in rows.get_fragments() if fragment.path in wanted])


def paths_of(rows: FileSystemDataset) -> list[str]:
    """Return the paths of a dataset's files, relative to the table."""
    return [fragment.path for fragment in rows.get_fragments()]


def _dataset(like: FileSystemDataset, fragments: list[ParquetFileFragment]) -> FileSystemDataset:
    return FileSystemDataset(fragments, like.schema, like.format, like.filesystem)


def _of_its_run(fragment: ParquetFileFragment) -> ParquetFileFragment:
    """Mark a part as holding only rows of its run, so that queries for other runs need not open it."""
    run_id = _run_of(fragment.path)
    if run_id is None:
        return fragment
    return fragment.format.make_fragment(fragment.path, fragment.filesystem, pc.field("run_id") == run_id)


def _run_of(path: str) -> str | None:
    folder, _, rest = path.partition("/")
    run_id, _, name = rest.partition("/")
    return run_id if folder == "data" and name and "/" not in name else None


def _is(path: str, kind: str) -> bool:
    return path.startswith(COMPACTED) and path.rpartition("/")[2].startswith(f"{kind}-")
