"""The whole job through the real parts, locally and on S3: every prompt is exactly one row, whatever happens."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.refine import refine_dataset
from stable_sam.config import RefinerConfig
from stable_sam.errors import InputError, StableSamError
from stable_sam.formats.read import read_prompts
from stable_sam.records import RefinedMask
from stable_sam.refining.refiner import Refiner
from stable_sam.storage.files import list_files, read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query
from stable_sam.timing import STAGES

pytestmark = [pytest.mark.usefixtures("prefect_server", "ray_local")]

CONFIG: dict[str, Any] = {
    "refiner": {"model": "tiny", "jitter_count": 2},
    "ray": {"actors": 1, "max_retries": 0},
    "shard_images": 1,
}


@pytest.fixture(params=["local", "s3"])
def job(request: pytest.FixtureRequest, annotations: Path, photos: list[Path], tmp_path: Path) -> dict[str, Any]:
    """Parameters of the flow, all on one kind of store."""
    base = str(tmp_path)
    if request.param == "s3":
        base = join(request.getfixturevalue("s3"), uuid.uuid4().hex)
        for path in [annotations, *photos]:
            write_bytes(join(base, str(path.relative_to(tmp_path))), path.read_bytes())
    return {
        "annotations_uri": join(base, "annotations.json"),
        "images_uri": join(base, "images"),
        "output_uri": join(base, "table"),
        "config": CONFIG,
    }


def prompt_ids(job: dict[str, Any]) -> list[str]:
    return sorted(prompt.prompt_id for prompt in read_prompts(job["annotations_uri"], images_uri=job["images_uri"]))


def rows(job: dict[str, Any], view: str = "masks") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = query(job["output_uri"], f"SELECT * FROM {view} ORDER BY prompt_id").to_pylist()
    return found


def trace_of(uri: str) -> tuple[set[str], dict[str, Any]]:
    """Names of the work in a Chrome trace, and what it says of itself."""
    trace = json.loads(read_bytes(uri))
    assert all(event["ph"] == "M" or (event["dur"] > 0 <= event["ts"]) for event in trace["traceEvents"])
    return {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}, trace["otherData"]


def test_every_prompt_becomes_the_row_that_the_library_gives(job: dict[str, Any]) -> None:
    """Under a profile, which changes no row, as little as the run's identity. One object is small enough for a tile."""
    document = json.loads(read_bytes(job["annotations_uri"]))
    document["annotations"].append({"id": 90, "image_id": 0, "bbox": [30, 20, 8, 6]})
    write_bytes(job["annotations_uri"], json.dumps(document).encode())
    profile_uri = f"{job['output_uri']}-trace.json"
    summary = refine_dataset(**job, profile_uri=profile_uri)
    table = rows(job)
    assert sorted(row["prompt_id"] for row in table) == prompt_ids(job)
    assert (summary.prompts, summary.failed, summary.images) == (10, 0, 3)
    refiner = Refiner(RefinerConfig(**CONFIG["refiner"]))
    by_image: dict[str, list[Any]] = {}
    for prompt in read_prompts(job["annotations_uri"], images_uri=job["images_uri"]):
        by_image.setdefault(prompt.image_uri, []).append(prompt)
    direct: dict[str, RefinedMask] = {}
    for uri, prompts in by_image.items():
        masks = refiner.refine_image(Image.open(io.BytesIO(read_bytes(uri))), prompts)
        direct |= {mask.prompt_id: mask for mask in masks}
    for row in table:
        mask = direct[row["prompt_id"]]
        assert row["mask_counts"] == mask.mask_counts
        assert row["prompt_stability"] == pytest.approx(mask.prompt_stability, abs=1e-4)
        assert row["route"] == mask.route
        assert row["view"] == mask.view
        assert row["tile_xywh"] == (None if mask.tile_xywh is None else list(mask.tile_xywh))
    (run,) = rows(job, "runs --")
    assert any(row["second_pass"] for row in table), "so that every stage ran"
    assert [row["prompt_id"] for row in table if row["view"]] == ["90"]
    assert run["tiles"] == refiner.config.tile_rule
    assert [stage for stage in STAGES if run[f"{stage}_seconds"] > 0] == list(STAGES)
    assert summary.stages is not None
    assert summary.stages.seconds == {stage: run[f"{stage}_seconds"] for stage in STAGES}
    names, other = trace_of(profile_uri)
    assert {"plan", "refine", "publish", *STAGES} <= names
    assert (other["run_id"], other["shards_shown"], other["full"]) == (summary.run_id, 3, False)
    assert refine_dataset(**job).up_to_date


def test_the_same_input_again_is_up_to_date(job: dict[str, Any]) -> None:
    first = refine_dataset(**job)
    files = list_files(job["output_uri"])
    assert not any("/spans/" in uri for uri in files)
    again = refine_dataset(**job, profile_uri=(profile_uri := f"{job['output_uri']}-trace.json"))
    assert trace_of(profile_uri)[0] == {"plan"}
    assert again.up_to_date
    assert not first.up_to_date
    assert (again.run_id, again.rows) == (first.run_id, first.rows)
    assert list_files(job["output_uri"]) == files


