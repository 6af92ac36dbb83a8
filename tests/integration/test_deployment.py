"""deployments/prefect.yaml as a person would use it: deployed, scheduled, and really run by a worker when it is due.

A scheduler may run a slot twice, late or never; the table is right after the next run all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Scheduled

from flows import killed_runs
from flows.refine import refine_dataset
from stable_sam.table.query import query
from tests.integration.deployed import FILE, deploy, ended, nights, prefect, runs_of, wait_for, worker_of


def test_the_date_is_taken_in_the_zone_of_the_schedule() -> None:
    (deployment,) = yaml.safe_load(FILE.read_text())["deployments"]
    (schedule,) = deployment["schedules"]
    assert deployment["parameters"]["timezone"] == schedule["timezone"]


def test_the_night_is_scheduled(prefect_server: str) -> None:
    prefect("work-pool", "create", "nightly", "--type", "process")
    prefect("deploy", "--prefect-file", str(FILE), "--all")
    runs = wait_for(lambda: runs_of("nightly"), 120, lambda: "no run was scheduled")
    assert all(run.auto_scheduled for run in runs)
    starts = {run.expected_start_time.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M") for run in runs}
    assert starts == {"02:00"}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("refine-dataset/nightly")
    assert deployment.global_concurrency_limit is not None
    assert deployment.global_concurrency_limit.limit == 1


def test_a_worker_runs_what_is_due_and_a_slot_that_comes_twice_adds_nothing(
    prefect_server: str, annotations: Path, tmp_path: Path
) -> None:
    table, log = str(tmp_path / "table"), tmp_path / "worker.log"
    places = {"annotations_uri": str(annotations), "images_uri": str(tmp_path / "images"), "output_uri": table}
    deploy(tmp_path, "every-minute", places, {"cron": "* * * * *", "timezone": "Europe/Berlin"})
    # A worker may be started anywhere: the deployment knows the project's folder, and configs/ in it.
    with worker_of("every-minute", tmp_path):
        first = wait_for(lambda: next(iter(runs_of("every-minute", "Running", "Completed")), None), 300, log.read_text)
        with get_client(sync_client=True) as client:
            client.pause_deployment(first.deployment_id)  # no further slot comes between
        first = wait_for(lambda: ended(first.id), 300, log.read_text)
        assert first.state_name == "Completed", log.read_text()
        seen = nights(table)
        again = fire_again(first)
        second = wait_for(lambda: ended(again), 300, log.read_text)
        assert second.state_name == "Completed", log.read_text()
    assert first.auto_scheduled
    assert first.expected_start_time.second == 0
    assert first.parameters["config"] == "configs/nightly.yaml"
    (night,) = seen
    assert night["rows"] == 9
    assert night["model_id"] == "nano+plugin"
    slot: datetime = first.expected_start_time.astimezone(ZoneInfo("Europe/Berlin"))
    assert night["logical_date"] == slot.date().isoformat(), "a run stands for the day it was scheduled for"
    assert nights(table) == seen


def fire_again(run: FlowRun) -> UUID:
    """What a scheduler does that fires a slot twice; by now this one is late, too."""
    assert run.deployment_id is not None
    with get_client(sync_client=True) as client:
        state = Scheduled(scheduled_time=run.expected_start_time)
        return client.create_flow_run_from_deployment(run.deployment_id, state=state).id


def write_source(annotations: Path, original: dict[str, Any], day: int) -> None:
    """The annotations as they stand on a day: each day one box moves, and one annotation goes and one comes."""
    first, second, *rest = original["annotations"]
    moved = {**first, "bbox": [5 + day, 5, 40, 30]}
    kept = {1: [second, *rest[:-2]], 2: [*rest[:-1]], 3: [second, *rest[2:]]}[day]
    annotations.write_text(json.dumps({**original, "annotations": [moved, *kept]}))


@pytest.mark.usefixtures("prefect_server", "ray_local")
def test_slots_that_come_twice_or_never_leave_the_right_table(annotations: Path, tmp_path: Path) -> None:
    original = json.loads(annotations.read_text())

    def table_after(days: Sequence[int]) -> list[dict[str, Any]]:
        table = str(tmp_path / "-".join(map(str, days)))
        for day in days:
            write_source(annotations, original, day)
            refine_dataset(
                annotations_uri=str(annotations),
                images_uri=str(tmp_path / "images"),
                output_uri=table,
                config={"refiner": {"model": "tiny", "jitter_count": 2}, "ray": {"actors": 1}},
                logical_date=f"2025-11-{day:02}",
            )
        columns = "prompt_id, status, error, box_xyxy, mask_counts, prompt_stability, route, fingerprint"
        rows: list[dict[str, Any]] = query(table, f"SELECT {columns} FROM masks ORDER BY prompt_id").to_pylist()
        return rows

    right = table_after([3])
    assert len(right) == 7
    assert table_after([1, 2, 3]) == right
    assert table_after([1, 1, 3, 3]) == right, "slot 1 and 3 came twice, slot 2 never"


@pytest.mark.parametrize(
    ("before", "waited_s", "after"),
    [
        (StateType.RUNNING, 1.0, StateType.RUNNING),
        (StateType.RUNNING, 15.0, StateType.CRASHED),
        (StateType.CANCELLING, 15.0, StateType.CANCELLING),
        (StateType.CANCELLING, 90.0, StateType.CANCELLED),
        (StateType.COMPLETED, 90.0, StateType.COMPLETED),
    ],
)
def test_the_worker_has_the_first_word_on_what_became_of_a_killed_run(
    prefect_server: str, before: StateType, waited_s: float, after: StateType
) -> None:
    with get_client(sync_client=True) as client:
        run_id = client.create_flow_run(refine_dataset, state=State(type=StateType.PENDING)).id
        client.set_flow_run_state(run_id, State(type=before), force=True)
        assert killed_runs._has_ended(run_id, waited_s) == (before is not after or before is StateType.COMPLETED)
        assert client.read_flow_run(run_id).state_type is after
