"""The container, the manifests and the cluster file say what the project says. What needs a cluster is not tested."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stable_sam.config import RunConfig
from tasks.actors.sizing import ActorPlan, plan_actors

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deployments" / "kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTAINERFILE = (ROOT / "deployments" / "Containerfile").read_text()


def manifests() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == sorted(
        path.name for path in KUBERAY.glob("*.yaml") if path.name != "kustomization.yaml"
    )
    return [found for name in kustomization["resources"] for found in yaml.safe_load_all((KUBERAY / name).read_text())]


def only(kind: str) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests() if manifest["kind"] == kind)
    return found


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value of `key`, at any depth."""
    if isinstance(value, dict):
        yield from (found for name, found in value.items() if name == key)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from inside(item, key)


def settings() -> tuple[RunConfig, ActorPlan]:
    config = RunConfig.from_yaml(ROOT / "configs" / "kuberay.yaml")
    return config, plan_actors(config.ray, {}, shards=1000)


def test_the_image_is_of_this_version_and_holds_what_is_installed() -> None:
    ours = PROJECT["project"]["version"]
    (image,) = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["images"]
    tags = {str(image["newTag"]), *re.findall(r"stable-sam:([\w.]+)", CONTAINERFILE)}
    cluster = yaml.safe_load((ROOT / "deployments" / "ray-cluster.yaml").read_text())
    assert tags | {cluster["docker"]["image"].rpartition(":")[2]} == {ours}
    assert re.search(r"^FROM docker.io/library/python:3\.11-", CONTAINERFILE, re.M)
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", CONTAINERFILE, re.M) for word in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_ray_is_the_version_that_is_locked() -> None:
    locked = re.search(r"^ray\[?.*?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked is not None
    assert only("RayCluster")["spec"]["rayVersion"] == locked[1] == version("ray")


def test_gpu_nodes_come_from_none_and_hold_one_actor_each() -> None:
    config, plan = settings()
    (group,) = only("RayCluster")["spec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, plan.actors)
    assert group["rayStartParams"]["num-cpus"] == f"{plan.num_cpus:g}"
    assert group["rayStartParams"]["num-gpus"] == f"{plan.num_gpus:g}"
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == plan.num_gpus
    memory_mb = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024
    assert memory_mb >= plan.images_at_once * config.ray.image_memory_mb
    assert only("RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert config.ray.wait_for_nodes_s >= 600


def test_ray_asks_for_a_token_and_only_the_namespace_comes_in() -> None:
    assert only("RayCluster")["spec"]["authOptions"] == {"mode": "token"}
    worker = only("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][1]
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in worker["env"]
    assert re.search(r"^ *(ENV )?RAY_AUTH_MODE=token\b", CONTAINERFILE, re.M), "every other container that starts Ray"
    policy = only("NetworkPolicy")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    assert not {"NodePort", "LoadBalancer"} & {m["spec"].get("type") for m in manifests() if m["kind"] == "Service"}


def test_services_find_their_pods_and_secrets_are_those_the_guide_makes() -> None:
    labels = [template["metadata"]["labels"] for template in inside(manifests(), "template")]
    for service in (manifest for manifest in manifests() if manifest["kind"] == "Service"):
        assert service["spec"]["selector"] in labels
    named = {ref["name"] for key in ("secretKeyRef", "secretRef") for ref in inside(manifests(), key)}
    made = set(re.findall(r"create secret generic (\w+)", (KUBERAY / "kustomization.yaml").read_text()))
    assert named == made | {only("RayCluster")["metadata"]["name"]}


def test_commands_exist() -> None:
    scripts = {script.name for script in distribution("prefect").entry_points} | set(PROJECT["project"]["scripts"])
    commands = [
        command[-1] if command[0] == "bash" else " ".join(command) for command in inside(manifests(), "command")
    ]
    for command in commands:
        if "pg_isready" not in command:
            assert set(re.findall(r"(?:^|&& |exec )(?!exec)(?!until)(\S+)", command)) <= scripts, command
    module, _, function = PROJECT["project"]["scripts"]["stable-sam"].partition(":")
    assert find_spec(module) is not None
    assert function == "main"
    for path in re.findall(r"(?:deployments|configs)/[\w./-]+\.yaml", " ".join(commands)):
        assert (ROOT / path).is_file()


def test_the_file_for_ray_up_is_one_for_ray_and_for_the_same_run() -> None:
    cluster = yaml.safe_load((ROOT / "deployments" / "ray-cluster.yaml").read_text())
    (package,) = find_spec("ray").submodule_search_locations or []  # type: ignore[union-attr]  # installed
    jsonschema.validate(cluster, json.loads(Path(package, "autoscaler", "ray-schema.json").read_text()))
    _, plan = settings()
    nodes = cluster["available_node_types"]
    assert nodes[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert nodes["gpu"]["resources"] == {"CPU": plan.num_cpus, "GPU": plan.num_gpus}
    assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, plan.actors)
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert any(target.endswith("/.ray/auth_token") for target in cluster["file_mounts"])


@pytest.mark.parametrize("path", sorted((ROOT / "deployments").rglob("*.yaml")), ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not re.search(r"(?i)(password|secret|token)\w*: *[\"']?[A-Za-z0-9+/]{16,}", path.read_text())
