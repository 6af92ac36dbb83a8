"""A GPU node and a CPU node: each does its own part of the work, either may be lost; the rows are the library's."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs.commits import committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.table.query import query

ROWS = """SELECT prompt_id, status, mask_counts, route, predicted_iou, stability_score, prompt_stability, dsp_weight
          FROM masks ORDER BY prompt_id"""

SLOW_STARTS = "Timed out waiting for file", "timed out during startup"
"""What Ray says when its processes take more than the 30 s it gives them."""

pytestmark = pytest.mark.cluster


def plan(photos: list[Path], output: Path) -> RunManifest:
    config = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2), shard_images=3)
    prompts = [
        Prompt(
            prompt_id=f"{path.stem}:{number}:{copy}",
            image_id=f"{path.stem}-{copy}",
            image_uri=str(path),
            box_xyxy=(4.0 + copy, 4.0, 40.0 + number, 30.0),
        )
        for path in photos
        for copy in range(4)
        for number in range(2)
    ]
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="memory",
            images_uri=str(photos[0].parent),
            output_uri=str(output),
            config=config,
        ),
    )
    assert manifest is not None
    return manifest


def rows(manifest: RunManifest) -> list[dict[str, Any]]:
    publish(manifest)
    found: list[dict[str, Any]] = query(manifest.output_uri, ROWS).to_pylist()
    return found


def refined_on_two_nodes(photos: list[Path], folder: Path, lost: str) -> tuple[RunManifest, dict[str, Any]]:
    """The run, and what `two_nodes.py` says of it; started again where Ray's own nodes did not start in time."""
    for number in range(3):
        manifest, places = plan(photos, folder / f"cluster{number}"), folder / f"places{number}"
        places.touch()
        environment = {
            "RAY_AUTH_MODE": "token",  # read when ray is imported
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PLACES": str(places),
        }
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("two_nodes.py")), manifest.uri, lost],
            capture_output=True,
            text=True,
            timeout=400,
            env=os.environ | environment,
        )
        if done.returncode == 0:
            return manifest, json.loads(done.stdout.splitlines()[-1])
        reason = done.stderr.strip().splitlines()[-1]
        sys.stdout.write(f"start {number + 1}: {reason}\n")
        assert any(known in done.stderr for known in SLOW_STARTS), done.stderr
    raise AssertionError("Ray's nodes do not start: the machine is too busy")


@pytest.mark.parametrize("lost", ["gpu", "cpu"])
def test_a_node_is_lost_in_the_middle(photos: list[Path], tmp_path: Path, lost: str) -> None:
    manifest, answer = refined_on_two_nodes(photos, tmp_path, lost)
    assert answer["finished"] == len(manifest.shards) == len(committed(manifest)), answer["outcomes"]
    nodes: dict[str, set[str]] = {}
    for stage, node, _ in answer["places"]:
        nodes.setdefault(stage, set()).add(node)
    only_cpu = {answer["cpu_node"]}
    assert nodes.pop("infer") == set(answer["gpu_nodes"]), "the model runs on each GPU node and nowhere else"
    assert nodes == {"prepare": only_cpu, "finish": only_cpu, "write": only_cpu}
    images = {image for stage, _, image in answer["places"] if stage == "prepare"}
    assert (len(images) == manifest.images) == (lost == "gpu"), "the GPU node does the rest of a lost CPU node's work"
    assert overlaps([(stage, image) for stage, _, image in answer["places"]])

    library = plan(photos, tmp_path / "library")
    config = library.config
    refiner = Refiner(config.refiner, config.routing)
    for shard in library.shards:
        refine_shard(refiner, library, shard)
    ours, theirs = rows(manifest), rows(library)
    assert len(ours) == manifest.prompts
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def overlaps(events: list[tuple[str, str]]) -> bool:
    """Whether most images were being prepared before the one that the model had before them was finished."""
    begun = {event: number for number, event in reversed(list(enumerate(events)))}
    inferred = list(dict.fromkeys(image for stage, image in events if stage == "infer"))
    early = [
        begun["prepare", after] < begun["finish", before]
        for before, after in pairwise(inferred)
        if ("prepare", after) in begun and ("finish", before) in begun
    ]
    return len(early) >= 2 and sum(early) > len(early) / 2
