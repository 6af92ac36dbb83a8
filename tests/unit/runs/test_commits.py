"""A shard counts once, whoever writes it and however often."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stable_sam.config import RunConfig
from stable_sam.errors import ConservationError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.runs import commits
from stable_sam.runs.commits import CommitRecord, commit_of, committed, write_part
from stable_sam.runs.manifest import RunManifest, read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest

Rows = list[tuple[Prompt, RefinedMask]]


@pytest.fixture
def manifest(tmp_path: Path) -> RunManifest:
    (tmp_path / "images").mkdir()
    planned = plan_run(
        [
            Prompt(prompt_id=str(k), image_id=str(k // 3), image_uri=f"{k // 3}.jpg", box_xyxy=(0, 0, 1, 1))
            for k in range(6)
        ],
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(tmp_path / "images"),
            output_uri=str(tmp_path / "table"),
            config=RunConfig(shard_images=1),
        ),
        ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32"),
    )
    assert planned is not None
    return planned


def rows_of(manifest: RunManifest, shard: int = 0) -> Rows:
    return [
        (
            prompt,
            RefinedMask(
                prompt_id=prompt.prompt_id,
                status="failed" if prompt.prompt_id in "03" else "ok",
                route="reject" if prompt.prompt_id in "03" else "accept",
                predicted_iou=0.5,
            ),
        )
        for prompt in read_shard(manifest.shards[shard].uri)
    ]


def test_part_and_record(manifest: RunManifest) -> None:
    shard = manifest.shards[0]
    assert commit_of(manifest, shard.shard_id) is None
    record, ours = write_part(manifest, shard, rows_of(manifest))
    assert ours
    assert commit_of(manifest, shard.shard_id) == record
    assert (record.rows, record.failed, record.images) == (3, 1, 1)
    assert record.routes == {"accept": 2, "reject": 1}
    part = Path(manifest.output_uri, record.part)
    assert part.stat().st_size == record.size
    table = pq.read_table(part)
    assert table["prompt_id"].to_pylist() == ["0", "1", "2"]
    assert set(table["run_id"].to_pylist()) == {manifest.run_id}
    assert set(table["shard_id"].to_pylist()) == {shard.shard_id}
    assert table.schema.metadata[b"jitter_count"] == b"8"


def test_a_record_has_the_seconds_of_its_stages(manifest: RunManifest) -> None:
    before = {"encode": 1.25, "write": 100.0}  # a helper's clock has its own writing; the record has this one's
    record, _ = write_part(manifest, manifest.shards[0], rows_of(manifest), seconds=2.0, stage_seconds=before)
    assert record.stage_seconds is not None
    assert record.stage_seconds["encode"] == 1.25
    assert 0 < record.stage_seconds["write"] < 100
    assert committed(manifest)[record.shard_id] == record


def test_a_record_of_an_older_version_is_read(manifest: RunManifest) -> None:
    record, _ = write_part(manifest, manifest.shards[0], rows_of(manifest))
    assert record.stage_seconds is None
    path = Path(manifest.folder_uri, "commits", f"{record.shard_id}.json")
    raw = json.loads(path.read_text())
    del raw["stage_seconds"]
    path.write_text(json.dumps(raw))
    assert committed(manifest) == {record.shard_id: record}


def test_part_is_stored_as_documented(manifest: RunManifest) -> None:
    record, _ = write_part(manifest, manifest.shards[0], rows_of(manifest))
    group = pq.read_metadata(Path(manifest.output_uri, record.part)).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["predicted_iou"].compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in columns["predicted_iou"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["box_xyxy.list.element"].encodings
    assert not columns["mask_counts"].has_dictionary_page
    assert columns["route"].has_dictionary_page


def test_the_first_record_stands(manifest: RunManifest) -> None:
    first, _ = write_part(manifest, manifest.shards[0], rows_of(manifest))
    second, ours = write_part(manifest, manifest.shards[0], rows_of(manifest))
    assert not ours
    assert second == first
    assert committed(manifest) == {first.shard_id: first}


def test_of_racing_writers_one_commits(manifest: RunManifest) -> None:
    rows, start = rows_of(manifest), threading.Barrier(6)
    results: list[tuple[CommitRecord, bool]] = []

    def write() -> None:
        start.wait()
        results.append(write_part(manifest, manifest.shards[0], rows))

    writers = [threading.Thread(target=write) for _ in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(ours for _, ours in results) == 1
    assert len({record.owner for record, _ in results}) == 1


def test_a_writer_that_dies_before_the_record_leaves_nothing_that_counts(
    manifest: RunManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(uri: str, data: bytes) -> bool:
        raise StorageError("store went away")

    with monkeypatch.context() as patched:
        patched.setattr(commits, "create_bytes", die)
        with pytest.raises(StorageError):
            write_part(manifest, manifest.shards[0], rows_of(manifest))
    assert committed(manifest) == {}
    _, ours = write_part(manifest, manifest.shards[0], rows_of(manifest))
    assert ours


@pytest.mark.parametrize("change", ["missing", "doubled", "replaced"])
def test_other_rows_than_prompts_are_refused(manifest: RunManifest, change: str) -> None:
    rows = rows_of(manifest)
    changed = {"missing": rows[1:], "doubled": [*rows, rows[0]], "replaced": [rows[0], *rows[:2]]}[change]
    with pytest.raises(ConservationError, match="expected one row for each of 3 prompts"):
        write_part(manifest, manifest.shards[0], changed)
    assert committed(manifest) == {}


def test_a_damaged_record_is_named(manifest: RunManifest) -> None:
    write_part(manifest, manifest.shards[0], rows_of(manifest))
    path = Path(manifest.folder_uri, "commits", f"{manifest.shards[0].shard_id}.json")
    path.write_text('{"rows": 3}')
    with pytest.raises(StorageError, match=f"^{path}: expected a commit record"):
        committed(manifest)
