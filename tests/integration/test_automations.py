"""deployments/automations.yaml on a real server: dead runs end, and people are told of red and of worse nights."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from typer.testing import CliRunner

from flows.automations import apply_automations
from flows.cli import app
from flows.refine import refine_dataset
from stable_sam.errors import ConfigError

FILE = Path(__file__).parents[2] / "deployments" / "automations.yaml"
BLOCK = "custom-webhook/oncall"
DEAD = "stable-sam: end runs that are dead"
SLEEPER = """
import time
from prefect import flow

@flow(name="refine-dataset")
def sleep():
    time.sleep(600)

sleep()
"""


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)
    return found


def newest_run() -> FlowRun | None:
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return runs[0] if runs else None


def state_of(run: FlowRun) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run.id).state_name)


def has_sent_a_heartbeat(run: FlowRun) -> bool:
    asked = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
    }
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": asked})
    return bool(answer.json()["events"])


def on_server() -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        automations = [one for one in client.read_automations() if one.name.startswith("stable-sam: ")]
    assert len({one.name for one in automations}) == len(automations), "one of each name"
    return {one.name: one for one in automations}


@pytest.fixture
def told(prefect_server: str) -> Iterator[queue.Queue[dict[str, str]]]:
    """What the notification block `BLOCK` was asked to send; automations are removed at the end."""
    received: queue.Queue[dict[str, str]] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        CustomWebhookNotificationBlock(
            name="oncall",
            url=f"http://127.0.0.1:{server.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        ).save("oncall", overwrite=True)
        yield received
        with get_client(sync_client=True) as client:
            for one in on_server().values():
                client.delete_automation(one.id)
        server.shutdown()


def notice(told: queue.Queue[dict[str, str]], subject: str, seconds: float = 180) -> str:
    """The body of the first notification with this in its subject."""
    end = time.monotonic() + seconds
    while True:
        message = told.get(timeout=max(0.1, end - time.monotonic()))
        if subject in message["subject"]:
            return message["body"]


def test_applied_twice_they_are_there_once(told: queue.Queue[dict[str, str]]) -> None:
    assert apply_automations(FILE, notify=None) == [DEAD, "stable-sam: end runs that never began"]
    with get_client(sync_client=True) as client:
        client.pause_automation(on_server()[DEAD].id)
    names = apply_automations(FILE, BLOCK)
    there = on_server()
    assert sorted(there) == sorted(names)
    assert len(names) == 6
    assert [name for name, one in there.items() if not one.enabled] == [DEAD]
    dead = there[DEAD].trigger
    assert dead.posture == "Proactive"
    assert dead.for_each == {"prefect.resource.id"}
    assert dead.after == {"prefect.flow-run.heartbeat"}
    assert dead.within.total_seconds() == 3 * PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()


def test_a_dead_run_ends_and_a_finished_one_stays(told: queue.Queue[dict[str, str]], tmp_path: Path) -> None:
    # Heartbeats come every 30 s at least, so with 10 s a run counts as dead after its first one.
    automations = yaml.safe_load(FILE.read_text())
    for one in automations["automations"]:
        if one["name"] == DEAD:
            one["trigger"]["within"] = 10
    file = tmp_path / "automations.yaml"
    file.write_text(yaml.safe_dump(automations))
    apply_automations(file, BLOCK)

    flow(name="refine-dataset")(lambda: None)()
    finished = newest_run()
    assert finished is not None
    emit_event(
        "prefect.flow-run.heartbeat",
        resource={"prefect.resource.id": f"prefect.flow-run.{finished.id}"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{finished.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "refine-dataset",
            }
        ],
    )
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    with subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    ) as run:
        dead = wait_for(lambda: (newest := newest_run()) and newest.id != finished.id and newest)
        wait_for(lambda: has_sent_a_heartbeat(dead))
        run.kill()
    wait_for(lambda: state_of(dead) == "Crashed")
    assert "No heartbeat for 540 s" in notice(told, f"{dead.name} Crashed")
    assert state_of(finished) == "Completed"


@pytest.mark.usefixtures("ray_local")
def test_a_worse_night_is_told_and_left_in_the_artifacts(
    told: queue.Queue[dict[str, str]], annotations: Path, tmp_path: Path
) -> None:
    apply_automations(FILE, BLOCK)
    config: dict[str, Any] = {
        "refiner": {"model": "tiny", "jitter_count": 0},
        "ray": {"actors": 1},
        "routing": dict.fromkeys(
            [
                "accept_predicted_iou", "accept_stability_score", "accept_box_agreement", "reject_predicted_iou",
                "accept_prompt_stability", "reject_prompt_stability",
            ],
            0.0,
        ),
        "regression": {"min_nights": 1, "min_prompts": 3},
    }  # fmt: skip
    job = {
        "annotations_uri": str(annotations),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
        "report_uri": str(tmp_path / "report.html"),
    }
    refine_dataset(**job, config=config)
    annotations.write_text(annotations.read_text().replace("[5, 5, 40, 30]", "[6, 5, 40, 30]"))
    config["routing"]["accept_stability_score"] = 1.0
    config["routing"]["accept_predicted_iou"] = 1.0
    summary = refine_dataset(**job, config=config)

    body = notice(told, f"worse than usual: {job['output_uri']}")
    assert "share in review 1.000, usually 0.000" in body
    assert summary.run_id in body
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/artifacts/latest/filter", json={}).json()
    artifacts = {artifact["key"]: artifact["data"] for artifact in answer}
    assert "**worse**" in artifacts["refine-summary"]
    assert (tmp_path / "report.html").as_uri() in artifacts["refine-report"]
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_block_that_is_not_there(prefect_server: str) -> None:
    with pytest.raises(ConfigError, match="^slack-webhook/nobody: expected the type and name of a notification block"):
        apply_automations(FILE, "slack-webhook/nobody")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("- a", "expected a list of mappings under `automations`"),
        ("automations: [{name: x}]", "automation 'x': trigger"),
        ("a: [", "not valid YAML"),
        (None, "cannot read automations: No such file"),
    ],
)
def test_a_bad_file(prefect_server: str, tmp_path: Path, content: str | None, what: str) -> None:
    file = tmp_path / "automations.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=what):
        apply_automations(file, notify=None)


def test_without_a_server_that_stays() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        result = CliRunner().invoke(app, ["automations"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("PREFECT_API_URL: expected")
