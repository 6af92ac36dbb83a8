"""Measure how fast a night is planned, and in how much memory, with synthetic prompts and no model.

    python benchmarks/planning.py --prompts 10000000 --images 1000000 [--formats parquet,jsonl,coco] [--folder DIR]

The command writes annotation files and an image folder of empty files (listed, but never opened) and plans the first
night of a new table from each format in a process of its own. For each part of planning it prints seconds, CPU seconds
of all threads and prompts per second, and for the process its peak memory. With `--second-night` it plans the same
source again with one prompt in a hundred changed, over a table of so many rows, which are written without computing
masks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.config import RunConfig
from stable_sam.formats.read import read_prompt_batches
from stable_sam.identity import ModelIdentity
from stable_sam.records import RefinedMask
from stable_sam.runs import compare, request
from stable_sam.runs import plan as planning
from stable_sam.runs import shards as ordering
from stable_sam.runs.commits import write_part
from stable_sam.runs.manifest import RunManifest, read_shard
from stable_sam.runs.publish import publish
from stable_sam.table import current

MODEL = ModelIdentity(model_id="none", weights_sha256="0", dtype="float32")
IN_A_FOLDER = 1000
STAGES = {
    "list images": (compare, "load_versions"),
    "read, fingerprints": (compare, "load_source"),
    "rows of the table": (current, "load_live"),
    "compare": (compare, "compare"),
    "cut into shards": (ordering, "cut"),
    "sort, write shards": (planning, "write_shards"),
}
SUFFIX = {"parquet": "parquet", "jsonl": "jsonl", "coco": "json"}


def main() -> None:
    """Write the sources, plan each in a process of its own."""
    options = _options()
    if options.one:
        plan_once(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="planning-") as name:
        folder = Path(name)
        started = time.monotonic()
        write_images(folder / "images", options.images)
        for kind in options.formats.split(","):
            write_source(folder, kind, options.prompts, options.images, changed=0)
        print(f"{options.prompts} prompts on {options.images} images; written in {time.monotonic() - started:.0f} s")
        for kind in options.formats.split(","):
            for second in [False, True][: 1 + options.second_night]:
                if second:
                    write_source(folder, kind, options.prompts, options.images, changed=options.prompts // 100)
                arguments = ["--one", kind, "--folder", name, *(["--publish"] if options.second_night else [])]
                subprocess.run([sys.executable, __file__, *arguments], check=True)


def plan_once(options: argparse.Namespace) -> None:
    """Plan one night and print what it took."""
    spent: dict[str, tuple[float, float]] = {}
    for stage, (module, name) in STAGES.items():
        setattr(module, name, timed(stage, getattr(module, name), spent))
    folder, kind = options.folder, options.one
    started, cpu = time.monotonic(), time.process_time()

    def read(*source: str, **more: Any) -> Iterator[pa.RecordBatch]:
        batches = iter(read_prompt_batches(*source, **more))
        while True:
            before = time.monotonic(), time.process_time()
            batch = next(batches, None)
            wall, used = spent.get("  of it the reader", (0.0, 0.0))
            now = time.monotonic(), time.process_time()
            spent["  of it the reader"] = wall + now[0] - before[0], used + now[1] - before[1]
            if batch is None:
                return
            yield batch

    request.read_prompt_batches = read
    night_request = request.RunRequest(
        annotations_uri=str(folder / f"weak.{SUFFIX[kind]}"),
        images_uri=str(folder / "images"),
        output_uri=str(folder / f"table-{kind}"),
        config=RunConfig(),
    )
    plan = planning.plan_request(night_request, model=MODEL)
    spent["all"] = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    prompts = plan.changes.planned + plan.changes.unchanged
    print(f"\n{kind}: {plan.changes.planned} of {prompts} prompts planned, {plan.shards} shards, peak {peak:.2f} GiB")
    print(f"{'stage':24}{'s':>9}{'CPU s':>9}{'prompts/s':>12}")
    for stage, (wall, used) in spent.items():
        print(f"{stage:24}{wall:9.1f}{used:9.1f}{prompts / max(wall, 1e-9):12,.0f}", flush=True)
    if options.publish and plan.manifest is not None:
        publish_without_masks(plan.manifest)


def timed(stage: str, function: Callable[..., Any], spent: dict[str, tuple[float, float]]) -> Callable[..., Any]:
    """`function`, which adds its time to `spent`."""

    def run(*arguments: Any, **options: Any) -> Any:
        wall, used = time.monotonic(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            before = spent.get(stage, (0.0, 0.0))
            spent[stage] = before[0] + time.monotonic() - wall, before[1] + time.process_time() - used

    return run


def publish_without_masks(manifest: RunManifest) -> None:
    """Rows as a model would have made them, without one."""
    for shard in manifest.shards:
        prompts = read_shard(shard.uri)
        made = [RefinedMask(prompt_id=prompt.prompt_id, status="ok", route="accept") for prompt in prompts]
        write_part(manifest, shard, list(zip(prompts, made, strict=True)), seconds=1.0)
    publish(manifest)


def image_name(image: int) -> str:
    """Path below the image folder."""
    return f"{image // IN_A_FOLDER:05d}/{image:08d}.jpg"


def write_images(folder: Path, count: int) -> None:
    """Empty files."""
    for first in range(0, count, IN_A_FOLDER):
        (folder / f"{first // IN_A_FOLDER:05d}").mkdir(parents=True)
        for image in range(first, min(first + IN_A_FOLDER, count)):
            (folder / image_name(image)).touch()


def write_source(folder: Path, kind: str, prompts: int, images: int, changed: int) -> None:
    """An annotation file; the first `changed` boxes are others than with `changed` 0."""
    path = folder / f"weak.{SUFFIX[kind]}"
    chunks = _boxes(prompts, images, changed)
    if kind == "parquet":
        _write_parquet(path, chunks)
    elif kind == "jsonl":
        with path.open("w") as file:
            for ids, of_image, boxes in chunks:
                for number, image, box in zip(ids.tolist(), of_image.tolist(), boxes.tolist(), strict=True):
                    row = {
                        "prompt_id": number,
                        "image": image_name(image),
                        "bbox_xywh": box,
                        "category_id": number % 80,
                    }
                    file.write(json.dumps(row) + "\n")
    else:
        with path.open("w") as file:
            file.write('{"images": [')
            for image in range(images):
                entry = {"id": image, "file_name": image_name(image), "width": 640, "height": 480}
                file.write((", " if image else "") + json.dumps(entry))
            file.write('], "annotations": [')
            for ids, of_image, boxes in chunks:
                for number, image, box in zip(ids.tolist(), of_image.tolist(), boxes.tolist(), strict=True):
                    entry = {"id": number, "image_id": image, "bbox": box, "category_id": number % 80}
                    file.write((", " if number else "") + json.dumps(entry))
            file.write("]}")


def _boxes(prompts: int, images: int, changed: int) -> Iterator[tuple[Any, Any, Any]]:
    """(ids, images, XYWH boxes) in chunks."""
    for first in range(0, prompts, 200_000):
        ids = np.arange(first, min(first + 200_000, prompts))
        boxes = np.random.default_rng(first).integers(1, 200, (len(ids), 4)).astype(float) + 0.5
        boxes[ids < changed, 0] += 1
        yield ids, ids * images // prompts, boxes


def _write_parquet(path: Path, chunks: Iterable[tuple[Any, Any, Any]]) -> None:
    schema = pa.schema(
        [("prompt_id", pa.string()), ("image", pa.string()), ("bbox_xywh", pa.list_(pa.float64())),
         ("category_id", pa.int64())]
    )  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for ids, of_image, boxes in chunks:
            offsets = np.arange(0, 4 * len(ids) + 1, 4, dtype=np.int32)
            columns = [
                pa.array(ids).cast(pa.string()),
                pa.array([image_name(image) for image in of_image.tolist()]),
                pa.ListArray.from_arrays(offsets, boxes.ravel()),
                pa.array(ids % 80),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--formats", default="parquet,jsonl,coco")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--second-night", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
