"""What the page shows of a row: its outcome and its scores, in words and in SQL."""

from __future__ import annotations

from typing import Any

from duckdb import DuckDBPyConnection

OUTCOMES = ("failed", "reject", "review", "accept", "reviewed")
"""Worst first. A prompt has its route as outcome, unless it failed or somebody reviewed it."""
OUTCOME = "CASE WHEN status = 'reviewed' THEN 'reviewed' WHEN status = 'ok' THEN route ELSE 'failed' END"
SCORES = {
    "quality": "quality",
    "prompt_stability": "prompt stability",
    "predicted_iou": "predicted IoU",
    "stability_score": "stability score",
    "box_agreement": "box agreement",
    "dsp_weight": "DSP weight",
    "true_iou": "true IoU",
}
"""Column and name of everything between 0 and 1 that a row may have; 1 is good, but for `dsp_weight`."""
WORST_FIRST = (
    f"list_position({list(OUTCOMES)}, outcome), "
    "coalesce(quality, least(coalesce(prompt_stability, 1), coalesce(predicted_iou, 1))), prompt_id"
)
"""An order of rows that have `outcome`; by quality where the run was calibrated."""


def ask(connection: DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The rows of a query over the views of `stable_sam.data.query.connected`."""
    rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return rows
