"""A run on a GPU node (its GPU is simulated) and a CPU node, one of which is lost in the middle: for `test_cluster.py`.

    python two_nodes.py <manifest> gpu|cpu

A program of its own, because a process has one Ray, whose settings are those of its environment. Every stage of an
image writes a line to the file $PLACES: the stage, the node where it begins, the image or shard.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from stable_sam.config import RayConfig, RunConfig
from stable_sam.records import ShardReport
from stable_sam.refining.image_job import ImageRefiner
from stable_sam.runs.manifest import read_manifest
from tasks.actors.child import load_refiner
from tasks.actors.helper_work import HelperWork
from tasks.actors.run import run_shards
from tasks.actors.shard_actor import ShardActor

MEMORY = {"object_store_memory": 80 * 2**20}


def note(stage: str, node: str, what: str) -> None:
    with open(os.environ["PLACES"], "a") as places:
        places.write(f"{stage} {node} {what}\n")


class PlacedWork(HelperWork):
    """Says where it is done."""

    def prepare(self, prompts):  # type: ignore[no-untyped-def]  # as HelperWork's
        note("prepare", ray.get_runtime_context().get_node_id(), prompts[0].image_id)
        return HelperWork.prepare(self, prompts)

    def finish(self, image):  # type: ignore[no-untyped-def]
        note("finish", ray.get_runtime_context().get_node_id(), image.prompts[0].image_id)
        return HelperWork.finish(self, image)

    def write(self, shard, rows, seconds, stage_seconds):  # type: ignore[no-untyped-def]
        note("write", ray.get_runtime_context().get_node_id(), shard.shard_id)
        return HelperWork.write(self, shard, rows, seconds, stage_seconds)


class PlacedActor(ShardActor):
    """Tells its model's process where it is."""

    helper_work = PlacedWork

    def load(self):  # type: ignore[no-untyped-def]  # as ShardActor's
        os.environ["NODE"] = ray.get_runtime_context().get_node_id()
        return super().load()


def load_slowly(config: RunConfig, threads: int) -> ImageRefiner:
    """The run's model, slow enough for a node to be lost while there is work left."""
    refiner: Any = load_refiner(config, threads)
    honest = refiner.infer

    def infer(image: Any) -> Any:
        note("infer", os.environ["NODE"], image.prompts[0].image_id)
        time.sleep(0.5)
        yield from honest(image)

    refiner.infer = infer
    return refiner


def main() -> None:
    manifest_uri, lost = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **MEMORY})
    nodes = {"cpu": cluster.add_node(num_cpus=2, num_gpus=0, **MEMORY)}
    nodes["gpu"] = cluster.add_node(num_cpus=1, num_gpus=1, **MEMORY)
    gpu_nodes = [nodes["gpu"].node_id]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    manifest = read_manifest(manifest_uri)
    outcomes = []
    for outcome in run_shards(
        manifest.uri, manifest.shards, RayConfig(max_retries=3), load=load_slowly, actor_class=PlacedActor
    ):
        outcomes.append(outcome)
        if len(outcomes) == 1:
            cluster.remove_node(nodes[lost], allow_graceful=False)
            if lost == "gpu":
                gpu_nodes.append(cluster.add_node(num_cpus=1, num_gpus=1, **MEMORY).node_id)
    answer = {
        "finished": sum(isinstance(outcome, ShardReport) for outcome in outcomes),
        "outcomes": [str(outcome) for outcome in outcomes],
        "cpu_node": nodes["cpu"].node_id,
        "gpu_nodes": gpu_nodes,
        "places": [line.split() for line in Path(os.environ["PLACES"]).read_text().splitlines()],
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(answer))  # noqa: T201  # what the test reads


if __name__ == "__main__":
    main()
