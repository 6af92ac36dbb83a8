"""The nightly deployment on a real Prefect server: deploy it, start workers, and follow its runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun

from stable_sam.table.query import query
from tests.integration.marked_processes import take_interrupts

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"


def prefect(*arguments: str) -> None:
    """Run a command in the project's folder, as from a shell."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PWD": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def deploy(folder: Path, name: str, parameters: dict[str, str], schedule: dict[str, Any], **changes: Any) -> None:
    """Deploy deployments/prefect.yaml as `name`, to a pool of the same name, with another schedule."""
    document = yaml.safe_load(FILE.read_text())
    (deployment,) = document["deployments"]
    deployment["name"], deployment["work_pool"]["name"] = name, name
    deployment["schedules"] = [{"slug": name, **schedule}]
    deployment["parameters"] |= parameters
    deployment |= changes
    file = folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(document))
    prefect("work-pool", "create", name, "--type", "process")
    prefect("deploy", "--prefect-file", str(file), "--all")


@contextmanager
def worker_of(pool: str, folder: Path, mark: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, started in `folder` with the variables `mark`, whose log is `worker.log` there; killed at the end."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    with (
        (folder / "worker.log").open("a") as out,
        subprocess.Popen(
            command, cwd=folder, env=os.environ | (mark or {}), stdout=out, stderr=out, preexec_fn=take_interrupts
        ) as worker,
    ):
        try:
            yield worker
        finally:
            worker.kill()  # asked to end it may wait for ever


def wait_for(what: Callable[[], Any], seconds: float, why: Callable[[], object]) -> Any:
    """Return what `what` returns as soon as it is true; fail with `why` after some seconds."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, why()
        time.sleep(0.3)
    return found


def runs_of(deployment: str, *states: str) -> list[FlowRun]:
    """The runs of a deployment, or those in one of the states."""
    named = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(deployment_filter=named)
    return [run for run in runs if not states or run.state_name in states]


def ended(run_id: UUID) -> FlowRun | None:
    """The run, when nothing more will happen to it."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
    return run if run.state is not None and run.state.is_final() else None


def nights(table: str) -> list[dict[str, Any]]:
    """The published runs of a table, oldest first."""
    found: list[dict[str, Any]] = query(table, "SELECT * FROM runs ORDER BY revision").to_pylist()
    return found
