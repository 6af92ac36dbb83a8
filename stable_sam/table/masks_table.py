"""Reads a table of masks from Python, by SQL, into DuckDB relations, Arrow, pandas or Polars."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from stable_sam.errors import ConfigError, InputError
from stable_sam.storage.uris import absolute_uri
from stable_sam.table.query import MEMORY_LIMIT, check_reads, connected, user_errors
from stable_sam.table.views import make_views

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation


class MasksTable:
    """A table as it was when it was opened, without the runs that are published later. Only one thread may use it.

    SQL can read `masks`, `history`, `runs` and the views of `stable_sam.table.views`, and nothing outside the table.
    Every method raises what `stable_sam.table.query.query` raises. A relation is run when its rows are fetched, and
    then raises DuckDB's own errors. Closing the table ends its relations; it is also a context manager.
    """

    def __init__(self, uri: str, *, as_of: str | None = None, memory_limit: str = MEMORY_LIMIT) -> None:
        """Open the table; `stable_sam.table.open` describes the parameters and errors."""
        self.uri = absolute_uri(uri)
        self._as_of, self._memory_limit = as_of, memory_limit
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(connected(self.uri, as_of=as_of, memory_limit=memory_limit))

    @property
    def masks(self) -> DuckDBPyRelation:
        """The newest row of each prompt, without the prompts that were withdrawn."""
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
        """Return the rows of one SQL statement as a relation, which runs only when it is fetched."""
        with self._errors():
            check_reads(query)
            make_views(self._connection, query)
            relation: DuckDBPyRelation | None = self._connection.sql(query)
        if relation is None:
            raise InputError("SQL: expected a query, got a statement without rows")
        return relation

    def arrow(self, query: str) -> pa.Table:
        """Return the rows of one SQL statement as an Arrow table."""
        relation = self.sql(query)
        with self._errors():
            return relation.to_arrow_table()

    def pandas(self, query: str) -> Any:
        """Return the rows of one SQL statement as a pandas DataFrame; raises `ConfigError` without pandas."""
        _check_installed("pandas")
        relation = self.sql(query)
        with self._errors():
            return relation.df()

    def polars(self, query: str) -> Any:
        """Return the rows of one SQL statement as a Polars DataFrame; raises `ConfigError` without Polars."""
        _check_installed("polars")
        relation = self.sql(query)
        with self._errors():
            return relation.pl()

    def close(self) -> None:
        """Close the connection and remove the files that it spilled. Closing again does nothing."""
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
        raise ConfigError(f"{package}: expected this package for a DataFrame, found none; pip install {package}")
