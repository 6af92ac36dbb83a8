"""A run on a cluster of two nodes, one with a simulated GPU, which is lost in the middle: for `test_cluster.py`.

A program of its own, because a process has one Ray, whose settings are those of its environment.
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
from stable_sam.data.manifest import read_manifest
from stable_sam.image_job import ImageRefiner
from stable_sam.records import ShardReport
from tasks.actors import run_shards
from tasks.refiner_child import load_refiner
from tasks.shard_actor import ShardActor


class PlacedActor(ShardActor):
    """Says where it is when it has loaded its model."""

    def load(self):  # type: ignore[no-untyped-def]  # as ShardActor's
        with open(os.environ["PLACES"], "a") as places:
            places.write(ray.get_runtime_context().get_node_id() + "\n")
        return super().load()


def load_slowly(config: RunConfig, threads: int) -> ImageRefiner:
    """The run's model, slow enough for the node to be lost while there is work left."""
    refiner: Any = load_refiner(config, threads)
    honest = refiner.refine_image

    def refine_image(image: Any, prompts: Any) -> Any:
        time.sleep(0.5)
        return honest(image, prompts)

    refiner.refine_image = refine_image
    return refiner


def main() -> None:
    (manifest_uri,) = sys.argv[1:]
    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, **memory})
    node = cluster.add_node(num_cpus=1, num_gpus=1, **memory)
    gpu_nodes = [node.node_id]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    manifest = read_manifest(manifest_uri)
    outcomes = []
    for outcome in run_shards(
        manifest.uri, manifest.shards, RayConfig(max_retries=3), load=load_slowly, actor_class=PlacedActor
    ):
        outcomes.append(outcome)
        if len(outcomes) == 1:
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=1, num_gpus=1, **memory)
            gpu_nodes.append(node.node_id)
    answer = {
        "finished": sum(isinstance(outcome, ShardReport) for outcome in outcomes),
        "outcomes": [str(outcome) for outcome in outcomes],
        "gpu_nodes": gpu_nodes,
        "actors_on": Path(os.environ["PLACES"]).read_text().split(),
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(answer))  # noqa: T201  # what the test reads


if __name__ == "__main__":
    main()
