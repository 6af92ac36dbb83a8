"""A table of masks from Python: SQL to DuckDB relations, Arrow, pandas or Polars."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from stable_sam.errors import ConfigError, InputError
from stable_sam.storage.files import absolute_uri
from stable_sam.table.query import MEMORY_LIMIT, check_reads, connected, user_errors
from stable_sam.table.views import make_views

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation


class MasksTable:
    """A table as it was when it was opened; what is published meanwhile is not seen. For one thread.

    The views are those of `stable_sam.table.views`, the sandbox that of `stable_sam.table.query`. Every method raises
    what `stable_sam.table.query.query` raises; a relation is run when its rows are fetched, and then raises DuckDB's
    own errors. Relations end with the table: close it, or use it as a context manager.
    """

    def __init__(self, uri: str, *, as_of: str | None = None, memory_limit: str = MEMORY_LIMIT) -> None:
        """See `stable_sam.table.open`."""
        self.uri = absolute_uri(uri)
        self._as_of, self._memory_limit = as_of, memory_limit
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(connected(self.uri, as_of=as_of, memory_limit=memory_limit))

    @property
    def masks(self) -> DuckDBPyRelation:
        """The newest row of each prompt, without withdrawn ones."""
        return self.sql("SELECT * FROM masks")

    @property
    def history(self) -> DuckDBPyRelation:
        """All rows of all runs."""
        return self.sql("SELECT * FROM history")

    @property
    def runs(self) -> DuckDBPyRelation:
        """One row for each published run."""
        return self.sql("SELECT * FROM runs")

    def sql(self, query: str) -> DuckDBPyRelation:
        """The rows of one SQL statement, not run yet: filter, join and aggregate it further, or fetch it."""
        with self._errors():
            check_reads(query)
            make_views(self._connection, query)
            relation: DuckDBPyRelation | None = self._connection.sql(query)
        if relation is None:
            raise InputError("SQL: expected a query, got nothing to run")
        return relation

    def arrow(self, query: str) -> pa.Table:
        """The rows of one SQL statement as an Arrow table."""
        relation = self.sql(query)
        with self._errors():
            return relation.to_arrow_table()

    def pandas(self, query: str) -> Any:
        """The rows as a pandas DataFrame; raises `ConfigError` where pandas is not installed."""
        _check_installed("pandas")
        relation = self.sql(query)
        with self._errors():
            return relation.df()

    def polars(self, query: str) -> Any:
        """The rows as a Polars DataFrame; raises `ConfigError` where Polars is not installed."""
        _check_installed("polars")
        relation = self.sql(query)
        with self._errors():
            return relation.pl()

    def close(self) -> None:
        """Let go of the connection and of what it spilled; closing again does nothing."""
        self._stack.close()

    def _errors(self) -> Any:
        return user_errors(self.uri, as_of=self._as_of, memory_limit=self._memory_limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{package}: expected it to be installed for this, found none: pip install {package}")
