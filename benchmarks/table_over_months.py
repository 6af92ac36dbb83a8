"""Measure how long queries take after months of nights, over many small parts and after a compaction.

    .venv/bin/python benchmarks/table_over_months.py --prompts 1000000 --nights 365 --change 0.01 --folder out/months

The table is written directly as Parquet parts and Delta add actions, as nights would have left it: a first run of all
prompts, then nights that refine a random share again and withdraw a fiftieth of that share. For comparison, "by keys"
is a view that first finds the newest revision of each prompt_id and then joins. Each figure is the best of `--repeat`.
"""

from __future__ import annotations

import argparse
import shutil
import string
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.transaction import AddAction, create_table_with_add_actions

from stable_sam.runs.commits import PARQUET_OPTIONS
from stable_sam.runs.compact import compact
from stable_sam.runs.publish import CONFIGURATION
from stable_sam.scores import MEASURED
from stable_sam.table.log import RUN_KEY
from stable_sam.table.query import query
from stable_sam.table.schema import MASKS_SCHEMA

QUERIES = {
    "count": "SELECT count(*) FROM {masks}",
    "group by route": "SELECT route, count(*), avg(prompt_stability) FROM {masks} GROUP BY route ORDER BY route",
    "worst 100 with masks": "SELECT prompt_id, mask_counts FROM {masks} ORDER BY prompt_stability, prompt_id LIMIT 100",
    "one image": "SELECT * FROM {masks} WHERE image_id = '777' ORDER BY prompt_id",
}
BY_KEYS = (
    "(SELECT * FROM history WHERE (prompt_id, revision) IN "
    "(SELECT (prompt_id, max(revision)) FROM history GROUP BY prompt_id) AND status <> 'withdrawn')"
)
TOLERANCE = 1e-9
"""Relative, of numbers in answers."""
RUN_LENGTHS = 200
"""Characters of one mask."""
PROMPTS_OF_IMAGE = 10
PART_ROWS = 640
"""64 images of 10 prompts."""
WITHDRAWN = 0.02


def main() -> None:
    """Build the table, ask, compact, ask again, print the latencies in seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--change", type=float, default=0.01)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--masks-only", action="store_true", help="without the comparison, which takes long")
    parser.add_argument("--folder", type=Path, required=True, help="For the table; must not exist, removed at the end.")
    options = parser.parse_args()
    table_uri = str(options.folder.absolute())
    options.folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        rows = build(table_uri, options.prompts, options.nights, options.change)
        print(f"{rows:,} rows of {options.prompts:,} prompts in {options.nights + 1} runs")
        print(f"built in {time.perf_counter() - start:.0f} s, {describe(table_uri)}\n")
        views = ["masks"] if options.masks_only else [BY_KEYS, "masks"]
        before = {
            name: [timed(table_uri, sql, view, options.repeat) for view in views] for name, sql in QUERIES.items()
        }
        start = time.perf_counter()
        compact(table_uri)
        print(f"compacted in {time.perf_counter() - start:.1f} s, {describe(table_uri)}\n")
        columns = ["masks"] if options.masks_only else ["by keys", "masks"]
        print(f"| query (s) | {' | '.join(columns)} | {', compacted | '.join(columns)}, compacted |")
        print("|---" * (1 + 2 * len(columns)) + "|")
        for name, sql in QUERIES.items():
            after = [timed(table_uri, sql, view, options.repeat) for view in views]
            answers = [answer for _, answer in (*before[name], *after)]
            assert all(same(answer, answers[0]) for answer in answers), f"{name}: answers differ"
            print(f"| {name} | " + " | ".join(f"{seconds:.3f}" for seconds, _ in (*before[name], *after)) + " |")
    finally:
        shutil.rmtree(options.folder)


def timed(table_uri: str, sql: str, masks: str, repeat: int) -> tuple[float, pa.Table]:
    """Seconds of the fastest call, opening the table included, and the answer."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        answer = query(table_uri, sql.format(masks=masks))
        seconds.append(time.perf_counter() - start)
    return min(seconds), answer


