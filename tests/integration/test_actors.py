"""The Ray boundary: shards come back whatever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from stable_sam.config import RayConfig, RefinerConfig, RunConfig
from stable_sam.data.commits import committed
from stable_sam.data.manifest import RunManifest, plan_run
from stable_sam.data.query import query
from stable_sam.data.table import publish
from stable_sam.errors import WeightsError
from stable_sam.identity import model_identity
from stable_sam.records import Prompt, ShardReport
from tasks.actors import POISON_REASON, run_shards
from tasks.shard_actor import ShardActor, ShardFailure

pytestmark = pytest.mark.usefixtures("ray_local")


def plan(folder: Path, image_paths: list[Path], *, shard_images: int = 2, max_retries: int = 0) -> RunManifest:
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
        ray=RayConfig(actors=1, max_retries=max_retries),
        shard_images=shard_images,
    )
    manifest = plan_run(
        prompts,
        annotations_uri="memory",
        images_uri=str(folder / "images"),
        output_uri=str(folder / "table"),
        config=config,
        model=model_identity(config.refiner),
    )
    assert manifest is not None
    return manifest


def actor_that_dies_on(image_name: str, *, times_marker: Path | None = None) -> type[ShardActor]:
    """An actor class whose process is killed when it refines `image_name`; with a marker, only the first time.

    Defined in a function, so that Ray sends the class itself: its workers cannot import the tests.
    """

    class DyingActor(ShardActor):
        def load(self):  # type: ignore[no-untyped-def]
            import stable_sam.data.images as images
            import stable_sam.shard_job as shard_job

            honest = images.decode_image

            def deadly(data, *, name, max_pixels):  # type: ignore[no-untyped-def]
                if image_name in name and (times_marker is None or not times_marker.exists()):
                    if times_marker is not None:
                        times_marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return honest(data, name=name, max_pixels=max_pixels)

            images.decode_image = shard_job.decode_image = deadly
            return super().load()

    return DyingActor


def test_every_shard_is_committed_once(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1)
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray))
    assert all(isinstance(outcome, ShardReport) and not outcome.reused for outcome in outcomes)
    assert sorted(outcome.shard_id for outcome in outcomes) == sorted(shard.shard_id for shard in manifest.shards)
    assert committed(manifest).keys() == {shard.shard_id for shard in manifest.shards}


def test_an_actor_that_dies_once_costs_nothing(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1, max_retries=1)
    dying = actor_that_dies_on(photos[1].name, times_marker=tmp_path / "died")
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, actor_class=dying))
    assert (tmp_path / "died").exists()
    assert [type(outcome) for outcome in outcomes] == [ShardReport] * len(manifest.shards)
    assert sum(outcome.failed for outcome in outcomes if isinstance(outcome, ShardReport)) == 0


def test_an_image_that_kills_becomes_failed_rows(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=len(photos))
    dying = actor_that_dies_on(photos[1].name)
    (outcome,) = run_shards(manifest.uri, manifest.shards, manifest.config.ray, actor_class=dying)
    assert isinstance(outcome, ShardReport)
    assert (outcome.rows, outcome.failed) == (2 * len(photos), 2)
    publish(manifest)
    failed = query(manifest.output_uri, "SELECT DISTINCT image_id, error FROM masks WHERE status = 'failed'")
    assert failed.to_pylist() == [{"image_id": photos[1].stem, "error": POISON_REASON}]


def test_a_store_that_fails_during_the_search_condemns_no_image(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=len(photos))
    dying = actor_that_dies_on(photos[1].name)

    class DyingActor(dying):  # type: ignore[misc, valid-type]  # made at run time
        def probe(self, shard, image_id):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            return super().probe(replace(shard, uri=f"{shard.uri}.gone"), image_id)

    (outcome,) = run_shards(manifest.uri, manifest.shards, manifest.config.ray, actor_class=DyingActor)
    assert isinstance(outcome, ShardFailure)
    assert "not found" in outcome.error
    assert not committed(manifest)


def test_an_actor_that_lost_its_gpu_is_replaced(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1, max_retries=1)
    loads = tmp_path / "loads"

    class AcceleratorError(RuntimeError):
        pass

    class LosingActor(ShardActor):
        def load(self):  # type: ignore[no-untyped-def]
            import stable_sam.shard_job as shard_job

            with loads.open("a") as log:
                log.write(f"{os.getpid()}\n")
            if len(loads.read_text().splitlines()) == 1:

                def lost(data, *, name, max_pixels):  # type: ignore[no-untyped-def]
                    raise AcceleratorError("device-side assert triggered")

                shard_job.decode_image = lost
            return super().load()

    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray, actor_class=LosingActor))
    assert [type(outcome) for outcome in outcomes] == [ShardReport] * len(manifest.shards)
    assert sum(outcome.failed for outcome in outcomes if isinstance(outcome, ShardReport)) == 0
    assert len(set(loads.read_text().split())) == 2


def test_a_store_that_fails_is_a_value(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos, shard_images=1)
    Path(manifest.shards[0].uri).unlink()
    outcomes = list(run_shards(manifest.uri, manifest.shards, manifest.config.ray))
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, ShardFailure))
    assert failure.shard_id == manifest.shards[0].shard_id
    assert "not found" in failure.error
    assert len(outcomes) == len(manifest.shards)


def test_wrong_weights_end_the_run(tmp_path: Path, photos: list[Path]) -> None:
    manifest = plan(tmp_path, photos)
    text = Path(manifest.uri).read_text().replace(manifest.model.weights_sha256, "0" * 64)
    Path(manifest.uri).write_text(text)
    with pytest.raises(WeightsError, match="planned for"):
        list(run_shards(manifest.uri, manifest.shards, manifest.config.ray))