def test_a_source_that_grew_changed_and_shrank(job: dict[str, Any], photos: list[Path]) -> None:
    refine_dataset(**job)
    document = json.loads(read_bytes(job["annotations_uri"]))
    boxes = document["annotations"]
    boxes[0]["bbox"] = [6, 5, 40, 30]
    del boxes[1]
    boxes.append({"id": 99, "image_id": 1, "bbox": [10, 10, 20, 20]})
    write_bytes(job["annotations_uri"], json.dumps(document).encode())
    write_bytes(join(job["images_uri"], photos[2].name), photos[1].read_bytes())

    summary = refine_dataset(**job, logical_date="2025-11-23")

    assert (summary.prompts, summary.images, summary.current_prompts) == (5, 3, 9)
    assert "1 new, 4 changed (annotation 1, image replaced 3), 1 withdrawn, 4 unchanged" in summary.markdown()
    assert sorted(row["prompt_id"] for row in rows(job)) == prompt_ids(job)
    assert sorted(row["revision"] for row in rows(job)) == [1] * 4 + [2] * 5
    assert [row["prompt_id"] for row in rows(job, "history") if row["status"] == "withdrawn"] == ["1"]
    assert [row["logical_date"] for row in rows(job, "runs ORDER BY revision --")] == [None, "2025-11-23"]
    assert refine_dataset(**job).up_to_date


@pytest.mark.parametrize(("good_boxes", "max_failed_fraction"), [(2, 0.1), (0, 1.0)])
def test_too_many_failures_are_published_and_red_every_time(
    photos: list[Path], tmp_path: Path, good_boxes: int, max_failed_fraction: float
) -> None:
    boxes = [[5, 5, 40, 30]] * good_boxes + [[10, 10, 0, 20]]
    document = {
        "images": [{"id": 0, "file_name": photos[0].name, "width": 80, "height": 60}],
        "annotations": [{"id": n, "image_id": 0, "bbox": box} for n, box in enumerate(boxes)],
    }
    source = tmp_path / "weak.json"
    source.write_text(json.dumps(document))
    job = {
        "annotations_uri": str(source),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
        "config": CONFIG | {"max_failed_fraction": max_failed_fraction},
    }
    for _attempt in range(2):
        with pytest.raises(InputError, match="prompts? failed|the only prompt failed"):
            refine_dataset(**job)
        assert [row["status"] for row in rows(job, "history")] == ["ok"] * good_boxes + ["failed"]


def test_two_drivers_make_each_row_once(job: dict[str, Any]) -> None:
    with ThreadPoolExecutor(2) as drivers:
        # Prefect keeps the settings of `prefect_server` in the context, which threads do not inherit.
        started = [drivers.submit(copy_context().run, lambda: refine_dataset(**job)) for _ in range(2)]
        summaries = [driver.result() for driver in started]
    assert len({summary.run_id for summary in summaries}) == 1
    assert sorted(row["prompt_id"] for row in rows(job, "history")) == prompt_ids(job)
    assert len(rows(job, "runs ORDER BY revision --")) == 1


def test_wrong_ray_settings_are_corrected_and_the_run_taken_up(
    annotations: Path, photos: list[Path], tmp_path: Path
) -> None:
    job = {
        "annotations_uri": str(annotations),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
    }
    refiner = CONFIG["refiner"]
    for wrong in ({"ray": {"num_cpus": 64}}, {"refiner": refiner | {"device": "cuda:99"}}):
        with pytest.raises(StableSamError):
            refine_dataset(**job, config=CONFIG | wrong, profile_uri=str(tmp_path / "trace.json"))
        assert trace_of(str(tmp_path / "trace.json"))[0] == {"plan", "refine"}, "also of a run that fails"
    (planned,) = (tmp_path / "table" / "_runs").iterdir()

    summary = refine_dataset(**job, config=CONFIG)

    assert (summary.run_id, summary.prompts, summary.failed) == (planned.name, 9, 0)


def test_a_killed_driver_is_taken_up(job: dict[str, Any], tmp_path: Path) -> None:
    config_path = tmp_path / "slow.yaml"
    config_path.write_text("refiner: {model: tiny, jitter_count: 600}\nray: {actors: 1}\nshard_images: 1\n")
    arguments = [f"--{name}={job[f'{name}_uri']}" for name in ("annotations", "images", "output")]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "refine", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen([*command, f"--config={config_path}"], env=environment)
    runs = join(job["output_uri"], "_runs")
    try:
        while not (commits := [uri for uri in list_files(runs) if "/commits/" in uri]):
            assert driver.poll() is None, "the driver ended before it committed anything"
            time.sleep(0.1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert len(commits) < 3, "killed too late for this test to mean anything"
    before = {uri: read_bytes(uri) for uri in commits}

    profile_uri = f"{job['output_uri']}-trace.json"
    summary = refine_dataset(**{**job, "config": str(config_path)}, profile_uri=profile_uri)

    assert sorted(row["prompt_id"] for row in rows(job, "history")) == prompt_ids(job)
    assert {uri: read_bytes(uri) for uri in commits} == before
    assert summary.images <= 3 - len(commits)
    assert summary.stages is not None, "also of the shards that were committed before"
    assert trace_of(profile_uri)[1]["shards_shown"] <= 3 - len(commits)
    assert not summary.up_to_date
