"""The actor as the plain class it is, without Ray: shards to committed rows, by a model in another process."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from stable_sam.config import RayConfig, RunConfig
from stable_sam.errors import StorageError, WeightsError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, ShardReport
from stable_sam.runs.commits import committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.runs.trace import read_spans
from stable_sam.timing import Times
from tasks.actors import shard_actor
from tasks.actors.shard_actor import ShardActor, ShardFailure
from tasks.actors.sizing import ActorPlan
from tests.unit import planted_refiner

PLAN = ActorPlan(actors=1, num_cpus=1, num_gpus=0, threads=1)


def planned(folder: Path, names: list[str], model: ModelIdentity = planted_refiner.MODEL) -> RunManifest:
    images = folder / "images"
    images.mkdir()
    for name in names:
        Image.new("RGB", (8, 6)).save(images / f"{name}.png")
    prompts = [
        Prompt(prompt_id=name, image_id=name, image_uri=str(images / f"{name}.png"), box_xyxy=(0, 0, 4, 4))
        for name in names
    ]
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="memory",
            images_uri=str(images),
            output_uri=str(folder / "table"),
            config=RunConfig(shard_images=3),
        ),
        model,
    )
    assert manifest is not None
    return manifest


def actor(manifest: RunManifest, *, profile: bool = False) -> ShardActor:
    settings = RayConfig(profile=profile)
    return ShardActor(manifest.uri, "cpu", pickle.dumps(planted_refiner.load), settings, PLAN)


def test_shards_are_worked_at_side_by_side_and_poison_fails_alone(tmp_path: Path) -> None:
    manifest = planned(tmp_path, ["a", "abort-1", "b", "c", "d", "e", "f", "g", "h"])
    worker = actor(manifest)
    assert worker.load() is True
    with ThreadPoolExecutor(2) as calls:
        reports = list(calls.map(worker.work, manifest.shards))
    assert all(isinstance(report, ShardReport) for report in reports), reports
    records = committed(manifest)
    assert sum(record.rows for record in records.values()) == 9
    assert sum(record.failed for record in records.values()) == 1
    assert set(records[manifest.shards[1].shard_id].stage_seconds or {}) == {"fetch", "decode", "write"}
    assert list(read_spans(manifest)) == []
    again = worker.work(manifest.shards[0])
    assert isinstance(again, ShardReport)
    assert again.reused
    worker.close()


def test_a_profile_is_kept_beside_the_commits_and_costs_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = planned(tmp_path, ["a", "b", "c", "d"])
    worker = actor(manifest, profile=True)
    report = worker.work(manifest.shards[0])
    assert isinstance(report, ShardReport)
    assert set(report.stage_seconds) == {"fetch", "decode", "write", "commit"}
    (kept,) = read_spans(manifest)
    assert kept.shard_id == manifest.shards[0].shard_id
    assert {span.stage for span in kept.spans} == set(report.stage_seconds)
    assert {span.about for span in kept.spans if span.stage in ("fetch", "decode")} == {
        str(tmp_path / "images" / f"{name}.png") for name in "abc"
    }
    assert len({span.thread.rpartition(":")[0] for span in kept.spans}) == 2, "the actor's process and its child's"

    def away(manifest: RunManifest, shard_id: str, actor: str, times: Times) -> None:
        raise StorageError("s3://x: cannot write")

    monkeypatch.setattr(shard_actor, "write_spans", away)
    assert isinstance(worker.work(manifest.shards[1]), ShardReport)
    assert len(committed(manifest)) == 2
    worker.close()


def test_another_model_than_planned_is_said_before_any_work(tmp_path: Path) -> None:
    manifest = planned(tmp_path, ["a"], ModelIdentity(model_id="tiny", weights_sha256="cd", dtype="float32"))
    worker = actor(manifest)
    error = worker.load()
    assert isinstance(error, WeightsError)
    assert "planned for" in str(error)
    worker.close()


def test_a_store_that_fails_and_a_lost_gpu_commit_nothing(tmp_path: Path) -> None:
    manifest = planned(tmp_path, ["a", "gpu", "x", "y"])
    worker = actor(manifest)
    lost, fine = (worker.work(shard) for shard in manifest.shards)
    assert isinstance(lost, ShardFailure)
    assert lost.actor_is_lost
    assert isinstance(fine, ShardReport)
    Path(manifest.shards[0].uri).unlink()
    failure = worker.work(manifest.shards[0])
    assert isinstance(failure, ShardFailure)
    assert not failure.actor_is_lost
    assert committed(manifest).keys() == {manifest.shards[1].shard_id}
    worker.close()
