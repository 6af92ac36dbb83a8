"""Whatever is wrong with an image makes failed rows; whatever is wrong with the machine makes none."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import StorageError, WeightsError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining import shard_job
from stable_sam.refining.image_job import ImageJob, refine_job
from stable_sam.refining.shard_job import FETCHED_AHEAD, complete_shard, refine_shard
from stable_sam.runs.commits import commit_of, committed
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import read_bytes

MODEL = ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32")
Work = Callable[[NDArray[np.uint8], Sequence[Prompt]], list[RefinedMask]]


def all_ok(image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
    return [RefinedMask(prompt_id=p.prompt_id, status="ok", area=1, route="accept") for p in prompts]


class FakeRefiner:
    def __init__(self, work: Work = all_ok, identity: ModelIdentity = MODEL) -> None:
        self.work = work
        self.identity = identity
        self.calls: list[list[str]] = []

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
        self.calls.append([p.prompt_id for p in prompts])
        return self.work(image, prompts)


def box(prompt_id: str, image: Path, error: str | None = None) -> Prompt:
    return Prompt(prompt_id=prompt_id, image_id=image.stem, image_uri=str(image), box_xyxy=(0, 0, 4, 4), error=error)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        Image.new("RGB", (8, 6)).save(folder / f"{name}.png")
    return folder


def planned(images: Path, prompts: list[Prompt], refiner: RefinerConfig | None = None) -> RunManifest:
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(images),
            output_uri=str(images.parent / "table"),
            config=RunConfig(refiner=refiner or RefinerConfig()),
        ),
        MODEL,
    )
    assert manifest is not None
    assert len(manifest.shards) == 1
    return manifest


def outcome(manifest: RunManifest) -> dict[str, tuple[str, str | None, str]]:
    """prompt_id -> (status, error, route) of the committed rows."""
    record = committed(manifest)[manifest.shards[0].shard_id]
    rows = pq.read_table(Path(manifest.output_uri, record.part)).to_pylist()
    return {row["prompt_id"]: (row["status"], row["error"], row["route"]) for row in rows}


def test_one_call_for_each_image_and_one_row_for_each_prompt(images: Path) -> None:
    prompts = [box(f"{name}{k}", images / f"{name}.png") for k in range(3) for name in "cab"]
    manifest, refiner = planned(images, prompts), FakeRefiner()
    report = refine_shard(refiner, manifest, manifest.shards[0])
    assert refiner.calls == [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["c0", "c1", "c2"]]
    assert (report.rows, report.failed, report.images, report.reused) == (9, 0, 3, False)
    assert set(outcome(manifest)) == {p.prompt_id for p in prompts}


def test_bad_images_become_failed_rows_and_the_others_go_on(images: Path) -> None:
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(jpeg, "JPEG")
    (images / "truncated.jpg").write_bytes(jpeg.getvalue()[:600])
    (images / "text.jpg").write_text("not an image")
    Image.new("1", (400, 400)).save(images / "bomb.png")
    (images / "folder.png").mkdir()
    names = ["a.png", "truncated.jpg", "text.jpg", "bomb.png", "gone.png", "folder.png", "b.png"]
    manifest = planned(images, [box(name, images / name) for name in names], RefinerConfig(max_image_pixels=10_000))
    report = refine_shard(FakeRefiner(), manifest, manifest.shards[0])
    assert (report.rows, report.failed) == (7, 5)
    rows = outcome(manifest)
    assert rows["a.png"] == rows["b.png"] == ("ok", None, "accept")
    for name, reason in (
        ("truncated.jpg", "damaged"),
        ("text.jpg", "not an image"),
        ("bomb.png", "too large"),
        ("gone.png", "not found"),
        ("folder.png", "directory"),
    ):
        status, error, route = rows[name]
        assert (status, route) == ("failed", "reject")
        assert error is not None
        assert error.startswith(f"{images}/{name}: ")
        assert reason in error
        assert "\n" not in error


def test_prompts_known_to_be_bad_keep_their_reason_and_cost_no_image(images: Path) -> None:
    prompts = [box("1", images / "gone.png", error="no image entry"), box("2", images / "a.png")]
    manifest, refiner = planned(images, prompts), FakeRefiner()
    refine_shard(refiner, manifest, manifest.shards[0])
    assert refiner.calls == [["2"]]
    assert outcome(manifest)["1"] == ("failed", "no image entry", "reject")


def test_a_picture_of_another_size_than_declared_fails(images: Path) -> None:
    """COCO files often state the stored size of a photo that EXIF turns; its boxes are then another frame's."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(images / "turned.jpg", exif=exif)
    turned = images / "turned.jpg"
    stored = replace(box("stored", turned), image_size=(20, 40))
    upright = replace(box("upright", turned), image_id="upright", image_size=(40, 20))
    unknown = replace(box("unknown", turned), image_id="unknown")
    manifest = planned(images, [stored, upright, unknown])
    refine_shard(FakeRefiner(), manifest, manifest.shards[0])
    rows = outcome(manifest)
    reason = (
        f"{turned}: expected the declared 40 x 20 pixels, the upright image has 20 x 40: the declared size is that of "
        "the pixels as stored, before EXIF orientation 6 turns them; set source.frame: stored in the config if the "
        "boxes are of these pixels, too, or correct width and height if the boxes are upright"
    )
    assert rows["stored"] == ("failed", reason, "reject")
    assert rows["upright"] == rows["unknown"] == ("ok", None, "accept")


