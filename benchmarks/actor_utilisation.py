"""Measure how busy a run keeps its actors' models; all is real but the model, which sleeps, and the number of cores.

    python benchmarks/actor_utilisation.py [--actors 64] [--shards 8] [--shard-images 8] [--seconds 2]

Real Ray with as many simulated cores as actors, real processes, shards, images, parts and commit records, on local
files. Each actor needs about 300 MB of memory. The command prints the share of the actors' time in which their models
were at work, from the first image to the last one, and over the whole run with the start of the processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.identity import model_identity
from stable_sam.records import Prompt, RefinedMask, ShardReport
from stable_sam.refining.image_job import ImageRefiner
from stable_sam.runs.commits import committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from tasks.actors.run import run_shards

PROMPTS = 8
SIDE = 256
RUN_LENGTHS = "".join(chr(48 + n % 16) for n in range(300))
"""As many bytes as a mask has; nobody decodes them here."""


def main() -> None:
    """Plan, run and report; exits with 1 when a prompt has no row."""
    options = _options()
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        manifest = planned(Path(folder), options)
        busy = Path(folder, "busy")
        busy.mkdir()
        ray.init(
            "local", num_cpus=options.actors, include_dashboard=False, object_store_memory=100 * 2**20,
            logging_level=logging.ERROR, log_to_driver=False,
        )  # fmt: skip
        started = time.time()
        outcomes = list(run_shards(
            manifest.uri, manifest.shards, manifest.config.ray, load=sleeping_model(options.seconds, str(busy))
        ))  # fmt: skip
        wall = time.time() - started
        ray.shutdown()
        bad = [outcome for outcome in outcomes if not isinstance(outcome, ShardReport) or outcome.failed]
        rows = sum(record.rows for record in committed(manifest).values())
        report(options, [json.loads(path.read_text()) for path in busy.iterdir()], wall)
    if bad or rows != manifest.prompts:
        sys.exit(f"{manifest.prompts} prompts, {rows} rows; {bad[:1]}")


def planned(folder: Path, options: argparse.Namespace) -> RunManifest:
    """A run over `actors * shards * shard_images` pictures of noise with PROMPTS boxes each."""
    images = folder / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    picture = images / "0.jpg"
    Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(picture)
    count = options.actors * options.shards * options.shard_images
    for number in range(1, count):
        os.link(picture, images / f"{number}.jpg")
    prompts = (
        Prompt(prompt_id=f"{n}:{k}", image_id=str(n), image_uri=str(images / f"{n}.jpg"), box_xyxy=(8, 8, 99, 99 + k))
        for n in range(count)
        for k in range(PROMPTS)
    )
    config = RunConfig(
        refiner=RefinerConfig(model="tiny", jitter_count=0),
        ray=RayConfig(actors=options.actors),
        shard_images=options.shard_images,
    )
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="memory",
            images_uri=str(images),
            output_uri=str(folder / "table"),
            config=config,
        ),
    )
    assert manifest is not None, "an empty folder"
    return manifest


def sleeping_model(seconds: float, busy_path: str) -> Callable[[RunConfig, int], ImageRefiner]:
    """What makes a model that takes `seconds` an image, one after the other as a GPU does, and notes when."""

    def load(config: RunConfig, threads: int) -> ImageRefiner:
        known = model_identity(config.refiner)  # here: names in a class's own body are not sent along

        class SleepingRefiner:
            identity = known

            def __init__(self) -> None:
                self.turn, self.notes = threading.Lock(), {"first": 0.0, "last": 0.0, "busy": 0.0, "images": 0}

            def refine_image(self, image: Any, prompts: Sequence[Prompt]) -> list[RefinedMask]:
                with self.turn:
                    began = time.time()
                    time.sleep(seconds)
                    notes, ended = self.notes, time.time()
                    notes |= {
                        "first": notes["first"] or began, "last": ended, "busy": notes["busy"] + ended - began,
                        "images": notes["images"] + 1,
                    }  # fmt: skip
                    Path(busy_path, str(os.getpid())).write_text(json.dumps(notes))
                size = image.shape[:2]
                return [
                    RefinedMask(prompt_id=p.prompt_id, status="ok", mask_size=size, mask_counts=RUN_LENGTHS, area=100,
                                bbox_xywh=(0, 0, 10, 10), predicted_iou=0.9, stability_score=0.9, dsp_weight=0.1,
                                route="accept")
                    for p in prompts
                ]  # fmt: skip

        return SleepingRefiner()

    return load


def report(options: argparse.Namespace, actors: list[dict[str, float]], wall: float) -> None:
    """Print the shares of time in which the models worked."""
    busy = sum(actor["busy"] for actor in actors)
    images = sum(actor["images"] for actor in actors)
    first, last = min(actor["first"] for actor in actors), max(actor["last"] for actor in actors)
    own = sum(actor["last"] - actor["first"] for actor in actors)
    ready = max(actor["first"] for actor in actors)
    print(f"{options.actors} actors, {images:.0f} images of {options.seconds:g} s in {wall:.0f} s")
    print(f"an actor between its first and its last image: busy {100 * busy / own:.1f} %")
    print(f"all actors from the last one's start to the end: busy {100 * _after(actors, ready, last):.1f} %")
    print(f"all actors from the first image to the last: busy {100 * busy / (len(actors) * (last - first)):.1f} %")
    print(f"all actors over the whole run: busy {100 * busy / (len(actors) * wall):.1f} %")


def _after(actors: list[dict[str, float]], ready: float, end: float) -> float:
    """Busy share of the time from `ready` on, each actor's own share taken as even over its time."""
    shares = (a["busy"] / (a["last"] - a["first"]) * max(0.0, a["last"] - ready) for a in actors)
    return sum(shares) / (len(actors) * (end - ready))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--shards", type=int, default=8, help="shards for each actor")
    parser.add_argument("--shard-images", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="that the stand-in takes for an image")
    return parser.parse_args()


if __name__ == "__main__":
    main()
