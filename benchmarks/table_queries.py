"""Measure queries of a table of millions of masks: plain questions, every documented view, a night's plan.

    python benchmarks/table_queries.py --prompts 1000000 --folder out/queries --out queries.json --markdown queries.md
    python benchmarks/table_queries.py --prompts 10000000 --folder out/queries --repeat 3 --no-newest \\
        --skip source_disagreement

Two sources give ten boxes for each image. The code of a night plans and publishes them twice, the second time with one
box in a hundred moved; only the masks are made up: valid run lengths of about 200 characters. Parts have 50,000 rows,
as `stable-sam compact` leaves them (`table_over_months.py` measures many small parts).

Each plain question is also asked, in turns, of DuckDB alone over the same files (`read_parquet` in Python): "all rows"
includes replaced rows and shows the least that reading costs; "newest" uses the window function that gives current
rows. All queries have DuckDB's default threads and 2 GB, and the files are in the system's cache. Figures are medians
of `--repeat`, with the middle half in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from numpy.typing import NDArray
from planning import write_images, write_source

import stable_sam.table
from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.runs.commits import _commit
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_shard_table
from stable_sam.runs.plan import RunPlan, plan_request
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.scores import FROM_MODEL
from stable_sam.table.current import CURRENT
from stable_sam.table.query import MEMORY_LIMIT
from stable_sam.table.schema import MASKS_SCHEMA, withdrawn_rows
from stable_sam.table.views import documented

QUESTIONS = {
    "count": "SELECT count(*) FROM {masks}",
    "group by route": "SELECT route, count(*), avg(prompt_stability) FROM {masks} GROUP BY route ORDER BY route",
    "worst 100 with masks": "SELECT prompt_id, mask_counts FROM {masks} ORDER BY prompt_stability, prompt_id LIMIT 100",
    "one image": "SELECT * FROM {masks} WHERE image_id = '{image}' ORDER BY prompt_id",
}
CHANGES = "SELECT prompt_id, change, route_before, route FROM changes ORDER BY prompt_id"
CHANGES_BY_HAND = """
    SELECT now.prompt_id, before.route AS route_before, now.route
    FROM rows now LEFT JOIN (SELECT prompt_id, route FROM rows WHERE revision = 1) before USING (prompt_id)
    WHERE now.revision = 2 ORDER BY prompt_id