def crash(image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
    if prompts[0].prompt_id == "b":
        raise RuntimeError("out of\nmemory")
    return all_ok(image, prompts)


def lose_one(image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
    return [mask for mask in all_ok(image, prompts) if mask.prompt_id != "b"]


@pytest.mark.parametrize(("work", "reason"), [(crash, "RuntimeError: out of memory"), (lose_one, "expected masks of")])
def test_an_unexpected_error_fails_one_image(images: Path, work: Work, reason: str) -> None:
    manifest = planned(images, [box(name, images / f"{name}.png") for name in "abc"])
    refine_shard(FakeRefiner(work), manifest, manifest.shards[0])
    rows = outcome(manifest)
    assert [rows[name][0] for name in "abc"] == ["ok", "failed", "ok"]
    assert reason in str(rows["b"][1])


def test_poisoned_images_are_not_touched(images: Path) -> None:
    manifest, refiner = planned(images, [box(name, images / f"{name}.png") for name in "abc"]), FakeRefiner()

    def refine(jobs: Iterator[ImageJob]) -> Iterator[list[RefinedMask]]:
        return (refine_job(refiner, manifest.config.refiner, job) for job in jobs)

    report = complete_shard(manifest, manifest.shards[0], refine, poisoned={"b": "ends the process"})
    assert refiner.calls == [["a"], ["c"]]
    assert report.failed == 1
    assert outcome(manifest)["b"] == ("failed", "ends the process", "reject")


def test_images_are_fetched_before_their_turn_and_no_more_than_a_few(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02}" for number in range(FETCHED_AHEAD + 4)]
    for name in names:
        Image.new("RGB", (8, 6)).save(images / f"{name}.png")
    manifest, refiner = planned(images, [box(name, images / f"{name}.png") for name in names]), FakeRefiner()
    fetched, enough = [], threading.Event()

    def counted(uri: str, **limits: int) -> bytes:
        data = read_bytes(uri, **limits)
        fetched.append(uri)
        if len(fetched) == FETCHED_AHEAD:
            enough.set()
        return data

    class Turn(AbstractContextManager[None]):
        def __exit__(self, *error: object) -> None:
            pass

        def __enter__(self) -> None:
            assert enough.wait(10), "nothing was fetched while waiting"
            time.sleep(0.1)
            assert len(fetched) == FETCHED_AHEAD

    monkeypatch.setattr(shard_job, "read_bytes", counted)

    def refine(jobs: Iterator[ImageJob]) -> Iterator[list[RefinedMask]]:
        return (refine_job(refiner, manifest.config.refiner, job) for job in jobs)

    report = complete_shard(manifest, manifest.shards[0], refine, turn=Turn())
    assert (report.rows, report.failed) == (len(names), 0)


def test_a_committed_shard_is_only_reported(images: Path) -> None:
    manifest, refiner = planned(images, [box("a", images / "a.png")]), FakeRefiner()
    first = refine_shard(refiner, manifest, manifest.shards[0])
    again = refine_shard(refiner, manifest, manifest.shards[0])
    assert not first.reused
    assert again.reused
    assert (again.rows, again.failed, again.images) == (first.rows, first.failed, first.images)
    assert len(refiner.calls) == 1


def lose_device(image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
    class AcceleratorError(RuntimeError):
        pass

    raise AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_commits_nothing(images: Path) -> None:
    manifest = planned(images, [box("a", images / "a.png")])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        refine_shard(FakeRefiner(lose_device), manifest, manifest.shards[0])
    assert commit_of(manifest, manifest.shards[0].shard_id) is None


def test_a_store_that_is_away_commits_nothing(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str, **limits: int) -> bytes:
        raise StorageError(f"{uri}: cannot read: connection refused")

    manifest = planned(images, [box("a", images / "a.png")])
    monkeypatch.setattr(shard_job, "read_bytes", away)
    monkeypatch.setattr(shard_job, "exists", away)
    with pytest.raises(StorageError, match="connection refused"):
        refine_shard(FakeRefiner(), manifest, manifest.shards[0])
    assert commit_of(manifest, manifest.shards[0].shard_id) is None


def test_a_read_that_fails_once_is_tried_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [StorageError("x: cannot read: connection reset")]

    def flaky(uri: str, **limits: int) -> bytes:
        if failures and uri.endswith(".png"):
            raise failures.pop()
        return read_bytes(uri, **limits)

    manifest = planned(images, [box("a", images / "a.png")])
    monkeypatch.setattr(shard_job, "read_bytes", flaky)
    assert refine_shard(FakeRefiner(), manifest, manifest.shards[0]).failed == 0
    assert not failures


def test_a_file_too_large_for_an_image_is_not_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "huge.png").write_bytes(bytes(10_000))
    manifest = planned(images, [box(name, images / f"{name}.png") for name in ("a", "huge")])
    monkeypatch.setattr(shard_job, "MAX_IMAGE_BYTES", 9_999)
    refine_shard(FakeRefiner(), manifest, manifest.shards[0])
    rows = outcome(manifest)
    assert rows["a"][0] == "ok"
    assert rows["huge"][0] == "failed"
    assert "huge.png: cannot read: expected at most 9999 bytes, got a larger file" in (rows["huge"][1] or "")


def test_another_model_than_planned_is_refused(images: Path) -> None:
    manifest = planned(images, [box("a", images / "a.png")])
    other = FakeRefiner(identity=ModelIdentity(model_id="tiny", weights_sha256="cd", dtype="float32"))
    with pytest.raises(WeightsError, match="planned for .*; every node needs the same files"):
        refine_shard(other, manifest, manifest.shards[0])
