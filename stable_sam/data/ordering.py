"""Prompts of a whole dataset put in order in bounded memory: DuckDB sorts them and spills to a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import Any

import duckdb
import pyarrow as pa

from stable_sam.data.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table
from stable_sam.records import Prompt

_CHUNK = 10_000
"""Prompts held as Python objects at one time."""
_MEMORY_LIMIT = "1GB"
"""What DuckDB may hold before it spills: some millions of prompts."""

Row = dict[str, Any]
ImageRows = list[Row]


class OrderedPrompts:
    """Rows of PROMPTS_SCHEMA by image_uri, image_id and prompt_id: the order in the source changes nothing."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, count: int) -> None:
        self._connection = connection
        self.count = count

    def by_image(self) -> Iterator[ImageRows]:
        """Yield the rows of one image after the other; may be called again after it has ended."""
        for _, rows in groupby(self._rows(), key=lambda row: (row["image_uri"], row["image_id"])):
            yield list(rows)

    def repeated_id(self) -> str | None:
        """A prompt_id that occurs more than once, or None."""
        repeated = "SELECT prompt_id FROM ordered GROUP BY prompt_id HAVING count(*) > 1 ORDER BY prompt_id LIMIT 1"
        found = self._connection.execute(repeated).fetchone()
        return None if found is None else str(found[0])

    def _rows(self) -> Iterator[Row]:
        for batch in self._connection.sql("SELECT * FROM ordered").to_arrow_reader(_CHUNK):
            yield from batch.to_pylist()


@contextmanager
def ordered(prompts: Iterable[Prompt]) -> Iterator[OrderedPrompts]:
    """Take all of `prompts` in and order them; what the iterable raises passes through unchanged."""
    with (
        tempfile.TemporaryDirectory(prefix="stable-sam-plan-") as folder,
        duckdb.connect(config={"memory_limit": _MEMORY_LIMIT, "temp_directory": folder}) as connection,
    ):
        connection.register("empty", pa.Table.from_pylist([], schema=PROMPTS_SCHEMA))
        connection.execute("CREATE TABLE prompts AS SELECT * FROM empty")
        count = 0
        source = iter(prompts)
        while chunk := list(islice(source, _CHUNK)):
            connection.register("chunk", rows_to_table(map(prompt_row, chunk), PROMPTS_SCHEMA))
            connection.execute("INSERT INTO prompts SELECT * FROM chunk")
            count += len(chunk)
        connection.execute("CREATE TABLE ordered AS SELECT * FROM prompts ORDER BY image_uri, image_id, prompt_id")
        connection.execute("DROP TABLE prompts")
        yield OrderedPrompts(connection, count)
