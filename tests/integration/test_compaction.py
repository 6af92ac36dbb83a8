"""Compaction changes files and no answer, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from stable_sam.errors import StorageError
from stable_sam.runs import compact as compaction
from stable_sam.runs.compact import compact
from stable_sam.runs.publish import publish
from stable_sam.runs.summary import summarize
from stable_sam.storage.files import list_files, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.layout import layout, paths_of
from stable_sam.table.log import open_table
from tests.integration.masks_dataset import Dataset
from tests.integration.months import CURRENT, EVERY_ROW, delta, months, moved


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


@pytest.mark.parametrize("bucket_rows", [2, 200_000])
def test_rows_lie_in_order_however_many_are_sorted_at_a_time(
    local: Dataset, monkeypatch: pytest.MonkeyPatch, bucket_rows: int
) -> None:
    monkeypatch.setattr(compaction, "_BUCKET_ROWS", bucket_rows)
    months(local)
    every = local.ask(EVERY_ROW)
    compact(local.output)
    assert local.ask(EVERY_ROW) == every
    orders = {
        "current": ["image_uri", "image_id", "prompt_id"],
        "past": ["revision", "image_uri", "image_id", "prompt_id"],
    }
    for name, order in orders.items():
        [file] = [uri for uri in list_files(local.output) if f"/{name}-" in uri]
        rows = [tuple(row.values()) for row in pq.read_table(file).select(order).to_pylist()]
        assert rows == sorted(rows)
        assert len(rows) > 2
