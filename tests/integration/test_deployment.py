"""deployments/prefect.yaml as a person would use it: deployed, scheduled, and really run by a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from stable_sam.data.query import query

ROOT = Path(__file__).parents[2]
DEPLOYMENT = "refine-dataset/nightly"


def prefect(*arguments: str, folder: Path = ROOT) -> str:
    """Run a command as from a shell that stands in `folder`."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    environment = os.environ | {"PWD": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_date_is_taken_in_the_zone_of_the_schedule() -> None:
    (deployment,) = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    (schedule,) = deployment["schedules"]
    assert deployment["parameters"]["timezone"] == schedule["timezone"]


def flow_runs(api_url: str, state: str) -> list[dict[str, Any]]:
    asked = {"flow_runs": {"state": {"type": {"any_": [state]}}}, "deployments": {"name": {"any_": ["nightly"]}}}
    request = urllib.request.Request(
        f"{api_url}/flow_runs/filter", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def test_a_worker_runs_the_nightly_deployment(prefect_server: str, annotations: Path, tmp_path: Path) -> None:
    prefect("work-pool", "create", "nightly", "--type", "process")
    prefect("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")

    end = time.monotonic() + 120
    while not (scheduled := flow_runs(prefect_server, "SCHEDULED")):
        assert time.monotonic() < end, "no run was scheduled"
        time.sleep(0.5)
    assert all(run["auto_scheduled"] for run in scheduled)
    assert {run["expected_start_time"][11:16] for run in scheduled} <= {"00:00", "01:00"}, "02:00 in Berlin, in UTC"

    parameters = {
        "annotations_uri": str(annotations),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
    }
    prefect("deployment", "run", DEPLOYMENT, "--params", json.dumps(parameters))
    # A worker may be started anywhere: the deployment knows the project's folder, and configs/ in it.
    log = prefect("worker", "start", "--pool", "nightly", "--run-once", folder=tmp_path)

    completed = flow_runs(prefect_server, "COMPLETED")
    assert len(completed) == 1, log
    (run,) = completed
    assert run["parameters"]["output_uri"] == parameters["output_uri"]
    assert run["parameters"]["config"] == "configs/nightly.yaml"
    (counted,) = query(
        parameters["output_uri"],
        "SELECT count(*) AS n, max(logical_date) AS day, max(model_id) AS model FROM masks",
    ).to_pylist()
    assert (counted["n"], counted["model"]) == (9, "nano+plugin")
    assert counted["day"] is not None, "a deployment's run stands for the day it was scheduled for"
