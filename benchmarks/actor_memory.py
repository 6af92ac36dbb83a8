"""Measure the memory of one actor over many images of varying size, which must not grow.

    python benchmarks/actor_memory.py [--images 2000] [--model nano] [--largest 12] [--jitter-count 8]

A real actor runs over real Ray with the real model. The command prints the resident memory of the actor (reading,
fetching, writing) and of its model's process after loading, after 200 images and at the end, and the peak of each.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.records import Prompt, ShardReport
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from tasks.actors.run import run_shards
from tasks.actors.shard_actor import ShardActor

SHARD_IMAGES = 20
EARLY = 200


class MeasuredActor(ShardActor):
    """Notes the memory of both processes after each shard."""

    def work(self, shard, poisoned=None):  # type: ignore[no-untyped-def]  # as ShardActor's
        """As `ShardActor.work`."""
        answer = super().work(shard, poisoned)
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        pids = [os.getpid(), *(int(pid) for path in children for pid in path.read_text().split())]
        with open(os.environ["ACTOR_MEMORY"], "a") as notes:
            notes.write(f"{shard.images} {' '.join(str(_resident_mb(pid)) for pid in pids[:2])}\n")
        return answer


def main() -> None:
    """Run and report."""
    options = _options()
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACTOR_MEMORY"] = str(Path(folder, "notes"))
        manifest = planned(Path(folder), options)
        ray.init(
            "local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20,
            logging_level=logging.ERROR, log_to_driver=False,
        )  # fmt: skip
        for outcome in run_shards(manifest.uri, manifest.shards, manifest.config.ray, actor_class=MeasuredActor):
            assert isinstance(outcome, ShardReport), outcome
        ray.shutdown()
        notes = [[int(word) for word in line.split()] for line in Path(folder, "notes").read_text().splitlines()]
    seen = 0
    print("| images | actor, MB | model's process, MB |\n|---|---|---|")
    for number, (images, actor, model) in enumerate(notes):
        before, seen = seen, seen + images
        if number == 0 or before < EARLY <= seen or number == len(notes) - 1:
            print(f"| {seen} | {actor} | {model} |")
    print(f"| highest | {max(note[1] for note in notes)} | {max(note[2] for note in notes)} |")


def planned(folder: Path, options: argparse.Namespace) -> RunManifest:
    """A run over JPEGs of 0.1 to `largest` megapixels, each size drawn anew, most of them small; 1 to 12 boxes each."""
    images, draw = folder / "images", np.random.default_rng(0)
    images.mkdir()
    prompts = []
    for number in range(options.images):
        pixels = 1e5 * (options.largest * 10) ** (draw.random() ** 2)
        ratio = draw.uniform(0.6, 1.7)
        width, height = max(64, int((pixels * ratio) ** 0.5)), max(64, int((pixels / ratio) ** 0.5))
        noise = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        path = images / f"{number:06}.jpg"
        Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).save(path, quality=60)
        prompts += [
            Prompt(prompt_id=f"{number}:{k}", image_id=str(number), image_uri=str(path),
                   box_xyxy=(width * 0.1, height * 0.1, width * draw.uniform(0.3, 1), height * draw.uniform(0.3, 1)))
            for k in range(draw.integers(1, 13))
        ]  # fmt: skip
    config = RunConfig(
        refiner=RefinerConfig(model=options.model, jitter_count=options.jitter_count),
        ray=RayConfig(actors=1),
        shard_images=SHARD_IMAGES,
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


def _resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--largest", type=float, default=12, help="megapixels of the largest image")
    parser.add_argument("--jitter-count", type=int, default=8, help="K: fewer are faster")
    return parser.parse_args()


if __name__ == "__main__":
    main()
