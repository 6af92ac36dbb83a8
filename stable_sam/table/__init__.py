"""Reads a published table of masks from Python, by SQL, into DuckDB, Arrow, pandas or Polars.

with stable_sam.table.open("s3://lake/masks") as table:
    worst = table.pandas("SELECT * FROM worst LIMIT 100")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # DuckDB is only imported when a table is opened, so that the schema alone does not need it
    from stable_sam.table.masks_table import MasksTable


def open(uri: str, as_of: str | None = None, *, memory_limit: str | None = None) -> MasksTable:
    """Open the masks table at `uri`, local or on S3: the `--output` of `stable-sam refine`.

    as_of: opens the table as readers saw it then: after a run (run_id), at a Delta version, or at an ISO date or
    timestamp (UTC). None opens its newest version.
    memory_limit: memory that DuckDB may take before it spills to a temporary folder, such as "500MB". None is 2 GB.
    Raises `NotFoundError` when there is no table, `InputError`, `ConfigError` and `StorageError`.
    """
    from stable_sam.table.masks_table import MasksTable
    from stable_sam.table.query import MEMORY_LIMIT

    return MasksTable(uri, as_of=as_of, memory_limit=memory_limit or MEMORY_LIMIT)
