"""CPU work done by helpers, without Ray: the same rows, side by side with the model, and here when nobody helps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.errors import StorageError
from stable_sam.records import Prompt, ShardReport
from stable_sam.refining.image_job import ImageJob, finish_job, infer_job, prepare_job, refine_job
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import complete_shard, image_job, refine_shard
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.runs.commits import commit_of, committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.timing import STAGES
from tasks.actors import helper_work
from tasks.actors.child_process import Limits
from tasks.actors.helper_work import HelperWork
from tasks.actors.offload import NoHelperError, Offload
from tasks.actors.sizing import ActorPlan, helpers_each

CONFIG = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2))
LIMITS = Limits(seconds=60, memory_mb=1000)
ROOM = 2


class DirectWork(HelperWork):
    """In this process, without a child."""

    def _in_child(self, job: Any) -> Any:
        if isinstance(job, ImageJob):
            return prepare_job(self.manifest.config.refiner, self.input_side, job)
        return finish_job(self.manifest.config, job)


class HelpersHere:
    """Helpers in the caller's thread, which note what they begin and what they have done."""

    room = ROOM

    def __init__(self, before: Callable[[str, str], None] = lambda method, image: None) -> None:
        self.events: list[str] = []
        self._before = before

    def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
        first = arguments[0]
        image = first[0].image_id if method == "prepare" else getattr(first, "image_uri", "")[-5:-4]
        self._before(method, image)
        self.events.append(f"{method} {image}")
        return getattr(work, method)(*arguments)


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(CONFIG.refiner, CONFIG.routing)


def planned(folder: Path, refiner: Refiner, names: str = "abcdefgh") -> RunManifest:
    (folder / "images").mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    for name in names:
        pixels = noise.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    prompts = [
        Prompt(
            prompt_id=f"{name}{number}",
            image_id=name,
            image_uri=str(folder / "images" / f"{name}.png"),
            box_xyxy=(4.0, 4.0, 40.0 + number, 30.0),
        )
        for name in names
        for number in range(2)
    ]
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="memory",
            images_uri=str(folder / "images"),
            output_uri=str(folder / "table"),
            config=CONFIG,
        ),
        refiner.identity,
    )
    assert manifest is not None
    return manifest


def completed(manifest: RunManifest, helpers: Any, refiner: Refiner, **options: Any) -> ShardReport:
    offload = Offload(helpers, manifest, input_side=refiner.input_side, limits=LIMITS, work_class=DirectWork)

    def answers(jobs: Iterator[Any]) -> Iterator[Any]:
        for job in jobs:
            match job:
                case PreparedImage():
                    yield infer_job(refiner, job)
                case ImageJob():
                    yield refine_job(refiner, CONFIG.refiner, job)
                case _:
                    yield job

    return complete_shard(
        manifest,
        manifest.shards[0],
        offload.refine_jobs(answers),
        fetch_jobs=offload.fetch_jobs,
        write_rows=offload.write_rows,
        **options,
    )


def rows(manifest: RunManifest) -> list[dict[str, Any]]:
    record = committed(manifest)[manifest.shards[0].shard_id]
    found: list[dict[str, Any]] = pq.read_table(Path(manifest.output_uri, record.part)).to_pylist()
    return found


@pytest.fixture
def expected(tmp_path: Path, refiner: Refiner) -> list[dict[str, Any]]:
    (tmp_path / "library").mkdir()
    manifest = planned(tmp_path / "library", refiner)
    refine_shard(refiner, manifest, manifest.shards[0])
    return rows(manifest)


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    places = {"image_uri", "run_id", "shard_id", "fingerprint"}
    assert [{k: v for k, v in row.items() if k not in places} for row in ours] == [
        {k: v for k, v in row.items() if k not in places} for row in theirs
    ]


def test_helpers_do_all_but_the_model_and_the_rows_are_the_same(
    tmp_path: Path, refiner: Refiner, expected: list[dict[str, Any]]
) -> None:
    manifest, helpers = planned(tmp_path, refiner), HelpersHere()
    report = completed(manifest, helpers, refiner)
    assert (report.rows, report.failed, report.reused) == (16, 0, False)
    assert sorted(helpers.events) == sorted(
        [f"{stage} {i}" for stage in ("prepare", "finish") for i in "abcdefgh"] + ["write "]
    )
    same(rows(manifest), expected)
    assert set(report.stage_seconds) == {*STAGES}, "also what helpers measured, in threads"
    record = commit_of(manifest, manifest.shards[0].shard_id)
    assert record is not None
    assert set(record.stage_seconds or {}) == {*STAGES} - {"commit"}


def test_the_model_goes_on_while_images_are_prepared_and_finished(tmp_path: Path, refiner: Refiner) -> None:
    begun, all_begun = set(), threading.Event()

    def before(method: str, image: str) -> None:
        if method == "prepare":
            begun.add(image)
            if image == "d":
                all_begun.set()
        elif method == "finish" and image == "a":
            assert all_begun.wait(20), "nothing is prepared before what was prepared earlier is finished"

    manifest, helpers = planned(tmp_path, refiner), HelpersHere(before)
    assert completed(manifest, helpers, refiner).failed == 0
    assert helpers.events.index("prepare d") < helpers.events.index("finish a")


