"""What must hold when a night is over, and what may lie about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from stable_sam.runs.vacuum import vacuum
from stable_sam.storage.files import PARTIAL_SUFFIX, list_stored
from stable_sam.storage.uris import join
from stable_sam.table.log import open_table
from stable_sam.table.query import query
from tests.reliability.workload import Night

_LEFTOVER = re.compile(rf"_probe-|{re.escape(PARTIAL_SUFFIX)}$|_delta_log/_commit_|_delta_log/.*#\d+$")


@dataclass(frozen=True, slots=True)
class Found:
    """What the table holds."""

    rows: int
    duplicates: int
    """Rows of a prompt and a revision that have a row already."""
    problems: list[str]


def check_table(table_uri: str, night: Night) -> Found:
    """Compare the table with what `night` must have made of it."""
    history = query(table_uri, "SELECT prompt_id, revision, status FROM history").to_pylist()
    masks = query(table_uri, "SELECT prompt_id, box_xyxy, status, error FROM masks").to_pylist()
    runs = query(table_uri, "SELECT count(*) AS n FROM runs").to_pylist()[0]["n"]
    duplicates = len(history) - len({(row["prompt_id"], row["revision"]) for row in history})
    problems = []
    if len(history) != night.rows:
        problems.append(f"{len(history)} rows for {night.rows}")
    if duplicates:
        problems.append(f"{duplicates} rows twice")
    if runs != night.runs:
        problems.append(f"{runs} runs for {night.runs}")
    current = {row["prompt_id"]: list(row["box_xyxy"]) for row in masks}
    if len(masks) != len(current) or current != night.prompts:
        problems.append(f"{len(masks)} current rows are not the {len(night.prompts)} prompts of the source")
    failed = [row["error"] for row in masks if row["status"] != "ok"]
    if failed:
        problems.append(f"{len(failed)} good prompts failed: {failed[0]}")
    return Found(len(history), duplicates, problems)


def orphans(table_uri: str) -> set[str]:
    """What writers left that nobody refers to: parts that no version names, probes, partial files and log entries."""
    table = open_table(table_uri)
    live = set() if table is None else {unquote(uri) for uri in table.file_uris()}
    found = {file.path for file in list_stored(table_uri)}
    parts = {path for path in found if path.startswith("data/") and join(table_uri, path) not in live}
    return parts | {path for path in found if _LEFTOVER.search(path)}


def sweep(table_uri: str) -> list[str]:
    """Vacuum the table at once; returns what is wrong afterwards: an orphan that is left, or a row that is gone."""
    before = query(table_uri, "SELECT * FROM history ORDER BY prompt_id, revision")
    vacuum(table_uri, retention_hours=0, force=True)
    problems = [f"vacuum left {path}" for path in sorted(orphans(table_uri))]
    if not query(table_uri, "SELECT * FROM history ORDER BY prompt_id, revision").equals(before):
        problems.append("vacuum changed the table")
    return problems
