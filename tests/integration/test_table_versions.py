"""A table as it was, and tables of older, newer and other software."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import Field, Schema, write_deltalake

from stable_sam.errors import InputError, NotFoundError, StorageError
from stable_sam.runs.compact import compact
from stable_sam.runs.publish import publish
from stable_sam.runs.vacuum import vacuum
from stable_sam.table.schema import MASKS_SCHEMA
from tests.integration.masks_dataset import Dataset
from tests.integration.months import EVERY_ROW, delta, moved


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
    from stable_sam.table import query as query_module

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
    for use in (local.plan, lambda: local.ask("SELECT 1"), lambda: compact(local.output), lambda: vacuum(local.output)):
        with pytest.raises(
            StorageError, match="newer version of stable-sam wrote the table.* columns novelty; install"
        ):
            use()


def test_a_table_of_other_software_is_refused(local: Dataset) -> None:
    write_deltalake(local.output, pa.table({"prompt_id": [1]}))
    for use in (local.plan, lambda: local.ask("SELECT 1"), lambda: compact(local.output), lambda: vacuum(local.output)):
        with pytest.raises(StorageError, match="expected a table that stable-sam made") as caught:
            use()
        assert "\n" not in str(caught.value)
