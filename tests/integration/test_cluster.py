"""Two Ray nodes: models run where the GPU is, and a node may be lost; the rows are the library's."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.data.commits import committed
from stable_sam.data.manifest import RunManifest
from stable_sam.data.planning import plan_run
from stable_sam.data.query import query
from stable_sam.data.table import publish
from stable_sam.identity import model_identity
from stable_sam.records import Prompt
from stable_sam.refiner import Refiner
from stable_sam.shard_job import refine_shard

ROWS = """SELECT prompt_id, status, mask_counts, route, predicted_iou, stability_score, prompt_stability, dsp_weight
          FROM masks ORDER BY prompt_id"""

pytestmark = pytest.mark.cluster


def plan(photos: list[Path], output: Path) -> RunManifest:
    config = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2), shard_images=1)
    prompts = [
        Prompt(
            prompt_id=f"{path.stem}:{number}:{copy}",
            image_id=f"{path.stem}-{copy}",
            image_uri=str(path),
            box_xyxy=(4.0 + copy, 4.0, 40.0 + number, 30.0),
        )
        for path in photos
        for copy in range(3)
        for number in range(2)
    ]
    manifest = plan_run(
        prompts,
        annotations_uri="memory",
        images_uri=str(photos[0].parent),
        output_uri=str(output),
        config=config,
        model=model_identity(config.refiner),
    )
    assert manifest is not None
    return manifest


def rows(manifest: RunManifest) -> list[dict[str, Any]]:
    publish(manifest)
    found: list[dict[str, Any]] = query(manifest.output_uri, ROWS).to_pylist()
    return found


def test_a_gpu_node_is_lost_in_the_middle(photos: list[Path], tmp_path: Path) -> None:
    manifest = plan(photos, tmp_path / "cluster")
    program = Path(__file__).with_name("two_nodes.py")
    environment = {
        "RAY_AUTH_MODE": "token",  # read when ray is imported
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PLACES": str(tmp_path / "places"),
    }
    done = subprocess.run(
        [sys.executable, str(program), manifest.uri],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["finished"] == len(manifest.shards) == len(committed(manifest)), answer["outcomes"]
    assert set(answer["actors_on"]) == set(answer["gpu_nodes"]), "one actor on each GPU node, none on the CPU node"

    library = plan(photos, tmp_path / "library")
    config = library.config
    refiner = Refiner(config.refiner, config.routing)
    for shard in library.shards:
        refine_shard(refiner, library, shard)
    ours, theirs = rows(manifest), rows(library)
    assert len(ours) == manifest.prompts
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
