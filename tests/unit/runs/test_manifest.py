"""A plan is made of content: the same content gives the same ids, other content gives others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config import RayConfig, RefinerConfig, RoutingConfig, RunConfig
from stable_sam.errors import AnnotationError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.runs.commits import write_part
from stable_sam.runs.manifest import RunManifest, read_manifest, read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import list_files

MODEL = ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in range(5):
        (folder / f"{name}.jpg").write_bytes(b"%d" % name)
    return folder


def prompts_of(images: Path, count: int = 12) -> list[Prompt]:
    return [
        Prompt(prompt_id=f"p{k}", image_id=str(k % 5), image_uri=f"{images}/{k % 5}.jpg", box_xyxy=(0, 0, k + 1, 5))
        for k in range(count)
    ]


def plan(
    images: Path, prompts: list[Prompt] | Iterator[Prompt], output: Path, *,
    config: RunConfig | None = None, model: ModelIdentity = MODEL, logical_date: str | None = None,
) -> RunManifest:  # fmt: skip
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(images),
            output_uri=str(output),
            config=config or RunConfig(shard_images=2),
            logical_date=logical_date,
        ),
        model,
    )
    assert manifest is not None
    return manifest


def test_every_prompt_is_in_exactly_one_shard(images: Path, tmp_path: Path) -> None:
    prompts = [*prompts_of(images), Prompt(prompt_id="lost", image_id="x", image_uri="", error="no image entry")]
    manifest = plan(images, prompts, tmp_path / "table")
    assert [shard.images for shard in manifest.shards] == [2, 2, 2]
    assert (manifest.prompts, manifest.images) == (13, 6)
    stored = [prompt for shard in manifest.shards for prompt in read_shard(shard.uri)]
    assert sorted(stored, key=lambda p: p.prompt_id) == sorted(prompts, key=lambda p: p.prompt_id)
    for shard in manifest.shards:
        in_shard = read_shard(shard.uri)
        assert (len(in_shard), len({p.image_id for p in in_shard})) == (shard.prompts, shard.images)


def test_the_order_of_the_source_changes_nothing(images: Path, tmp_path: Path) -> None:
    first = plan(images, prompts_of(images), tmp_path / "a")
    second = plan(images, reversed(prompts_of(images)), tmp_path / "b")
    assert (first.run_id, first.content_hash) == (second.run_id, second.content_hash)
    assert [s.shard_id for s in first.shards] == [s.shard_id for s in second.shards]


def test_planning_again_gives_the_stored_manifest(images: Path, tmp_path: Path) -> None:
    first = plan(images, prompts_of(images), tmp_path / "table", logical_date="2025-01-01")
    # Settings that change no row, and another night: still the same run.
    config = RunConfig(shard_images=2, ray=RayConfig(actors=7), refiner=RefinerConfig(device="cpu"))
    again = plan(images, prompts_of(images), tmp_path / "table", config=config, logical_date="2025-01-02")
    assert again == first == read_manifest(first.uri)


def test_other_shards_are_another_run_of_the_same_content(images: Path, tmp_path: Path) -> None:
    first = plan(images, prompts_of(images), tmp_path / "table")
    other = plan(images, prompts_of(images), tmp_path / "table", config=RunConfig(shard_images=3))
    assert [shard.images for shard in other.shards] == [3, 2]
    assert other.run_id != first.run_id
    assert other.content_hash == first.content_hash


def test_a_moved_output_is_taken_up_where_it_lies(images: Path, tmp_path: Path) -> None:
    first = plan(images, prompts_of(images), tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = plan(images, prompts_of(images), tmp_path / "new")
    assert (moved.run_id, moved.output_uri) == (first.run_id, str(tmp_path / "new"))
    assert sum(len(read_shard(shard.uri)) for shard in moved.shards) == 12


def test_a_source_that_lost_most_of_its_prompts_is_refused(images: Path, tmp_path: Path) -> None:
    def night(count: int, **settings: Any) -> RunManifest:
        return plan(images, prompts_of(images, count), tmp_path / "t", config=RunConfig(**settings))

    first = night(100)
    for shard in first.shards:
        refined = [(p, RefinedMask(prompt_id=p.prompt_id, status="failed", error="-")) for p in read_shard(shard.uri)]
        write_part(first, shard, refined)
    publish(first)
    assert night(50).changes.withdrawn == 50
    files = list_files(str(tmp_path / "t"))
    with pytest.raises(
        AnnotationError, match=r"^weak\.json: expected most of the table's 100 current prompts, got .* 51"
    ):
        night(49)
    assert list_files(str(tmp_path / "t")) == files
    assert night(49, max_withdrawn_fraction=1).changes.withdrawn == 51


def test_whatever_can_change_a_row_changes_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(images)
    base = plan(images, prompts, tmp_path / "t")
    runs = {
        "base": base.run_id,
        "box": plan(images, [replace(prompts[0], box_xyxy=(0, 0, 1, 5.5)), *prompts[1:]], tmp_path / "t").run_id,
        "fewer": plan(images, prompts[1:], tmp_path / "t").run_id,
        "weights": plan(images, prompts, tmp_path / "t", model=replace(MODEL, weights_sha256="cd")).run_id,
        "dtype": plan(images, prompts, tmp_path / "t", model=replace(MODEL, dtype="bfloat16")).run_id,
        "jitter": plan(images, prompts, tmp_path / "t", config=RunConfig(refiner=RefinerConfig(jitter_count=3))).run_id,
        "routing": plan(
            images, prompts, tmp_path / "t", config=RunConfig(routing=RoutingConfig(accept_predicted_iou=0.9))
        ).run_id,
    }
    monkeypatch.setattr("stable_sam.__version__", "99")
    runs["code"] = plan(images, prompts, tmp_path / "t").run_id
    monkeypatch.undo()
    (images / "3.jpg").write_bytes(b"another picture")
    changed = plan(images, prompts, tmp_path / "t")
    runs["image"] = changed.run_id
    assert len(set(runs.values())) == len(runs), runs
    # Only the shard of the changed image is another.
    assert len({s.shard_id for s in base.shards} - {s.shard_id for s in changed.shards}) == 1


def test_images_elsewhere_have_a_version_too(images: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(b"1")
    prompt = Prompt(prompt_id="1", image_id="1", image_uri=str(elsewhere), box_xyxy=(0, 0, 1, 1))
    first = plan(images, [prompt], tmp_path / "t")
    elsewhere.write_bytes(b"22")
    assert plan(images, [prompt], tmp_path / "t").run_id != first.run_id


def test_no_prompts_and_repeated_ids_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"^weak\.json: expected at least one annotation, got none$"):
        plan(images, [], tmp_path / "t")
    with pytest.raises(AnnotationError, match=r"^weak\.json: prompt_id p0: expected every id once"):
        plan(images, [*prompts_of(images), prompts_of(images)[0]], tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_what_the_reader_raises_passes_through(images: Path, tmp_path: Path) -> None:
    def reader() -> Iterator[Prompt]:
        yield prompts_of(images)[0]
        raise AnnotationError("weak.json: line 2: not JSON")

    with pytest.raises(AnnotationError, match=r"^weak\.json: line 2: not JSON$"):
        plan(images, reader(), tmp_path / "t")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"config": {"nonsense": 1}}', b"\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"^{path}: expected a run manifest") as caught:
        read_manifest(str(path))
    assert "\n" not in str(caught.value)


def test_a_damaged_shard_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(StorageError, match=f"^{path}: expected a Parquet file of prompts"):
        read_shard(str(path))


def test_manifest_is_readable_json(images: Path, tmp_path: Path) -> None:
    manifest = plan(images, prompts_of(images), tmp_path / "t")
    raw = json.loads(Path(manifest.uri).read_text())
    assert raw["config"]["refiner"]["model"] == "nano"
    assert raw["shards"][0]["shard_id"] == manifest.shards[0].shard_id
