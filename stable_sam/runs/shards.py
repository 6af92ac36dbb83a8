"""Cuts the planned prompts into shards of about equal cost.

Prompts are sorted by image_uri, image_id and prompt_id, so that their order in the source changes nothing. An image is
never split, because its masks would differ in the last digits if its prompts passed the decoder in other groups. An
image that costs more than half a shard is a shard of its own. Such shards come first, so that no actor begins the
longest work last.
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
"""Most prompts of an ordinary image (COCO has 7.3 on average). All ordinary images have the same cost, so a shard of
them has `shard_images` images."""
_BATCH = 100_000
"""Rows that are read at a time."""
_UNIT = 1000
"""Cost of an ordinary image. Costs are whole numbers, because their sums are then the same on every machine."""


def cut(connection: duckdb.DuckDBPyConnection, shard_images: int, prompt_cost: float) -> tuple[int, int]:
    """Make the table `cut`, the shard of each image in `planned`, and return the numbers of images and of shards.

    shard_images: number of ordinary images in a shard.
    prompt_cost: cost of one prompt, where fetching and encoding an image costs 1.
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
    """Yield the prompts (SHARD_SCHEMA) and the number of images of each shard, in the order of `cut`."""
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
