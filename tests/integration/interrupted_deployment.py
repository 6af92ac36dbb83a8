"""Nights that are cut short: a run is cancelled, its worker is stopped or killed, the deployment is paused for a while.

Each time nothing is left running, the deployment's only slot is free again, and the next night is right. It takes some
minutes, so `make test-reliability` runs it, and `make test` does not.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.refine import refine_dataset
from stable_sam.errors import NotFoundError
from stable_sam.table.query import query
from tests.integration.deployed import deploy, ended, nights, runs_of, wait_for, worker_of
from tests.integration.marked_processes import left_after, new_mark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NAME = "interrupted"
IMAGES = 12
SLOT_S = 10
ZONE = "Pacific/Kiritimati"  # its day is not that of UTC for most of the day
CONFIG = "refiner: {model: tiny, jitter_count: 800}\nray: {actors: 1, object_store_mb: 80}\nshard_images: 1\n"
"""Slow enough for a run to be caught when one shard is committed and others are not."""
LONG_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nightly:
    """The deployment, and a table that a run made which nothing disturbed."""

    deployment_id: UUID
    folder: Path
    undisturbed: str

    def fire(self, table: str) -> UUID:
        with get_client(sync_client=True) as client:
            return client.create_flow_run_from_deployment(self.deployment_id, parameters={"output_uri": table}).id

    def taken_slots(self) -> int:
        with get_client(sync_client=True) as client:
            limit = client.read_deployment(self.deployment_id).global_concurrency_limit
        assert limit is not None, "deployments/prefect.yaml sets one"
        return limit.active_slots

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def end_of(self, run_id: UUID) -> FlowRun:
        run: FlowRun = wait_for(lambda: ended(run_id), LONG_S, self.log)
        return run

    def caught_at_work(self, table: str) -> UUID:
        """A run that has committed a shard, and has others to do."""
        before = shards(table)
        run_id = self.fire(table)
        wait_for(lambda: shards(table) > before or ended(run_id), LONG_S, self.log)
        assert ended(run_id) is None, self.log()
        return run_id

    def check_nothing_is_left_of(self, table: str, mark: dict[str, str]) -> None:
        """Nothing but a worker runs, nothing is published, and the next run may start."""
        assert left_after(mark, 120, lambda line: "prefect worker" not in line) == []
        assert shards(table) < IMAGES, "caught too late for this test to mean anything"
        with pytest.raises(NotFoundError):
            query(table, "SELECT * FROM masks")
        assert self.taken_slots() == 0

    def check_the_next_night(self, table: str) -> None:
        run = self.end_of(self.fire(table))
        assert run.state_name == "Completed", self.log()
        assert len(nights(table)) == 1
        assert rows(table) == rows(self.undisturbed)


@pytest.fixture(scope="module")
def nightly(prefect_server: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Nightly:
    """The deployment, paused."""
    folder = tmp_path_factory.mktemp("nightly")
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((80, 60), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.png")
    write_source(folder, shift=0)
    (folder / "slow.yaml").write_text(CONFIG)
    parameters = {
        "annotations_uri": str(folder / "annotations.json"),
        "images_uri": str(folder / "images"),
        "output_uri": str(folder / "undisturbed"),
        "config": str(folder / "slow.yaml"),
        "timezone": ZONE,
    }
    deploy(folder, NAME, parameters, {"interval": SLOT_S, "timezone": ZONE}, paused=True)
    with get_client(sync_client=True) as client:
        deployment_id = client.read_deployment_by_name(f"refine-dataset/{NAME}").id
    refine_dataset(**parameters)
    return Nightly(deployment_id=deployment_id, folder=folder, undisturbed=parameters["output_uri"])


@pytest.fixture
def mark() -> dict[str, str]:
    """A mark of the worker and of all that descends from it."""
    return new_mark()


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "table")


def write_source(folder: Path, shift: int) -> None:
    """Two boxes on each image; `shift` moves the first one."""
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 60} for n in range(IMAGES)],
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "category_id": 1, "bbox": [5 + 20 * k + shift * (1 - k), 5, 40, 30]}
            for n in range(IMAGES)
            for k in range(2)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "annotations.json").write_text(json.dumps(document))


def shards(table: str) -> int:
    """The number of committed shards, each of one image."""
    return len(list(Path(table).rglob("commits/*")))


def rows(table: str) -> list[dict[str, Any]]:
    columns = "prompt_id, status, error, box_xyxy, mask_counts, prompt_stability, route, fingerprint"
    found: list[dict[str, Any]] = query(table, f"SELECT {columns} FROM masks ORDER BY prompt_id").to_pylist()
    assert len(found) == 2 * IMAGES
    return found


def test_a_cancelled_run_ends_with_all_its_processes_and_the_next_one_continues(
    nightly: Nightly, mark: dict[str, str], table: str
) -> None:
    with worker_of(NAME, nightly.folder, mark):
        run_id = nightly.caught_at_work(table)
        with get_client(sync_client=True) as client:  # as `prefect flow-run cancel` and the button of the page do
            client.set_flow_run_state(run_id, State(type=StateType.CANCELLING))
        run = nightly.end_of(run_id)
        assert run.state_name == "Cancelled", nightly.log()
        nightly.check_nothing_is_left_of(table, mark)
        nightly.check_the_next_night(table)


def test_a_run_ends_with_its_worker_and_the_next_one_under_a_new_worker_continues(
    nightly: Nightly, mark: dict[str, str], table: str
) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with worker_of(NAME, nightly.folder, mark) as worker:
            run_id = nightly.caught_at_work(table)
            worker.send_signal(number)
            worker.wait(LONG_S)
        run = nightly.end_of(run_id)
        assert run.state_name == "Crashed", nightly.log()
        nightly.check_nothing_is_left_of(table, mark)
    with worker_of(NAME, nightly.folder, mark):
        nightly.check_the_next_night(table)


@pytest.fixture
def resumed(nightly: Nightly) -> Iterator[datetime]:
    """When the deployment was resumed, after it had been paused over some of its slots."""
    with get_client(sync_client=True) as client:

        def paused() -> bool:
            client.pause_deployment(nightly.deployment_id)
            time.sleep(SLOT_S)
            return not runs_of(NAME, "Scheduled", "Late")

        client.resume_deployment(nightly.deployment_id)
        wait_for(lambda: runs_of(NAME, "Scheduled"), LONG_S, lambda: "no run was scheduled")
        # A scheduler that is at work at this moment still adds runs, which the next pause removes.
        wait_for(paused, LONG_S, lambda: "the slots to come did not go away")
        time.sleep(SLOT_S)
        again = datetime.now(UTC)
        client.resume_deployment(nightly.deployment_id)
        yield again
        client.pause_deployment(nightly.deployment_id)


def test_slots_in_a_pause_do_not_come_back_and_the_next_night_does_their_work(
    nightly: Nightly, mark: dict[str, str], resumed: datetime
) -> None:
    before = rows(nightly.undisturbed)
    write_source(nightly.folder, shift=3)
    try:
        with worker_of(NAME, nightly.folder, mark), get_client(sync_client=True) as client:
            run = wait_for(
                lambda: next((run for run in runs_of(NAME, "Running", "Completed") if run.auto_scheduled), None),
                LONG_S,
                nightly.log,
            )
            client.pause_deployment(nightly.deployment_id)
            run = nightly.end_of(run.id)
    finally:
        write_source(nightly.folder, shift=0)
    assert run.state_name == "Completed", nightly.log()
    scheduled = [run.expected_start_time for run in runs_of(NAME) if run.auto_scheduled]
    assert min(scheduled) >= resumed, "no run for a slot of the pause"
    first, night = nights(nightly.undisturbed)
    assert first["logical_date"] is None
    assert night["logical_date"] == run.expected_start_time.astimezone(ZoneInfo(ZONE)).date().isoformat()
    assert night["rows"] == IMAGES, "the first box of each image had moved"
    after = rows(nightly.undisturbed)
    assert [now == then for now, then in zip(after, before, strict=True)].count(True) == IMAGES
