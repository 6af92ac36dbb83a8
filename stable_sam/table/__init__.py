"""The published table of masks, read from Python: SQL to DuckDB, Arrow, pandas or Polars.

with stable_sam.table.open("s3://lake/masks") as table:
    worst = table.pandas("SELECT * FROM worst LIMIT 100")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # DuckDB is imported when a table is opened: the schema alone costs none
    from stable_sam.table.masks_table import MasksTable


def open(uri: str, as_of: str | None = None, *, memory_limit: str | None = None) -> MasksTable:
    """Open the masks table at `uri` (what was given to refine as `--output`), local or on S3.

    as_of: what readers saw then: a run_id, a Delta version, or an ISO date or timestamp (UTC); None: now.
    memory_limit: what DuckDB may hold, such as "500MB", before it spills to a temporary folder; None: its usual limit.
    Raises `NotFoundError` when there is no table, `InputError`, `ConfigError` and `StorageError`.
    """
    from stable_sam.table.masks_table import MasksTable
    from stable_sam.table.query import MEMORY_LIMIT

    return MasksTable(uri, as_of=as_of, memory_limit=memory_limit or MEMORY_LIMIT)