def test_no_more_is_in_the_helpers_hands_than_they_have_room_for(tmp_path: Path, refiner: Refiner) -> None:
    prepared = threading.Semaphore(0)
    manifest, helpers = planned(tmp_path, refiner), HelpersHere(lambda method, image: prepared.release())
    offload = Offload(helpers, manifest, input_side=refiner.input_side, limits=LIMITS, work_class=DirectWork)
    from stable_sam.runs.manifest import read_shard

    jobs = offload.fetch_jobs(manifest, read_shard(manifest.shards[0].uri), {})
    assert all(prepared.acquire(timeout=10) for _ in range(ROOM))
    assert not prepared.acquire(timeout=0.2), "more is prepared than was asked for"
    next(jobs)
    assert prepared.acquire(timeout=10)
    jobs.close()  # type: ignore[attr-defined]  # a generator


@pytest.mark.parametrize("calls", [0, 3, 9, 16])
def test_what_helpers_do_not_do_is_done_here(
    tmp_path: Path, refiner: Refiner, expected: list[dict[str, Any]], calls: int
) -> None:
    left = threading.Semaphore(calls)

    def before(method: str, image: str) -> None:
        if not left.acquire(blocking=False):
            raise NoHelperError

    manifest = planned(tmp_path, refiner)
    assert completed(manifest, HelpersHere(before), refiner).failed == 0
    same(rows(manifest), expected)


def test_a_store_that_fails_at_a_helper_commits_nothing(tmp_path: Path, refiner: Refiner) -> None:
    class Away(HelpersHere):
        def call(self, work: HelperWork, method: str, *arguments: Any) -> Any:
            return StorageError("s3://x: cannot read: connection refused")

    manifest = planned(tmp_path, refiner)
    with pytest.raises(StorageError, match="connection refused"):
        completed(manifest, Away(), refiner)
    assert commit_of(manifest, manifest.shards[0].shard_id) is None


def test_poisoned_and_missing_images_are_failed_rows(tmp_path: Path, refiner: Refiner) -> None:
    manifest, helpers = planned(tmp_path, refiner), HelpersHere()
    (tmp_path / "images" / "c.png").unlink()
    report = completed(manifest, helpers, refiner, poisoned={"b": "ends the process"})
    assert (report.rows, report.failed) == (16, 4)
    errors = {row["image_id"]: row["error"] for row in rows(manifest) if row["status"] == "failed"}
    assert errors["b"] == "ends the process"
    assert "c.png: cannot read: not found" in errors["c"]
    assert "prepare b" not in helpers.events


def test_an_image_that_eats_memory_at_a_helper_fails_alone(tmp_path: Path, refiner: Refiner) -> None:
    """The work as it is, in a child under its limits."""
    manifest = planned(tmp_path, refiner, "a")
    big = tmp_path / "images" / "big.png"
    Image.new("RGB", (7000, 7000)).save(big, compress_level=1)
    of_image = [
        (Prompt(prompt_id=path.stem, image_id=path.stem, image_uri=str(path), box_xyxy=(4.0, 4.0, 40.0, 30.0)),)
        for path in (big, tmp_path / "images" / "a.png")
    ]
    work = HelperWork(manifest=manifest, input_side=64, limits=Limits(seconds=60, memory_mb=30))
    failed, prepared = (work.prepare(prompts) for prompts in of_image)
    assert isinstance(failed, list)
    assert failed[0].error == (
        f"{big}: refining this image took more than its memory limit, 30 MB (image_memory_mb), 2 times"
    )
    assert isinstance(prepared, PreparedImage)
    inferred = infer_job(refiner, prepared)
    assert isinstance(inferred, InferredImage)
    job = image_job(of_image[1], manifest.images_uri)
    assert work.finish(inferred) == refine_job(refiner, CONFIG.refiner, job)
    child = helper_work._children._child
    assert child is not None
    child.stop()


def test_helpers_are_for_actors_with_a_gpu_and_share_what_is_there() -> None:
    gpu = ActorPlan(actors=4, num_cpus=1, num_gpus=1, threads=1)
    cpu = ActorPlan(actors=4, num_cpus=1, num_gpus=0, threads=1)
    assert [helpers_each(RayConfig(), gpu, cores) for cores in (0, 1, 8, 9, 1000)] == [0, 1, 2, 3, 16]
    assert helpers_each(RayConfig(), cpu, 8) == 0
    assert helpers_each(RayConfig(helpers=0), gpu, 8) == 0
    assert helpers_each(RayConfig(helpers=5), gpu, 8) == 5
    assert helpers_each(RayConfig(helpers=5), gpu, 0) == 0