def same(answer: pa.Table, other: pa.Table) -> bool:
    """Equal but for the last digits of numbers, which an average has from the order in which it was summed up."""
    if (answer.schema, answer.num_rows) != (other.schema, other.num_rows):
        return False
    return all(
        np.allclose(ours, theirs, rtol=TOLERANCE, atol=0, equal_nan=True)
        if pa.types.is_floating(ours.type)
        else ours.equals(theirs)
        for ours, theirs in zip(answer.columns, other.columns, strict=True)
    )


def describe(table_uri: str) -> str:
    """Files and bytes of the newest version."""
    sizes = pa.table(DeltaTable(table_uri).get_add_actions())["size_bytes"].to_pylist()
    return f"{len(sizes):,} files of {sum(sizes) / 2**20:,.0f} MiB in all"


def build(table_uri: str, prompts: int, nights: int, change: float) -> int:
    """Write the runs; returns their rows."""
    random = np.random.default_rng(0)
    total = 0
    for revision in range(1, nights + 2):
        every = revision == 1
        numbers = np.arange(prompts) if every else np.sort(random.choice(prompts, int(prompts * change), replace=False))
        adds = list(parts(table_uri, numbers, revision, random))
        same = ("content_hash", "annotations_uri", "images_uri", "model_id", "publisher")
        same += ("weights_sha256", "config_hash", "code_version", "dtype")
        facts = dict.fromkeys(same, "benchmark") | {
            "run_id": f"{revision:016x}",
            "parent_run_id": None if every else f"{revision - 1:016x}",
            "revision": revision,
            "rows": len(numbers),
            "failed": 0,
            "routes": {},
            "images": len(numbers),
            "logical_date": None,
        }
        commit = CommitProperties(custom_metadata={RUN_KEY: facts})
        if every:
            create_table_with_add_actions(
                table_uri, Schema.from_arrow(MASKS_SCHEMA), adds, configuration=CONFIGURATION, commit_properties=commit
            )
        else:
            DeltaTable(table_uri).create_write_transaction(adds, "append", MASKS_SCHEMA, commit_properties=commit)
        total += len(numbers)
    return total


def parts(table_uri: str, numbers: np.ndarray, revision: int, random: np.random.Generator) -> Iterator[AddAction]:
    """The Parquet files of one run."""
    for start in range(0, len(numbers), PART_ROWS):
        rows = table_of(numbers[start : start + PART_ROWS], revision, random)
        path = f"data/{revision:016x}/{start:016x}-{uuid.uuid4().hex}.parquet"
        file = Path(table_uri, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, file, **PARQUET_OPTIONS)
        stats = f'{{"numRecords": {rows.num_rows}}}'
        yield AddAction(path, file.stat().st_size, {}, 0, True, stats)


def table_of(numbers: np.ndarray, revision: int, random: np.random.Generator) -> pa.Table:
    """Rows of MASKS_SCHEMA with columns as wide as real ones."""
    count = len(numbers)
    letters = np.frombuffer((string.ascii_letters + string.digits).encode(), np.uint8)
    images = (numbers // PROMPTS_OF_IMAGE).tolist()
    withdrawn = random.random(count) < (WITHDRAWN if revision > 1 else 0)
    columns: dict[str, Any] = {
        "run_id": [f"{revision:016x}"] * count,
        "shard_id": [f"{numbers[0]:016x}"] * count,
        "prompt_id": [f"{number:09d}" for number in numbers],
        "image_id": [str(image) for image in images],
        "image_uri": [f"s3://lake/images/{image:08d}.jpg" for image in images],
        "annotation_id": [str(number) for number in numbers],
        "category": [f"category {number % 80}" for number in numbers],
        "box_xyxy": list(random.uniform(0, 640, (count, 4))),
        "status": np.where(withdrawn, "withdrawn", "ok"),
        "mask_size": [[480, 640]] * count,
        "mask_counts": [row.tobytes().decode() for row in random.choice(letters, (count, RUN_LENGTHS))],
        "area": random.integers(1, 100_000, count),
        "route": random.choice(["accept", "review", "reject"], count, p=[0.7, 0.2, 0.1]),
        "revision": np.full(count, revision),
        "weights_sha256": ["0123456789abcdef" * 4] * count,
        "fingerprint": [f"{value:016x}" for value in random.integers(0, 2**62, count)],
    }
    columns |= {score: random.random(count) for score in MEASURED}
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in MASKS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=MASKS_SCHEMA)


if __name__ == "__main__":
    main()