"""
SOURCES = ("yolo", "rcnn")
PROMPTS_OF_IMAGE = 10
MOVED = 0.01
"""Share of the prompts with another box in the second night."""
PART_ROWS = 50_000
HEIGHT, WIDTH = 480, 640
COLUMNS = 96
"""Of the picture that a mask covers; each costs two characters."""
OURS, ALL_ROWS, NEWEST = "stable-sam", "DuckDB, all rows", "DuckDB, newest"
ROWS = {OURS: "masks", ALL_ROWS: "rows", NEWEST: f"({CURRENT.replace('history', 'rows')})"}
SLOW_S = 60.0
"""What takes longer is asked once."""
Times = dict[str, dict[str, list[float]]]
"""Question to way to seconds."""


def main() -> None:
    """Build the table, ask, plan, print the tables and write JSON and Markdown."""
    options = _options()
    if options.build:
        build(options.folder, options.prompts)
        return
    table_uri = str(options.folder / "table")
    given, built = options.folder.exists(), None
    try:
        if not given:
            started = time.perf_counter()
            arguments = ["--build", "--folder", str(options.folder), "--prompts", str(options.prompts)]
            subprocess.run([sys.executable, __file__, *arguments], check=True)  # its memory is none of the queries'
            built = time.perf_counter() - started
        files = DeltaTable(table_uri).file_uris()
        result = {
            "prompts": options.prompts,
            "bytes": sum(Path(file).stat().st_size for file in files),
            "files": len(files),
            "seconds_to_build": built,
            "seconds": ask(table_uri, files, options) | plans(options.folder, options),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "load_average": os.getloadavg()[0],
        }
    finally:
        if not (options.keep or given):
            shutil.rmtree(options.folder)
    text = _markdown(result)
    print(text)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def build(folder: Path, prompts: int) -> None:
    """Plan and publish two nights."""
    folder.mkdir(parents=True)
    images = prompts // PROMPTS_OF_IMAGE
    write_images(folder / "images", images)
    random = np.random.default_rng(0)
    for night in range(2):
        for source in SOURCES:
            (folder / source).mkdir(exist_ok=True)
            each = prompts // len(SOURCES)
            write_source(folder / source, "parquet", each, images, changed=int(night * each * MOVED))
        manifest = plan(folder).manifest
        assert manifest is not None, "something is new"
        for shard in manifest.shards:
            _write_masks(manifest, shard, random)
        publish(manifest)


def plan(folder: Path) -> RunPlan:
    """One night."""
    annotations = ",".join(f"{source}={folder / source / 'weak.parquet'}" for source in SOURCES)
    config = RunConfig(refiner=RefinerConfig(model="tiny"), shard_images=PART_ROWS // PROMPTS_OF_IMAGE)
    return plan_request(
        RunRequest(
            annotations_uri=annotations,
            images_uri=str(folder / "images"),
            output_uri=str(folder / "table"),
            config=config,
        )
    )


def plans(folder: Path, options: argparse.Namespace) -> Times:
    """Seconds to plan the second night again: as everything is, and after its annotation files were touched."""
    times: Times = {"plan, no file touched": {OURS: []}, "plan, annotations written again": {OURS: []}}
    files = [folder / source / "weak.parquet" for source in SOURCES]
    before = [file.stat().st_mtime_ns for file in files]
    for _ in range(options.repeat):
        for moved, seconds in enumerate(times.values()):
            for file, moment in zip(files, before, strict=True):
                os.utime(file, ns=(moment + moved, moment + moved))
            started = time.perf_counter()
            changes = plan(folder).changes
            seconds[OURS].append(time.perf_counter() - started)
            assert (changes.unchanged, changes.planned) == (options.prompts, 0), changes
    return times


def ask(table_uri: str, files: Sequence[str], options: argparse.Namespace) -> Times:
    """Seconds of every question and view, asked in turns of the library and of DuckDB alone."""
    times: Times = {"opening": {OURS: [], ALL_ROWS: []}}
    for _ in range(options.repeat):
        times["opening"][OURS].append(_seconds(lambda: stable_sam.table.open(table_uri).close())[0])
        times["opening"][ALL_ROWS].append(_seconds(lambda: _plain(files).__enter__().close())[0])
    with stable_sam.table.open(table_uri) as table, _plain(files) as plain:
        image = table.arrow("SELECT image_id FROM history LIMIT 1")["image_id"][0].as_py()
        for question, sql in QUESTIONS.items():
            texts = {way: sql.format(masks=rows, image=image) for way, rows in ROWS.items()}
            ways: dict[str, Callable[[], Any]] = {
                OURS: lambda sql=texts[OURS]: table.arrow(sql),
                ALL_ROWS: lambda sql=texts[ALL_ROWS]: plain.sql(sql).to_arrow_table(),
                NEWEST: lambda sql=texts[NEWEST]: plain.sql(sql).to_arrow_table(),
            }
            if options.no_newest:
                del ways[NEWEST]
            times[question], answers = _in_turns(ways, options.repeat)
            assert options.no_newest or _same(answers[OURS], answers[NEWEST]), f"{question}: answers differ"
        times["changes since yesterday"], answers = _in_turns(
            {OURS: lambda: table.arrow(CHANGES), NEWEST: lambda: plain.sql(CHANGES_BY_HAND).to_arrow_table()},
            options.repeat,
        )
        assert answers[OURS].num_rows == answers[NEWEST].num_rows
        for view in documented():
            if view not in ("masks", "history", "runs", *options.skip):
                sql = f"SELECT * FROM {view} LIMIT 100"
                times[f"view {view}"], _ = _in_turns({OURS: lambda sql=sql: table.arrow(sql)}, options.repeat)
    return times


@contextmanager
def _plain(files: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB alone, with a view `rows` of the files."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'; SET temp_directory = '{folder}'")
        connection.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet({list(files)})")
        yield connection


def _in_turns(ways: dict[str, Callable[[], Any]], repeat: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds and the last answer of each way; the first turn is not counted, unless it took too long for others."""
    turns: list[dict[str, float]] = []
    answers = {}
    while len(turns) < 1 + repeat and not (turns and max(turns[0].values()) > SLOW_S):
        took: dict[str, float] = {}
        for way in list(ways)[:: 1 if len(turns) % 2 else -1]:
            took[way], answers[way] = _seconds(ways[way])
        turns.append(took)
    return {way: [took[way] for took in turns[1:] or turns] for way in ways}, answers


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def _same(answer: pa.Table, other: pa.Table) -> bool:
    """Equal but for the last digits of averages."""
    return answer.num_rows == other.num_rows and all(
        np.allclose(ours.to_numpy(), theirs.to_numpy(), equal_nan=True)
        if pa.types.is_floating(ours.type)
        else ours.equals(theirs)
        for ours, theirs in zip(answer.columns, other.columns, strict=True)
    )


