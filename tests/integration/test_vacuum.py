"""Vacuum removes what nobody needs, and nothing else."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.errors import ConfigError, ConservationError, NotFoundError, StorageError
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs import publish as table_module
from stable_sam.runs import vacuum as vacuum_module
from stable_sam.runs.commits import committed
from stable_sam.runs.compact import compact
from stable_sam.runs.manifest import RunManifest, read_manifest
from stable_sam.runs.publish import publish
from stable_sam.runs.vacuum import vacuum
from stable_sam.storage.files import exists, list_files, list_stored, read_bytes, remove_files, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.log import newest_run
from tests.integration.masks_dataset import ConstantRefiner, Dataset
from tests.integration.months import EVERY_ROW, months, moved

NEW_ENOUGH = 1.5
"""Seconds after which S3's clock of whole seconds has moved on."""


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
        f"_runs/{'f' * 16}/spans/0123456789abcdef.json",
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
