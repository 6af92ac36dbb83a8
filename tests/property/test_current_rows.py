"""Whatever nights, compactions and vacuums came: what is current is the newest row of each prompt, not withdrawn."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.transaction import AddAction, create_table_with_add_actions
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.runs import compare
from stable_sam.runs.commits import PARQUET_OPTIONS
from stable_sam.runs.compact import compact
from stable_sam.runs.publish import CONFIGURATION
from stable_sam.runs.vacuum import vacuum
from stable_sam.table import current as live
from stable_sam.table.log import RUN_KEY
from stable_sam.table.query import query
from stable_sam.table.schema import MASKS_SCHEMA

Row = dict[str, Any]
IDS = "abcdef"

nights = st.tuples(
    st.just("night"), st.dictionaries(st.sampled_from(IDS), st.sampled_from(["ok", "failed", "withdrawn"]), min_size=1)
)
others = st.tuples(st.sampled_from(["compact", "compact into small files", "vacuum", "rewrite by other software"]))


@settings(max_examples=15, deadline=None)
@given(st.lists(nights | nights | others, min_size=1, max_size=9), st.booleans())
def test_current_rows_are_the_newest_of_each_prompt(steps: list[tuple[Any, ...]], fingerprints: bool) -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for step, *rest in [("night", dict.fromkeys("abcd", "ok")), *steps]:
            if step == "night":
                add_night(folder, rows, rest[0], fingerprints)
            elif step == "vacuum":
                vacuum(folder, retention_hours=0, force=True)
            elif step == "rewrite by other software":
                DeltaTable(folder).optimize.compact()
            else:
                compact(folder, target_bytes=1 if "small" in step else 2**20)
        check(folder, rows)


def add_night(table_uri: str, rows: list[Row], statuses: dict[str, str], fingerprints: bool) -> None:
    """Publish a run of two parts, as a night would have left it; add its rows to `rows`."""
    there = {row["prompt_id"] for row in current(rows)}
    revision = 1 + max((row["revision"] for row in rows), default=0)
    new = [
        {
            "run_id": f"{revision:016x}",
            "prompt_id": prompt_id,
            "image_id": str((ord(prompt_id) + revision) % 3),
            "image_uri": f"{prompt_id}.png",
            "status": status,
            "revision": revision,
            "model_id": "tiny",
            "fingerprint": f"{revision:016x}{ord(prompt_id):016x}" if fingerprints or revision % 2 else None,
        }
        for prompt_id, status in sorted(statuses.items())
        if status != "withdrawn" or prompt_id in there
    ]
    if not new:
        return
    adds = []
    for part in (new[::2], new[1::2]):
        path = f"data/{revision:016x}/{uuid.uuid4().hex[:16]}-{uuid.uuid4().hex}.parquet"
        Path(table_uri, path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part, schema=MASKS_SCHEMA), Path(table_uri, path), **PARQUET_OPTIONS)
        size = Path(table_uri, path).stat().st_size
        adds.append(AddAction(path, size, {}, 0, True, f'{{"numRecords": {len(part)}}}'))
    texts = ("content_hash", "annotations_uri", "images_uri", "model_id", "publisher")
    texts += ("weights_sha256", "config_hash", "code_version", "dtype")
    facts = dict.fromkeys(texts, "x") | {
        "run_id": f"{revision:016x}", "revision": revision, "rows": len(new), "failed": 0, "routes": {}, "images": 1,
        "parent_run_id": None if revision == 1 else f"{revision - 1:016x}", "logical_date": None,
    }  # fmt: skip
    commit = CommitProperties(custom_metadata={RUN_KEY: facts})
    if revision == 1:
        create_table_with_add_actions(
            table_uri, Schema.from_arrow(MASKS_SCHEMA), adds, configuration=CONFIGURATION, commit_properties=commit
        )
    else:
        DeltaTable(table_uri).create_write_transaction(adds, "append", MASKS_SCHEMA, commit_properties=commit)
    rows += new


def current(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each prompt, without withdrawn ones, in order."""
    newest = {row["prompt_id"]: row for row in sorted(rows, key=lambda row: row["revision"])}
    return [row for _, row in sorted(newest.items()) if row["status"] != "withdrawn"]


def check(table_uri: str, rows: list[Row]) -> None:
    """`history`, `masks`, the rows of one run, and what planning takes for current."""
    whole = [dict.fromkeys(MASKS_SCHEMA.names) | row for row in rows]
    order = "ORDER BY prompt_id, revision"
    in_order = sorted(whole, key=lambda row: (row["prompt_id"], row["revision"]))
    assert query(table_uri, f"SELECT * FROM history {order}").to_pylist() == in_order
    assert query(table_uri, f"SELECT * FROM masks {order}").to_pylist() == current(whole)
    assert query(table_uri, f"SELECT * FROM masks WHERE image_id = '1' {order}").to_pylist() == [
        row for row in current(whole) if row["image_id"] == "1"
    ]
    last = whole[-1]["run_id"]
    assert query(table_uri, f"SELECT * FROM history WHERE run_id = '{last}' {order}").to_pylist() == [
        row for row in in_order if row["run_id"] == last
    ]
    with live.workspace() as connection:
        assert live.load_live(connection, DeltaTable(table_uri)) == len(current(rows))
        assert connection.execute("SELECT * FROM live ORDER BY prompt_id").fetchall() == [
            (
                row["prompt_id"],
                row["revision"],
                row["fingerprint"] and int(row["fingerprint"][:16], 16),
                int(row["fingerprint"][16:], 16) if row["fingerprint"] else 0,
                live.FAILED if row["status"] == "failed" else 0,
            )
            for row in current(rows)
        ]
        connection.execute("CREATE TABLE withdrawn AS SELECT prompt_id, revision FROM live")
        found = [row for table in compare.withdrawn_prompts(connection, 2) for row in table.to_pylist()]
    assert [(row["prompt_id"], row["image_id"], row["fingerprint"]) for row in found] == [
        (row["prompt_id"], row["image_id"], row["fingerprint"]) for row in current(rows)
    ]