def _write_masks(manifest: RunManifest, shard: ShardPlan, random: np.random.Generator) -> None:
    """The rows of a shard as a model would have made them, by columns."""
    rows = withdrawn_rows(read_shard_table(shard.uri), manifest.provenance(shard.shard_id))  # nulls for all the rest
    count = rows.num_rows
    counts, corners, areas = run_lengths(count, random)
    route = random.choice(["accept", "review", "reject"], count, p=[0.7, 0.2, 0.1])
    columns: dict[str, Any] = {
        "status": ["ok"] * count,
        "category": pa.array([f"category {number}" for number in rows["category_id"].to_pylist()]),
        "mask_size": [[HEIGHT, WIDTH]] * count,
        "mask_counts": counts,
        "bbox_xywh": list(corners),
        "area": areas,
        "route": route,
        "route_reason": [f"quality {value:.3f}" for value in random.random(count).tolist()],
    }
    columns |= {score: random.random(count) for score in FROM_MODEL}
    for name, values in columns.items():
        field = MASKS_SCHEMA.field(name)
        column = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        rows = rows.set_column(MASKS_SCHEMA.get_field_index(name), field, column)
    routes = dict(zip(*(part.tolist() for part in np.unique(route, return_counts=True)), strict=True))
    # `write_part` without its records: a Python object for each row would take hours here.
    _commit(manifest, shard, rows, failed=0, routes=routes, seconds=1.0, stage_seconds=None)


def run_lengths(
    count: int, random: np.random.Generator
) -> tuple[pa.StringArray, NDArray[np.float64], NDArray[np.int64]]:
    """COCO's compressed run lengths of blobs with rough borders, boxes (XYWH) and areas.

    One run of object and one of background in each of COLUMNS columns, each next one a few pixels longer or shorter.
    """
    steps = random.integers(-7, 8, (count, COLUMNS))
    steps[:, 0] = random.integers(100, 300, count)
    inside = np.clip(steps.cumsum(axis=1), 20, 400)
    between = HEIGHT - inside[:, :-1] + random.integers(-4, 5, (count, COLUMNS - 1))
    first = random.integers(0, WIDTH - COLUMNS - 10, count)
    before = HEIGHT * first + random.integers(0, 20, count)
    after = HEIGHT * WIDTH - before - inside.sum(axis=1) - between.sum(axis=1)
    inner = np.empty((count, 2 * COLUMNS - 3), np.int64)  # from the fourth run on, differences to the one before last
    inner[:, 0::2], inner[:, 1::2] = np.diff(inside), np.diff(between)
    parts = [
        _characters(before, 4), _characters(inside[:, 0], 2), _characters(between[:, 0], 2),
        48 + (inner & 31), _characters(after - between[:, -1], 4),
    ]  # fmt: skip
    text = np.concatenate(parts, axis=1).astype(np.uint8)
    offsets = np.arange(0, text.size + 1, text.shape[1], dtype=np.int32)
    strings = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
    boxes = np.stack([first, before % HEIGHT, np.full(count, COLUMNS), inside.max(axis=1)], axis=1)
    return strings, boxes.astype(np.float64), inside.sum(axis=1)


def _characters(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """(count, width): numbers in characters of five bits each, the lowest first; all but the last say "more"."""
    digits = (values[:, None] >> (5 * np.arange(width))) & 31
    digits[:, :-1] |= 32
    return 48 + digits


def _markdown(result: dict[str, Any]) -> str:
    built = f", built in {result['seconds_to_build']:.0f} s" if result["seconds_to_build"] is not None else ""
    lines = [
        f"{result['prompts']:,} prompts, {result['files']} files of {result['bytes'] / 2**30:.2f} GiB{built}; at most "
        f"{result['peak_gib']:.1f} GiB of memory; load {result['load_average']:.1f}. Seconds.",
        "",
        f"| question | {OURS} | {ALL_ROWS} | {NEWEST} |",
        "|---|---|---|---|",
    ]
    for question, ways in result["seconds"].items():
        cells = [_spread(ways[way]) if way in ways else "" for way in (OURS, ALL_ROWS, NEWEST)]
        lines.append(f"| {question} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="For all files; one that exists is asked again.")
    parser.add_argument("--keep", action="store_true", help="leave the folder that was made here")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--no-newest", action="store_true", help="without the window function, which spills all columns of all rows"
    )
    parser.add_argument("--skip", nargs="*", default=[], help="views to leave out")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
