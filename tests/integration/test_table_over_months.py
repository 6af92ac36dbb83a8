"""A table that lives long: compaction, vacuum, time travel, tables of older, newer and other software."""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, Schema, write_deltalake
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.data import compaction
from stable_sam.data import table as table_module
from stable_sam.data import vacuum as vacuum_module
from stable_sam.data.commits import committed
from stable_sam.data.compaction import compact
from stable_sam.data.layout import layout, paths_of
from stable_sam.data.manifest import RunManifest, read_manifest
from stable_sam.data.runs import newest_run, open_table
from stable_sam.data.schema import MASKS_SCHEMA
from stable_sam.data.storage import (
    delta_options,
    exists,
    join,
    list_files,
    list_stored,
    read_bytes,
    remove_files,
    write_bytes,
)
from stable_sam.data.table import publish
from stable_sam.data.vacuum import vacuum
from stable_sam.errors import ConfigError, ConservationError, InputError, NotFoundError, StorageError
from stable_sam.shard_job import refine_shard
from stable_sam.summary import summarize
from tests.integration.masks_dataset import ConstantRefiner, Dataset, new_dataset

EVERY_ROW = "SELECT * FROM history ORDER BY prompt_id, revision"
CURRENT = "SELECT * FROM masks ORDER BY prompt_id"
NEW_ENOUGH = 1.5
"""Seconds after which S3's clock of whole seconds has moved on."""


