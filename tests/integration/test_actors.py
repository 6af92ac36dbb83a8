"""The Ray boundary: shards come back whatever dies."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.errors import InputError, WeightsError
from stable_sam.identity import model_identity
from stable_sam.records import Prompt, RefinedMask, ShardReport
from stable_sam.refining.image_job import ImageRefiner
from stable_sam.runs.commits import committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.runs.summary import check_failures, summarize
from stable_sam.table.query import query
from tasks.actors.child import LoadRefiner
from tasks.actors.run import POISON_REASON, run_shards
from tasks.actors.shard_actor import ShardActor, ShardFailure

pytestmark = pytest.mark.usefixtures("ray_local")


def plan(
    folder: Path, image_paths: list[Path], *, shard_images: int = 2, max_retries: int = 0, **limits: float
) -> RunManifest:
    prompts = [
        Prompt(
            prompt_id=f"{path.stem}:{number}",
            image_id=path.stem,
            image_uri=str(path),
            box_xyxy=(4.0, 4.0, 40.0 + number, 30.0),
        )
        for path in image_paths
        for number in range(2)
    ]
    config = RunConfig(
        refiner=RefinerConfig(model="tiny", jitter_count=2),
        ray=RayConfig.from_dict({"actors": 1, "max_retries": max_retries, **limits}),
        shard_images=shard_images,
    )
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="memory",
            images_uri=str(folder / "images"),
            output_uri=str(folder / "table"),
            config=config,
        ),
    )
    assert manifest is not None
    return manifest


def loads_with(harms: dict[str, Callable[[], None]]) -> LoadRefiner:
    """No model but its identity, so that processes start fast; it does harm to its process at the images named.

    A function in a function, so that it is sent as it is: other processes cannot import the tests.
    """

    def load(config: RunConfig, threads: int) -> ImageRefiner:
        known = model_identity(config.refiner)  # here: names in a class's own body are not sent along

        class HarmfulRefiner:
            identity = known

            def refine_image(self, image: Any, prompts: Sequence[Prompt]) -> list[RefinedMask]:
                harms.get(prompts[0].image_id, lambda: None)()
                return [RefinedMask(prompt_id=p.prompt_id, status="ok", area=1, route="accept") for p in prompts]

        return HarmfulRefiner()

    return load


def abort() -> Callable[[], None]:
    return lambda: ctypes.CDLL(None).abort()


def hang() -> Callable[[], None]:
    return lambda: ctypes.PyDLL(None).sleep(1000)  # in C and with Python's lock: nothing inside can end it


def eat_memory() -> Callable[[], None]:
    def eat() -> None:
        eaten = []
        while True:
            eaten.append(b"x" * 2**24)

    return eat


def kill_the_actor(*, once: Path | None = None) -> Callable[[], None]:
    """What a node without memory does: the process of the model and its parent, the actor, go together."""

    def kill() -> None:
        if once is None or not once.exists():
            if once is not None:
                once.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(10)

    return kill


def test_every_shard_is_committed_once(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1)
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray))
    assert all(isinstance(outcome, ShardReport) and not outcome.reused for outcome in outcomes)
    assert sorted(outcome.shard_id for outcome in outcomes) == sorted(shard.shard_id for shard in manifest.shards)
    assert committed(manifest).keys() == {shard.shard_id for shard in manifest.shards}


def test_poison_fails_alone_and_is_counted(tmp_path: Path, photos: list[Path]) -> None:
    more = [photos[0].with_name(f"more{number}.jpg") for number in range(3)]
    for path in more:
        path.write_bytes(photos[0].read_bytes())
    manifest = plan(tmp_path, [*photos, *more], shard_images=3, image_timeout_s=4, image_memory_mb=700)
    load = loads_with({photos[1].stem: abort(), more[0].stem: hang(), more[1].stem: eat_memory()})
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=load))
    assert all(isinstance(outcome, ShardReport) for outcome in outcomes)
    publish(manifest)
    failed = query(manifest.output_uri, "SELECT image_uri, error FROM masks WHERE status = 'failed'").to_pylist()
    reasons = [
        f"{photos[1]}: refining this image ended the process (SIGABRT), 2 times",
        f"{more[0]}: refining this image took longer than its time limit, 4 s (image_timeout_s), 2 times",
        f"{more[1]}: refining this image took more than its memory limit, 700 MB (image_memory_mb), 2 times",
    ]
    assert sorted(row["error"] for row in failed) == sorted(2 * reasons)
    assert all(row["error"].startswith(row["image_uri"]) for row in failed)
    summary = summarize(manifest.output_uri, manifest.run_id)
    assert "12 prompts, 6 failed" in summary.markdown()
    check_failures(summary, max_failed_fraction=0.5)
    with pytest.raises(InputError, match=r"6 of 12 prompts failed, .* why, one of them: .*: refining this image"):
        check_failures(summary, max_failed_fraction=0.4)


def test_an_actor_that_dies_once_costs_nothing(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1, max_retries=1)
    load = loads_with({photos[1].stem: kill_the_actor(once=tmp_path / "died")})
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=load))
    assert (tmp_path / "died").exists()
    assert [type(outcome) for outcome in outcomes] == [ShardReport] * len(manifest.shards)
    assert sum(outcome.failed for outcome in outcomes if isinstance(outcome, ShardReport)) == 0


def test_an_image_that_ends_whole_actors_becomes_failed_rows(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=len(photos))
    load = loads_with({photos[1].stem: kill_the_actor()})
    (outcome,) = run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=load)
    assert isinstance(outcome, ShardReport)
    assert (outcome.rows, outcome.failed) == (2 * len(photos), 2)
    publish(manifest)
    failed = query(manifest.output_uri, "SELECT DISTINCT image_id, error FROM masks WHERE status = 'failed'")
    assert failed.to_pylist() == [{"image_id": photos[1].stem, "error": POISON_REASON}]


def test_a_store_that_fails_during_the_search_condemns_no_image(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=len(photos))
    load = loads_with({photos[1].stem: kill_the_actor()})

    class BlindActor(ShardActor):
        def probe(self, shard, image_id):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            return super().probe(replace(shard, uri=f"{shard.uri}.gone"), image_id)

    (outcome,) = run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=load, actor_class=BlindActor)
    assert isinstance(outcome, ShardFailure)
    assert "not found" in outcome.error
    assert not committed(manifest)


def test_an_actor_that_lost_its_gpu_is_replaced(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1, max_retries=1)
    lost, actors = tmp_path / "lost", tmp_path / "actors"

    class AcceleratorError(RuntimeError):
        pass

    def lose() -> None:
        if not lost.exists():
            lost.touch()
            raise AcceleratorError("device-side assert triggered")

    class CountedActor(ShardActor):
        def load(self):  # type: ignore[no-untyped-def]
            with actors.open("a") as log:
                log.write(f"{os.getpid()}\n")
            return super().load()

    outcomes = list(
        run_shards(
            manifest.uri,
            manifest.shards,
            manifest.config.ray,
            load=loads_with({photos[0].stem: lose}),
            actor_class=CountedActor,
        )
    )
    assert [type(outcome) for outcome in outcomes] == [ShardReport] * len(manifest.shards)
    assert sum(outcome.failed for outcome in outcomes if isinstance(outcome, ShardReport)) == 0
    assert len(set(actors.read_text().split())) == 2


def test_a_store_that_fails_is_a_value(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1)
    Path(manifest.shards[0].uri).unlink()
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=loads_with({})))
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, ShardFailure))
    assert failure.shard_id == manifest.shards[0].shard_id
    assert "not found" in failure.error
    assert len(outcomes) == len(manifest.shards)


def test_wrong_weights_end_the_run(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos)
    text = Path(manifest.uri).read_text().replace(manifest.model.weights_sha256, "0" * 64)
    Path(manifest.uri).write_text(text)
    with pytest.raises(WeightsError, match="planned for"):
        list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, load=loads_with({})))
