"""What the page shows of a row: its outcome and its scores, in words and in SQL."""

from __future__ import annotations

from typing import Any

from duckdb import DuckDBPyConnection

from stable_sam.data.views import OUTCOME, OUTCOMES, WORST_FIRST

__all__ = ["OUTCOME", "OUTCOMES", "SCORES", "WORST_FIRST", "ask"]

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


def ask(connection: DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The rows of a query over the views of `stable_sam.data.query.connected`."""
    rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return rows
