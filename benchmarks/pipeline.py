"""Measure what the pipeline costs on top of the model: real Ray actors against a bare loop over the same files.

    python benchmarks/pipeline.py --images 2000 --out pipeline.json --markdown pipeline.md
    python benchmarks/pipeline.py --images 200 --jitter 0 --cores free --actors 1

The loop opens each file, decodes it and calls `Refiner.refine_image`, in one process, and stores nothing. The pipeline
reads shards, fetches, decodes, refines, encodes, writes Parquet and commits, by `tasks.actors.fleet` as a night does,
with as many torch threads for each actor as the loop has. All processes are started and warm before the clock runs. The
sides take turns block by block (a block is a few shards, in another order in every block), so that other work on the
machine slows both equally; a ratio is the median of the blocks' ratios. A block of the pipeline lasts from handing out
its first shard to the commit of its last one and overlaps with nothing; a night has such a beginning and end only once.

"one core": all processes are pinned to the same core, so that all the pipeline's work is measured. "free": fetching,
encoding and writing may use another core. CPU seconds are those of all processes: for the pipeline the driver, the
actors, their models' processes and Ray's own.

Images are crops of photographs that come with scikit-image, of 640 x 480 pixels, or those of COCO instances with
`--data DIR` (`instances.json`, `images/`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.formats.read import read_prompts
from stable_sam.images.decode import decode_image
from stable_sam.records import Prompt, ShardReport
from stable_sam.refining.shard_job import by_image
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest

BLOCK_SHARDS = 4
"""So that two actors have two shards each, as many as they are handed ahead of time."""
WARM_IMAGES = 16
BOXES = (1, 6)
"""Of a generated picture, both included."""
LOOP = "loop"
PARTS = {"refiner_child": "models", "ray::ShardActor": "actors"}
"""What a process's command line has in it, and whose CPU seconds they are then; the rest is Ray's."""


def main() -> None:
    """Measure each case in a process of its own, print a table and write JSON and Markdown."""
    options = _options()
    if options.case is not None:
        _measure_case(options, json.loads(options.case))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="pipeline-") as name:
        if options.data is None:
            write_pictures(Path(name, "images"), options.images + WARM_IMAGES)
        for jitter in options.jitter:
            for pinned in [cores == "one" for cores in options.cores]:
                actors = [1] if pinned else options.actors
                case = {"jitter": jitter, "pinned": pinned, "actors": actors, "folder": name}
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", json.dumps(case)], check=True)
                results.append(json.loads(Path(name, "result.json").read_text()))
                print(_markdown([results[-1]], options), flush=True)
    text = _markdown(results, options)
    if len(results) > 1:
        print(text)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of 640 x 480: crops of four photographs."""
    from skimage import data

    folder.mkdir()
    draw = np.random.default_rng(0)
    photos = [Image.fromarray(photo()) for photo in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    for number in range(count):
        photo = photos[number % len(photos)]
        width, height = (np.array(photo.size) * draw.uniform(0.5, 1.0)).astype(int).tolist()
        left, top = draw.integers(0, photo.width - width + 1), draw.integers(0, photo.height - height + 1)
        crop = photo.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:06}.jpg", quality=90)


def _prompts(folder: Path, options: argparse.Namespace) -> Iterator[Prompt]:
    """Of the images to measure and of those to warm up with."""
    count = options.images + WARM_IMAGES
    if options.data is not None:
        found = read_prompts(str(options.data / "instances.json"), images_uri=str(options.data / "images"))
        ordered = sorted(found, key=lambda prompt: (prompt.image_uri, prompt.image_id))
        yield from chain.from_iterable(islice(by_image(ordered), count))
        return
    draw = np.random.default_rng(1)
    for number in range(count):
        for box in range(draw.integers(BOXES[0], BOXES[1] + 1)):
            sides = draw.uniform(0.15, 0.6, 2) * (640, 480)
            x, y = (draw.uniform(0, 1, 2) * ((640, 480) - sides)).tolist()
            yield Prompt(
                prompt_id=f"{number:06}:{box}",
                image_id=str(number),
                image_uri=str(folder / "images" / f"{number:06}.jpg"),
                box_xyxy=(x, y, x + float(sides[0]), y + float(sides[1])),
            )