@pytest.fixture(params=["local", "s3"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    name = f"tàble {uuid.uuid4().hex[:8]}"
    return new_dataset(str(tmp_path / name) if request.param == "local" else join(request.getfixturevalue("s3"), name))


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    return new_dataset(str(tmp_path / "tàble 1"))


def moved(dataset: Dataset, change: int, count: int = 12) -> RunManifest:
    """A night with other boxes for the first four prompts, and with only the first `count` of the twelve."""
    prompts = dataset.prompts(count)
    return dataset.refined([replace(prompt, box_xyxy=(change, 1, 4, 3)) for prompt in prompts[:4]] + prompts[4:])


def months(dataset: Dataset) -> None:
    """Four runs: all, four moved, one withdrawn, which then comes back while another goes."""
    publish(dataset.refined())
    publish(moved(dataset, 1))
    publish(moved(dataset, 1, 11))
    publish(dataset.refined([prompt for prompt in dataset.prompts() if prompt.prompt_id != "p02"]))


def delta(dataset: Dataset) -> DeltaTable:
    return DeltaTable(dataset.output, storage_options=delta_options(dataset.output))


def test_compaction_changes_files_and_no_answer(dataset: Dataset) -> None:
    months(dataset)
    every, current = dataset.ask(EVERY_ROW), dataset.ask(CURRENT)
    assert [row["prompt_id"] for row in current] == [f"p{k:02}" for k in range(12) if k != 2]
    assert len(every) > len(current)
    report = compact(dataset.output)
    assert (report.version, report.rows, report.files_after) == (4, len(every), 2)
    assert report.files_before > 3
    assert dataset.ask(EVERY_ROW) == every
    assert dataset.ask(CURRENT) == current
    assert compact(dataset.output).version is None
    # The next nights lie beside the compacted files: moved, withdrawn and back again.
    publish(moved(dataset, 2, 10))
    assert [row["prompt_id"] for row in dataset.ask(CURRENT)] == [f"p{k:02}" for k in range(10)]
    publish(moved(dataset, 2))
    assert dataset.ask("SELECT count(*) AS n, count(DISTINCT prompt_id) AS ids FROM masks") == [{"n": 12, "ids": 12}]
    assert dataset.ask("SELECT revision FROM masks WHERE prompt_id IN ('p01', 'p05') ORDER BY ALL") == [
        {"revision": 1},
        {"revision": 5},
    ]
    every, current = dataset.ask(EVERY_ROW), dataset.ask(CURRENT)
    assert compact(dataset.output).files_after == 2
    assert dataset.ask(EVERY_ROW) == every
    assert dataset.ask(CURRENT) == current
    # No statistics in the log: see `table.py`.
    actions = pa.table(delta(dataset).get_add_actions(flatten=True))
    assert [name for name in actions.column_names if name.startswith(("min.", "max.", "null_count."))] == []


def test_past_files_stay_until_there_are_several_small_ones(local: Dataset) -> None:
    publish(local.refined())
    for change in (1, 2, 3):
        publish(moved(local, change))
        compact(local.output, target_bytes=1 if change < 3 else 2**20)
        table = open_table(local.output)
        assert table is not None
        assert len(paths_of(layout(table).past)) == (change if change < 3 else 1)
    assert local.ask("SELECT count(*) AS n FROM history") == [{"n": 24}]
    assert local.ask("SELECT count(*) AS n FROM masks") == [{"n": 12}]


def test_files_reach_the_target_size_and_keep_their_order(local: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(local.refined())
    monkeypatch.setattr(compaction, "_ROW_GROUP", 5)
    assert compact(local.output, target_bytes=1).files_after == 3
    table = open_table(local.output)
    assert table is not None
    rows = layout(table).current.to_table(columns=["image_uri", "prompt_id"]).to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["image_uri"], row["prompt_id"]))


def test_a_night_opens_no_past_file(local: Dataset) -> None:
    months(local)
    compact(local.output)
    publish(moved(local, 2, 10))
    table = open_table(local.output)
    assert table is not None
    assert paths_of(layout(table).past)
    for path in paths_of(layout(table).past):
        Path(local.output, path).write_bytes(b"not Parquet")
    publish(moved(local, 3, 9))
    with pytest.raises(StorageError):
        local.ask(EVERY_ROW)


def test_a_summary_opens_no_part_of_another_run(local: Dataset) -> None:
    publish(local.refined())
    night = moved(local, 1)
    publish(night)
    publish(moved(local, 2))
    for uri in list_files(join(local.output, "data")):
        if night.run_id not in uri:
            write_bytes(uri, b"not Parquet")
    assert summarize(local.output, night.run_id).prompts == night.prompts
    with pytest.raises(StorageError):
        local.ask(EVERY_ROW)


def test_a_compaction_between_plan_and_publish_loses_nothing(dataset: Dataset) -> None:
    months(dataset)
    night = moved(dataset, 5)
    compact(dataset.output)
    report = publish(night)
    assert (report.version, report.already_published) == (5, False)
    assert dataset.ask("SELECT count(*) AS n, count(DISTINCT prompt_id) AS ids FROM masks") == [{"n": 12, "ids": 12}]
    assert {row["revision"] for row in dataset.ask("SELECT revision FROM masks WHERE prompt_id < 'p04'")} == {5}


def test_publishes_and_compactions_at_every_moment_of_a_compaction(
    local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    months(local)
    night, commit = moved(local, 5), compaction._commit
    every = len(local.ask(EVERY_ROW))

    def publish_first(*arguments: object) -> int:
        publish(night)
        return commit(*arguments)  # type: ignore[arg-type]  # whatever it was called with

    monkeypatch.setattr(compaction, "_commit", publish_first)
    report = compact(local.output)
    assert (report.version, report.rows) == (5, every)
    assert local.ask("SELECT count(*) AS n FROM history") == [{"n": every + night.rows}]
    assert local.ask("SELECT count(*) AS n, count(DISTINCT prompt_id) AS ids FROM masks") == [{"n": 12, "ids": 12}]

    def compact_first(*arguments: object) -> int:
        monkeypatch.setattr(compaction, "_commit", commit)
        compact(local.output)
        return commit(*arguments)  # type: ignore[arg-type]  # whatever it was called with

    monkeypatch.setattr(compaction, "_commit", compact_first)
    publish(moved(local, 6))
    current = local.ask(CURRENT)
    files = list_files(join(local.output, "data"))
    with pytest.raises(StorageError, match="another compaction was faster; this one changed nothing"):
        compact(local.output)
    assert local.ask(CURRENT) == current
    assert len(list_files(join(local.output, "data"))) == len(files) + 2


def test_a_lost_answer_of_a_compaction_that_was_committed(local: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    months(local)
    every, write = local.ask(EVERY_ROW), DeltaTable.create_write_transaction

    def lose_the_answer(*arguments: object, **named: object) -> None:
        write(*arguments, **named)  # type: ignore[arg-type]  # whatever it was called with
        raise OSError("connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
        assert compact(local.output).version == 4
    assert local.ask(EVERY_ROW) == every


def test_files_that_other_software_rewrote_are_still_read_right(local: Dataset) -> None:
    months(local)
    compact(local.output)
    publish(moved(local, 5))
    every, current = local.ask(EVERY_ROW), local.ask(CURRENT)
    delta(local).optimize.compact()
    assert local.ask(EVERY_ROW) == every
    assert local.ask(CURRENT) == current
    assert compact(local.output).files_after == 2
    assert local.ask(EVERY_ROW) == every
    assert local.ask(CURRENT) == current


def test_time_travel(dataset: Dataset) -> None:
    first = dataset.refined()
    publish(first)
    time.sleep(0.05)
    between = datetime.now(UTC)
    time.sleep(0.05)
    second = moved(dataset, 1, 10)
    publish(second)
    compact(dataset.output)
    count = "SELECT (SELECT count(*) FROM masks) AS masks, (SELECT count(*) FROM runs) AS runs"
    then, now = [{"masks": 12, "runs": 1}], [{"masks": 10, "runs": 2}]
    zoned = between.astimezone(datetime.fromisoformat("2026-01-01T00:00+05:30").tzinfo)
    for moment in (first.run_id, "0", between.replace(tzinfo=None).isoformat(), between.isoformat(), zoned.isoformat()):
        assert dataset.ask(count, moment) == then, moment
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    for moment in (second.run_id, "1", "2", datetime.now(UTC).isoformat(), tomorrow):
        assert dataset.ask(count, moment) == now, moment
    for moment, error, message in (
        ("3", InputError, "as of 3: expected a version from 0 to 2"),
        ("yesterday", InputError, "as of yesterday: expected a run_id, a version, or an ISO date"),
        ("2001-01-01", NotFoundError, "as of 2001-01-01: expected a moment since the table's first version"),
    ):
        with pytest.raises(error, match=message):
            dataset.ask(count, moment)


def test_a_reader_sees_one_version_whatever_is_published_meanwhile(
    local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_sam.data import query as query_module

    publish(local.refined())
    night, make_views = moved(local, 1, 10), query_module._make_views

    def publish_first(*arguments: object) -> None:
        publish(night)
        compact(local.output)
        make_views(*arguments)  # type: ignore[arg-type]  # whatever it was called with

    count = "SELECT (SELECT count(*) FROM history) AS history, (SELECT count(*) FROM runs) AS runs"
    monkeypatch.setattr(query_module, "_make_views", publish_first)
    assert local.ask(count) == [{"history": 12, "runs": 1}]
    monkeypatch.undo()
    assert local.ask(count) == [{"history": 18, "runs": 2}]


def sweep(dataset: Dataset, **options: object) -> list[str]:
    report = vacuum(dataset.output, retention_hours=0, force=True, **options)  # type: ignore[arg-type]
    return sorted(file.path for file in report.files)


def test_vacuum_removes_orphans_and_nothing_live(dataset: Dataset) -> None:
    months(dataset)
    published = newest_run(dataset.output)
    assert published is not None
    compact(dataset.output)
    night = dataset.planned([replace(prompt, box_xyxy=(2, 1, 4, 3)) for prompt in dataset.prompts()])
    refine_shard(ConstantRefiner(), night, night.shards[0])
    orphans = [
        f"data/{published.run_id}/0123456789abcdef-{'0' * 32}.parquet",
        f"data/{'f' * 16}/0123456789abcdef-{'0' * 32}.parquet",
        f"data/compacted/{'0' * 32}/current-00000.parquet",
        f"_runs/{'f' * 16}/shards/0123456789abcdef.parquet",
        f"_probe-{'0' * 32}",
    ]
    running = [f"data/{night.run_id}/{night.shards[1].shard_id}-{'0' * 32}.parquet"]
    foreign = ["notes.txt", "data/notes.txt", "data/mine/deep/rows.parquet"]
    for path in (*orphans, *running, *foreign):
        write_bytes(join(dataset.output, path), b"12345678")
    time.sleep(NEW_ENOUGH)
    every, before = dataset.ask(EVERY_ROW), list_files(dataset.output)
    assert sweep(dataset, dry_run=True) == sweep(dataset, dry_run=True)
    assert list_files(dataset.output) == before
    removed = sweep(dataset)
    assert set(orphans) <= set(removed)
    assert sorted(join(dataset.output, path) for path in removed) == sorted(
        set(before) - set(list_files(dataset.output))
    )
    # Parts that compaction replaced, and folders of runs but the newest and the one in progress.
    kept = {path.removeprefix(dataset.output + "/").split("/")[1] for path in list_files(join(dataset.output, "_runs"))}
    assert kept == {published.run_id, night.run_id}
    assert all(exists(join(dataset.output, path)) for path in (*running, *foreign))
    assert dataset.ask(EVERY_ROW) == every
    with pytest.raises(StorageError, match="older versions can be read until vacuum"):
        dataset.ask("SELECT sum(area) FROM history", "0")
    # The run in progress goes on where it was.
    reports = [refine_shard(ConstantRefiner(), read_manifest(night.uri), shard) for shard in night.shards]
    assert [report.reused for report in reports] == [True, False, False]
    publish(night)
    assert dataset.ask("SELECT count(*) AS n FROM masks WHERE revision = 5") == [{"n": 12}]
    time.sleep(NEW_ENOUGH)
    assert set(running) < set(sweep(dataset))
    assert sweep(dataset) == []
    assert dataset.ask("SELECT count(*) AS n FROM masks WHERE revision = 5") == [{"n": 12}]


def test_vacuum_of_a_first_run_in_progress(local: Dataset) -> None:
    with pytest.raises(NotFoundError, match="expected a masks table"):
        sweep(local)
    older, newer = local.planned(local.prompts(4)), local.planned()
    refine_shard(ConstantRefiner(), older, older.shards[0])
    os.utime(older.uri, (time.time() - 60,) * 2)
    partial = Path(local.output, "data", f".{'a' * 32}.stable-sam-partial")
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"x")
    # Only the newest plan will be taken up again, whatever the age of both.
    assert len(sweep(local)) == 1 + 2 + 1 + 1 + 1
    assert not exists(older.folder_uri)
    assert not partial.exists()
    publish(local.refined())
    assert newer.run_id == newest_run(local.output).run_id  # type: ignore[union-attr]


def test_retention_keeps_what_is_young(local: Dataset) -> None:
    publish(local.refined())
    publish(moved(local, 1))
    compact(local.output)
    older = local.planned(local.prompts(4))
    local.planned(local.prompts(5))
    old = time.time() - 48 * 3600
    for uri in list_files(local.output):
        if "_delta_log" not in uri:
            os.utime(uri, (old, old))
    # By the log, both runs and the compaction are of this hour; only the abandoned plan is old.
    os.utime(older.uri, (old - 60, old - 60))
    report = vacuum(local.output, retention_hours=24)
    assert report.parts == report.leftovers == ()
    assert {file.path.split("/")[1] for file in report.runs} == {older.run_id}
    assert report.size == sum(file.size for file in report.files) > 0
    assert local.ask("SELECT sum(area) AS n FROM history", "0") == [{"n": 12}]


def test_an_interrupted_vacuum_leaves_runs_that_can_be_planned_again(
    local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = local.refined(local.prompts(4))
    os.utime(older.uri, (time.time() - 60,) * 2)
    local.planned()
    whole, remove = list_files(local.output), vacuum_module.remove_files
    for steps in range(5):
        left = iter(range(steps))

        def remove_some(uri: str, paths: list[str], left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]  # an iterator
                raise KeyboardInterrupt
            remove(uri, paths)

        monkeypatch.setattr(vacuum_module, "remove_files", remove_some)
        with pytest.raises(KeyboardInterrupt):
            sweep(local)
        monkeypatch.undo()
        again = local.refined(local.prompts(4))
        os.utime(again.uri, (time.time() - 60,) * 2)
        parts = {record.part for record in committed(again).values()}
        assert all(exists(join(local.output, part)) for part in parts), steps
    assert len(list_files(local.output)) >= len(whole)
    assert publish(again).rows == 4


def abandoned(local: Dataset) -> RunManifest:
    """A run whose shards are all committed, which nobody published, and a newer plan; both of two days ago."""
    older = local.refined(local.prompts(4))
    local.planned()
    days_ago = time.time() - 48 * 3600
    for uri in list_files(local.output):
        os.utime(uri, (days_ago, days_ago))
    os.utime(older.uri, (days_ago - 60,) * 2)
    return older


@pytest.mark.parametrize("listed_before", [False, True])
def test_a_vacuum_in_the_middle_of_a_publish_removes_none_of_its_rows(
    local: Dataset, monkeypatch: pytest.MonkeyPatch, listed_before: bool
) -> None:
    older = abandoned(local)
    if listed_before:
        listing = list(list_stored(local.output))
        monkeypatch.setattr(vacuum_module, "list_stored", lambda uri: iter(listing))
    check = table_module._check_table

    def vacuum_first(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]  # whatever it was called with
        report = vacuum(local.output, retention_hours=24)
        assert bool(report.runs) == listed_before
        assert report.parts == ()

    monkeypatch.setattr(table_module, "_check_table", vacuum_first)
    assert publish(older).rows == 4
    assert local.ask("SELECT count(*) AS n, sum(area) AS area FROM masks") == [{"n": 4, "area": 4}]


def test_a_run_that_vacuum_removes_while_it_is_taken_up_fails_and_is_planned_anew(local: Dataset) -> None:
    older = abandoned(local)
    resumed = local.planned(local.prompts(4))
    assert resumed == older
    assert {file.path for file in vacuum(local.output, retention_hours=24).parts} >= {
        path.removeprefix(f"{local.output}/") for path in list_files(join(local.output, "data", older.run_id))
    }
    with pytest.raises(StorageError, match="expected a file, found none|No such file|not found"):
        refine_shard(ConstantRefiner(), resumed, resumed.shards[0])
    with pytest.raises(ConservationError, match="expected commit records of 2 planned shards, got 0"):
        publish(resumed)
    anew = local.refined(local.prompts(4))
    assert anew.run_id == older.run_id
    assert publish(anew).rows == 4
    assert local.ask("SELECT count(*) AS n, sum(area) AS area FROM masks") == [{"n": 4, "area": 4}]


def test_shards_that_vacuum_removed_under_a_new_plan_are_written_again(dataset: Dataset) -> None:
    publish(dataset.refined())
    night = moved(dataset, 1, 10)
    shards = {shard.uri: read_bytes(shard.uri) for shard in (*night.shards, *night.tombstones)}
    assert len(night.tombstones) == 1
    for lost in shards:
        remove_files(dataset.output, [lost.removeprefix(f"{dataset.output}/")])
        for uri in shards.keys() - {lost}:
            write_bytes(uri, b"as it was")
        assert moved(dataset, 1, 10) == night
        assert {uri: read_bytes(uri) for uri in shards} == shards
    for uri in shards:
        write_bytes(uri, b"as it was")
    same = [replace(prompt, box_xyxy=(1, 1, 4, 3)) for prompt in dataset.prompts(4)] + dataset.prompts(10)[4:]
    assert dataset.planned(same) == night
    assert {read_bytes(uri) for uri in shards} == {b"as it was"}


def test_a_short_retention_needs_force(local: Dataset) -> None:
    for hours in (23.9, -1, float("nan")):
        with pytest.raises(ConfigError, match="expected"):
            vacuum(local.output, retention_hours=hours)


def test_commands(local: Dataset) -> None:
    months(local)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--table", local.output], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "with 22 rows, version 4" in run("compact")
    assert run("compact") == "Nothing to compact.\n"
    assert "Would remove 9 parts" in run("vacuum", "--retention-hours", "0", "--force", "--dry-run")
    assert run("query", "SELECT count(*) AS n FROM masks", "--as-of", "1", "--format", "csv") == "n\n12\n"
    assert "\nRemoved 9 parts" in run("vacuum", "--retention-hours", "0", "--force")
    assert run("vacuum") == "Removed 0 parts, 0 files of runs, 0 leftovers: 0 bytes.\n"


def make_old(dataset: Dataset) -> None:
    """Rewrite a local table of one run as a version without fingerprints would have written it."""
    (log,) = Path(dataset.output, "_delta_log").glob("*.json")
    reduced = Schema([field for field in Schema.from_arrow(MASKS_SCHEMA).fields if field.name != "fingerprint"])
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "metaData" in action:
            action["metaData"]["schemaString"] = reduced.to_json()
        if "add" in action:
            path = Path(dataset.output, action["add"]["path"])
            pq.write_table(pq.read_table(path).drop_columns(["fingerprint"]), path)
            action["add"]["size"] = path.stat().st_size
    log.write_text("\n".join(map(json.dumps, actions)))


def test_a_table_of_an_older_version(local: Dataset) -> None:
    publish(local.refined())
    make_old(local)
    assert "fingerprint" not in [field.name for field in delta(local).schema().fields]
    assert local.ask("SELECT count(*) AS n, count(fingerprint) AS known FROM masks") == [{"n": 12, "known": 0}]
    compact(local.output)
    publish(moved(local, 1))
    assert "fingerprint" in [field.name for field in delta(local).schema().fields]
    assert local.ask("SELECT count(*) AS n, count(fingerprint) > 0 AS known FROM masks") == [{"n": 12, "known": True}]
    assert local.ask("SELECT count(fingerprint) AS known FROM history WHERE revision = 1") == [{"known": 0}]
    # Compaction rewrites rows of both versions.
    every = local.ask(EVERY_ROW)
    compact(local.output)
    assert local.ask(EVERY_ROW) == every


def test_a_table_of_a_newer_version_is_refused(local: Dataset) -> None:
    publish(local.refined())
    delta(local).alter.add_columns([Field("novelty", "string")])
    for use in (local.plan, lambda: local.ask("SELECT 1"), lambda: compact(local.output), lambda: sweep(local)):
        with pytest.raises(StorageError, match="written by a newer version of stable-sam.* columns novelty: install"):
            use()


def test_a_table_of_other_software_is_refused(local: Dataset) -> None:
    write_deltalake(local.output, pa.table({"prompt_id": [1]}))
    for use in (local.plan, lambda: local.ask("SELECT 1"), lambda: compact(local.output), lambda: sweep(local)):
        with pytest.raises(StorageError, match="expected a table that stable-sam made") as caught:
            use()
        assert "\n" not in str(caught.value)
