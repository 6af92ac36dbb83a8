"""The planned prompts in order, cut into shards of about equal cost.

Order: image_uri, image_id, prompt_id, so that the order in the source changes nothing. An image is never split: the
rows of its prompts would differ in the last digits when others pass the decoder with them. One that costs more than
half a shard is a shard of its own, and those come first, so that no actor begins the longest work last.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stable_sam.table.fingerprint import FINGERPRINT
from stable_sam.table.schema import PROMPTS_SCHEMA, SHARD_SCHEMA

ORDINARY_PROMPTS = 8
"""Prompts of an ordinary image (COCO: 7.3): up to so many it costs as much as any other, so that a shard of ordinary
images has as many of them as `shard_images` says."""
_BATCH = 100_000
"""Rows that are Arrow tables at one time."""
_UNIT = 1000
"""Costs are whole thousandths of an ordinary image: sums of them are the same on every machine."""


def cut(connection: duckdb.DuckDBPyConnection, shard_images: int, prompt_cost: float) -> tuple[int, int]:
    """Make the table `cut` (image -> shard) of `planned`; returns the numbers of images and shards.

    prompt_cost: of one prompt, in images fetched and encoded.
    """
    size = shard_images * _UNIT
    ordinary = 1 + ORDINARY_PROMPTS * prompt_cost
    connection.execute(
        """
        CREATE TABLE cut AS
        WITH images AS (
            SELECT image_uri, image_id, row_number() OVER (ORDER BY image_uri, image_id) AS place,
                   greatest($unit, round((1 + prompts * $prompt_cost) / $ordinary * $unit))::BIGINT AS cost
            FROM (SELECT image_uri, image_id, count(*) AS prompts FROM planned GROUP BY ALL)
        ), marked AS (SELECT *, cost > greatest($unit, $size // 2) AS heavy FROM images)
        SELECT image_uri, image_id, place, (CASE
            WHEN heavy THEN row_number() OVER (PARTITION BY heavy ORDER BY cost DESC, place) - 1
            ELSE (SELECT count(*) FROM marked WHERE heavy)
                 + (sum(cost) OVER (PARTITION BY heavy ORDER BY place ROWS UNBOUNDED PRECEDING) - cost) // $size
        END)::INTEGER AS shard
        FROM marked
        """,
        {"unit": _UNIT, "size": size, "prompt_cost": prompt_cost, "ordinary": ordinary},
    )
    ((images, shards),) = connection.execute("SELECT count(*), count(DISTINCT shard) FROM cut").fetchall()
    return images, shards


def shards(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[pa.Table, int]]:
    """The prompts (SHARD_SCHEMA) and the number of images of each shard, in order."""
    columns = ", ".join(f"planned.{name}" for name in PROMPTS_SCHEMA.names)
    rows = connection.sql(
        f"SELECT {columns}, {FINGERPRINT} AS fingerprint, cut.shard, cut.place FROM planned JOIN cut "
        "ON planned.image_uri = cut.image_uri AND planned.image_id = cut.image_id "
        "ORDER BY cut.shard, cut.place, planned.prompt_id"
    )
    held: list[pa.RecordBatch] = []
    for batch in rows.to_arrow_reader(_BATCH):
        numbers = batch.column("shard").to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), batch.num_rows]
        for start, end in pairwise(starts):
            if held and held[-1].column("shard")[0] != batch.column("shard")[start]:
                yield _shard(held)
                held = []
            held.append(batch.slice(start, end - start))
    if held:
        yield _shard(held)


def _shard(batches: list[pa.RecordBatch]) -> tuple[pa.Table, int]:
    table = pa.Table.from_batches(batches)
    images = pc.count_distinct(table["place"]).as_py()
    return table.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA), images
