"""Kill a run of weak boxes half-way by SIGKILL, run it again, and check that every prompt is one row.

    python benchmarks/kill_and_resume.py --data DIR --output URI [--pictures 60] [--noise 0.4] [--s3]

DIR holds `instances.json` (COCO) and its images. The boxes of its first images are jittered (HQ-SAM's noise, fixed
seed) and refined by `stable-sam refine`, whose process group is killed when half of the shards are committed. With
--s3, images and annotations are copied to URI and read from there; the AWS_* variables name the store.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stable_sam.prompt_noise import noisy_box
from stable_sam.storage.files import list_files, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query

SHARD_PICTURES = 5


def main() -> None:
    """Run the job twice, the first time not to its end, and check the table."""
    options = _options()
    weak, pictures = weak_annotations(options.data, options.pictures, options.noise)
    with tempfile.TemporaryDirectory() as folder:
        annotations, images = str(Path(folder, "weak.json")), str(options.data)
        if options.s3:
            annotations, images = join(options.output, "weak.json"), join(options.output, "pictures")
            for name in pictures:
                write_bytes(join(images, name), (options.data / name).read_bytes())
        write_bytes(annotations, json.dumps(weak).encode())
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump({"shard_images": SHARD_PICTURES, "ray": {"actors": 2}}))
        table = join(options.output, "table")
        command = [
            str(Path(sys.executable).with_name("stable-sam")), "refine", "--annotations", annotations,
            "--images", images, "--output", table, "--config", str(config), "--model", options.model,
        ]  # fmt: skip
        shards = -(-len(pictures) // SHARD_PICTURES)
        committed = kill_half_way(command, table, shards)
        started = time.monotonic()
        subprocess.run(command, check=True)
        print(f"killed with {committed} of {shards} shards committed; second run: {time.monotonic() - started:.0f} s")
        check(table, len(weak["annotations"]))


def weak_annotations(data: Path, count: int, noise: float) -> tuple[dict[str, Any], list[str]]:
    """COCO instances with a noisy box for every object of the first `count` pictures, and the pictures' names."""
    coco = json.loads((data / "instances.json").read_text())
    images = coco["images"][:count]
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations = []
    for annotation in coco["annotations"]:
        if annotation["image_id"] in sizes:
            x, y, w, h = annotation["bbox"]
            rng = np.random.default_rng(annotation["id"])
            box = noisy_box(np.array([x, y, x + w, y + h]), noise, sizes[annotation["image_id"]], rng, 1)[0]
            kept = {key: annotation[key] for key in ("id", "image_id", "category_id") if key in annotation}
            annotations.append({**kept, "bbox": [*box[:2], *(box[2:] - box[:2])]})
    weak = {"images": images, "annotations": annotations, "categories": coco.get("categories", [])}
    return weak, [image["file_name"] for image in images]


def kill_half_way(command: list[str], table: str, shards: int) -> int:
    """Start the job, kill its whole process group when half of its shards are committed; returns how many were."""
    job = subprocess.Popen(command, start_new_session=True)
    while (done := _commits(table)) < shards // 2:
        if job.poll() is not None:
            sys.exit(f"the job ended (exit code {job.returncode}) before it could be killed")
        time.sleep(0.2)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return done


def check(table: str, prompts: int) -> None:
    """Print the counts and exit with 1 unless every prompt is exactly one row of exactly one version."""
    sql = "SELECT count(*) AS n, count(DISTINCT prompt_id) AS ids, count(*) FILTER (status = 'ok') AS ok FROM history"
    counts = query(table, sql).to_pylist()[0]
    runs = query(table, "SELECT count(*) AS n FROM runs").to_pylist()[0]["n"]
    print(f"prompts {prompts}, rows {counts['n']}, distinct prompts {counts['ids']}, ok {counts['ok']}, runs {runs}")
    if not prompts == counts["n"] == counts["ids"] or runs != 1:
        sys.exit("rows are lost or doubled")


def _commits(table: str) -> int:
    return sum("/commits/" in uri for uri in list_files(table))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--s3", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