def _measure_case(options: argparse.Namespace, case: dict[str, Any]) -> None:
    """All blocks of one case; writes `result.json`. Pins this process, and so all that it starts, where asked to."""
    if case["pinned"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as the loop has; Ray's own default lets all other work on the machine go first
    }
    import ray

    from tasks.actors.child import load_refiner
    from tasks.actors.fleet import fleet_of, pickled
    from tasks.actors.shard_actor import ShardActor

    config = RunConfig(
        refiner=RefinerConfig(model=options.model, jitter_count=case["jitter"]),
        shard_images=options.shard_images or max(4, min(64, options.images // (6 * BLOCK_SHARDS))),
    )
    manifests = {
        actors: _planned(Path(case["folder"]), f"table-{case['jitter']}-{case['pinned']}-{actors}", config, options)
        for actors in case["actors"]
    }
    ray.init(
        "local", num_cpus=options.threads * sum(case["actors"]), include_dashboard=False,
        object_store_memory=100 * 2**20, logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    with ExitStack() as stack:
        sides: dict[str, Callable[[slice], int]] = {LOOP: _loop(config, manifests[case["actors"][0]], options.threads)}
        for actors, manifest in manifests.items():
            settings = RayConfig(actors=actors, num_cpus=options.threads)
            arguments = (manifest.uri, "cpu", pickled(load_refiner), settings)
            fleet = stack.enter_context(
                fleet_of(ShardActor, arguments, len(manifest.shards), settings, settings.in_flight_per_actor)
            )
            sides[_side(actors)] = _pipeline(fleet, manifest.shards)
        blocks = _blocks(manifests[case["actors"][0]].shards)
        warm = blocks.pop(0)
        own: dict[str, set[int]] = {}
        for side, run in sides.items():
            there = set(_cpu_seconds())
            run(warm)
            own[side] = set(_cpu_seconds()) - there
        notes = []
        for number, block in enumerate(blocks):
            order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
            notes.append({
                side: _timed(sides[side], block, set().union(*(own[other] for other in sides if other != side)))
                for side in order
            })  # fmt: skip
    ray.shutdown()
    result = case | {
        "model": options.model, "threads": options.threads, "cores": os.cpu_count(), "blocks": notes,
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    Path(case["folder"], "result.json").write_text(json.dumps(result))


def _planned(folder: Path, table: str, config: RunConfig, options: argparse.Namespace) -> RunManifest:
    manifest = plan_run(
        _prompts(folder, options),
        RunRequest(
            annotations_uri="memory",
            images_uri=str(folder / "images" if options.data is None else options.data / "images"),
            output_uri=str(folder / table),
            config=config,
        ),
    )
    assert manifest is not None, "an empty folder"
    return manifest


def _blocks(shards: Sequence[ShardPlan]) -> list[slice]:
    """The first to warm up with; a rest that is no whole block is left out."""
    starts = range(0, len(shards) - BLOCK_SHARDS + 1, BLOCK_SHARDS)
    return [slice(start, start + BLOCK_SHARDS) for start in starts]


def _loop(config: RunConfig, manifest: RunManifest, threads: int) -> Callable[[slice], int]:
    """What refines some of the manifest's shards here, and returns the number of images."""
    import cv2
    import torch

    from stable_sam.refining.refiner import Refiner

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    refiner = Refiner(config.refiner, config.routing)
    images = {shard.shard_id: list(by_image(read_shard(shard.uri))) for shard in manifest.shards}

    def run(block: slice) -> int:
        count = 0
        for shard in manifest.shards[block]:
            for prompts in images[shard.shard_id]:
                uri = prompts[0].image_uri
                pixels = decode_image(Path(uri).read_bytes(), name=uri, max_pixels=config.refiner.max_image_pixels)
                refiner.refine_image(pixels, prompts)
                count += 1
        return count

    return run


def _pipeline(fleet: Any, shards: Sequence[ShardPlan]) -> Callable[[slice], int]:
    """The same by the actors of a fleet, which are loaded when the first call returns."""

    def run(block: slice) -> int:
        count = 0
        for shard, outcome in fleet.run(shards[block]):
            assert isinstance(outcome, ShardReport), outcome
            assert not outcome.failed, outcome
            assert not outcome.reused, outcome
            count += shard.images
        assert all(actor.loaded for actor in fleet._actors), "warm up with more shards"
        return count

    return run


def _timed(run: Callable[[slice], int], block: slice, idle: set[int]) -> dict[str, Any]:
    """Images, seconds, and CPU seconds by part of this process and all below it but `idle`, which are other sides'."""
    before, started = _cpu_seconds(), time.perf_counter()
    images = run(block)
    seconds, after = time.perf_counter() - started, _cpu_seconds()
    cpu = dict.fromkeys(("driver", *PARTS.values(), "ray"), 0.0)
    for pid, (part, used) in after.items():
        if pid not in idle:
            cpu[part] += used - before.get(pid, (part, 0.0))[1]
    return {"images": images, "seconds": seconds, "cpu": cpu}


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """Part and CPU seconds so far of this process and of every process below it."""
    tick, parents, found = os.sysconf("SC_CLK_TCK"), {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        part = "driver" if pid == os.getpid() else next((PARTS[key] for key in PARTS if key in line), "ray")
        found[pid] = part, (int(fields[11]) + int(fields[12])) / tick
    return {pid: note for pid, note in found.items() if _is_below(pid, parents)}


def _is_below(pid: int, parents: dict[int, int]) -> bool:
    while pid not in (os.getpid(), 0):
        pid = parents.get(pid, 0)
    return pid != 0


def _side(actors: int) -> str:
    return f"{actors} actor" + "s" * (actors > 1)


def _spread(values: Sequence[float]) -> str:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def _markdown(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    first = results[0]
    images = sum(block[LOOP]["images"] for block in first["blocks"])
    lines = [
        f"{first['model']}, {first['threads']} torch threads for the loop and for each actor, {images} images in "
        f"{len(first['blocks'])} blocks after one to warm up; ratios are medians of the blocks, in brackets the middle "
        f"half of them; load {max(result['load_average'] for result in results):.1f}.",
        "",
        "| K | cores | side | images/s | s | CPU s | of it models, actors, driver, Ray | s / loop's | CPU s / loop's "
        "| speed-up to 1 actor |",
        "|---" * 10 + "|",
    ]
    for result in results:
        for side in result["blocks"][0]:
            cells = [
                str(result["jitter"]),
                "one" if result["pinned"] else "free",
                side,
                *_cells(result["blocks"], side),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(blocks: list[dict[str, Any]], side: str) -> list[str]:
    """From images a second on. The loop's CPU is this process's: Ray and idle actors are none of it."""
    ours, loop = [block[side] for block in blocks], [block[LOOP] for block in blocks]
    images, seconds = sum(block["images"] for block in ours), sum(block["seconds"] for block in ours)
    speed = [f"{images / seconds:.2f}", f"{seconds:.1f}"]
    cpu = {part: sum(block["cpu"][part] for block in ours) for part in (*PARTS.values(), "driver", "ray")}
    if side == LOOP:
        return [*speed, f"{cpu['driver']:.1f}", "", "", "", ""]
    both = list(zip(ours, loop, strict=True))
    up = [block[_side(1)]["seconds"] / block[side]["seconds"] for block in blocks if _side(1) in block]
    return [
        *speed,
        f"{sum(cpu.values()):.1f}",
        ", ".join(f"{part:.1f}" for part in cpu.values()),
        _spread([block["seconds"] / bare["seconds"] for block, bare in both]),
        _spread([sum(block["cpu"].values()) / bare["cpu"]["driver"] for block, bare in both]),
        _spread(up) if up and side != _side(1) else "",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--data", type=Path, help="COCO folder in place of generated pictures")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--jitter", type=int, nargs="+", default=[8, 0], help="K")
    parser.add_argument("--cores", nargs="+", choices=["one", "free"], default=["one", "free"])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2], help="with all cores; on one core it is 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the loop and for each actor")
    parser.add_argument("--shard-images", type=int, help="as many as make six blocks, at most 64, if not given")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
