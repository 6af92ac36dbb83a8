"""The views of a table answer common questions, in SQL over `masks`, `history` and `runs`.

Every statement can also call `mask_iou(size, counts, size, counts)` with the columns of two masks, which is null for
masks of different sizes; `box_iou(xyxy, xyxy)`; and `score_median(score)`, which is an estimate for large tables
(`stable_sam.table.query.EXACT_MEDIANS_ROWS`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from stable_sam.rle import check_counts, mask_iou
from stable_sam.scores import IN_GROUPS
from stable_sam.table.current import newest_revisions

OUTCOMES = ("failed", "reject", "review", "accept", "reviewed")
"""The outcomes of prompts, worst first. The outcome of a prompt is its route, unless it failed or was reviewed."""
OUTCOME = "CASE WHEN status = 'reviewed' THEN 'reviewed' WHEN status = 'ok' THEN route ELSE 'failed' END"
WORST_FIRST = (
    f"list_position({list(OUTCOMES)}, outcome), "
    "coalesce(quality, least(coalesce(prompt_stability, 1), coalesce(predicted_iou, 1))), prompt_id"
)
"""SQL that orders rows with an `outcome`, worst first, then by quality or, without it, by the lower of two scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view that every query can read."""

    meaning: str
    """What the view shows, in one line."""
    sql: str
    """Its SELECT statement."""


_SOURCE = "attributes->>'annotation_source'"
_COUNTS = ", ".join(["count(*) AS prompts", *(f"count(*) FILTER (outcome = '{one}') AS {one}" for one in OUTCOMES)])
_MEDIANS = ", ".join(
    [*(f"score_median({score}) AS median_{score}" for score in IN_GROUPS), "avg(true_iou) AS mean_true_iou"]
)
_SHARES = ", ".join(f"avg((outcome = '{one}')::INT) AS {one}_share" for one in ("accept", "review", "reject", "failed"))
_MASK_XYXY = "[bbox_xywh[1], bbox_xywh[2], bbox_xywh[1] + bbox_xywh[3], bbox_xywh[2] + bbox_xywh[4]]"
_EARLIER = """(
    SELECT prompt_id, history.revision FROM history JOIN _newest USING (prompt_id)
    WHERE history.revision < _newest.revision
)"""
_WHAT_CHANGED = """
    CASE
        WHEN now.status = 'withdrawn' THEN 'withdrawn'
        WHEN before.status IS NULL OR before.status = 'withdrawn' THEN 'new'
        WHEN now.status = 'reviewed' THEN now.verdict
        WHEN now.status = 'failed' THEN 'failed'
        WHEN now.mask_counts IS DISTINCT FROM before.mask_counts THEN 'mask changed'
        WHEN now.route IS DISTINCT FROM before.route THEN 'route changed'
        ELSE 'same'
    END
"""

# Each view stands after those that it reads. Views that begin with an underscore are read only by other views.
VIEWS: Mapping[str, View] = {
    "_seen": View(
        meaning="current rows with their outcome and source",
        sql=f"SELECT {OUTCOME} AS outcome, {_SOURCE} AS source, * FROM masks",
    ),
    "_newest": View(meaning="rows of the newest run", sql="SELECT * FROM history"),
    "by_category": View(
        meaning="current prompts by category: outcomes, medians of the scores",
        sql=f"SELECT category, {_COUNTS}, {_MEDIANS} FROM _seen GROUP BY category ORDER BY prompts DESC, category",
    ),
    "by_source": View(
        meaning="current prompts by source of the annotation (attribute annotation_source, where there are several)",
        sql=f"SELECT source, {_COUNTS}, {_MEDIANS} FROM _seen GROUP BY source ORDER BY prompts DESC, source",
    ),
    "by_route": View(
        meaning="current prompts by outcome: share of the table, medians of the scores",
        sql=f"""
            SELECT outcome, count(*) AS prompts, count(*) / sum(count(*)) OVER () AS share, {_MEDIANS}
            FROM _seen GROUP BY outcome ORDER BY list_position({list(OUTCOMES)}, outcome)
        """,
    ),
    "by_night": View(
        meaning="current prompts by the run that made their rows: how old the table's rows are",
        sql=f"""
            SELECT revision, run_id, any_value(runs.logical_date) AS logical_date,
                   any_value(runs.published_at) AS published_at, {_COUNTS}, {_MEDIANS}
            FROM _seen LEFT JOIN runs USING (run_id, revision) GROUP BY revision, run_id ORDER BY revision
        """,
    ),
    "reasons": View(
        meaning="why prompts have their outcome, with # for figures, the most frequent reason first",
        sql=r"""
            SELECT outcome, regexp_replace(coalesce(error, route_reason), '[0-9]+(\.[0-9]+)?', '#', 'g') AS reason,
                   count(*) AS prompts
            FROM _seen GROUP BY ALL ORDER BY prompts DESC, outcome, reason
        """,
    ),
    "worst": View(
        meaning="current rows that nobody has reviewed, worst first: failed, reject, review, accept, then by quality",
        sql=f"""
            SELECT outcome, coalesce(error, route_reason) AS reason, * EXCLUDE (outcome)
            FROM _seen WHERE outcome <> 'reviewed' ORDER BY {WORST_FIRST}
        """,
    ),
    "changes": View(
        meaning="what the newest run did to each of its prompts, with the IoU of the mask before and the mask now",
        sql=f"""
            SELECT now.prompt_id, now.category, now.image_uri, {_WHAT_CHANGED} AS change,
                   before.route AS route_before, now.route,
                   before.status IS NOT NULL AND (now.box_xyxy, now.points_xy, now.point_labels)
                       IS DISTINCT FROM (before.box_xyxy, before.points_xy, before.point_labels) AS prompt_changed,
                   mask_iou(before.mask_size, before.mask_counts, now.mask_size, now.mask_counts) AS mask_iou,
                   before.area AS area_before, now.area, before.quality AS quality_before, now.quality,
                   before.revision AS revision_before, now.revision
            FROM _newest now LEFT JOIN (
                SELECT history.* FROM history SEMI JOIN ({newest_revisions(_EARLIER)}) USING (prompt_id, revision)
            ) before ON before.prompt_id = now.prompt_id
            ORDER BY change, mask_iou, now.prompt_id
        """,
    ),
    "box_disagreement": View(
        meaning="current masks compared with their weak boxes, the least similar first",
        sql=f"""
            SELECT prompt_id, category, image_uri, outcome, box_agreement,
                   area / nullif(box_area(box_xyxy), 0) AS mask_to_box_area,
                   box_xyxy, {_MASK_XYXY} AS mask_box_xyxy
            FROM _seen WHERE box_xyxy IS NOT NULL AND mask_counts IS NOT NULL
            ORDER BY box_iou(box_xyxy, {_MASK_XYXY}), prompt_id
        """,
    ),
    "source_disagreement": View(
        meaning="images with several sources: each mask with the best matching mask of each other source",
        sql=f"""
            WITH found AS (
                SELECT prompt_id, image_uri, category, source, mask_size, mask_counts, {_MASK_XYXY} AS xyxy
                FROM _seen WHERE mask_counts IS NOT NULL AND source IS NOT NULL
            ), others AS (SELECT DISTINCT image_uri, source FROM found), best AS (
                SELECT one.image_uri, one.prompt_id, one.category, one.source, one.mask_size, one.mask_counts,
                       others.source AS other_source, other.prompt_id AS other_prompt_id,
                       other.category AS other_category,
                       other.mask_size AS other_size, other.mask_counts AS other_counts,
                       CASE WHEN other.prompt_id IS NULL THEN 0 ELSE box_iou(one.xyxy, other.xyxy) END AS box_iou
                FROM found one
                JOIN others ON others.image_uri = one.image_uri AND others.source <> one.source
                LEFT JOIN found other ON other.image_uri = one.image_uri AND other.source = others.source
                    AND box_iou(one.xyxy, other.xyxy) > 0
                QUALIFY row_number() OVER (
                    PARTITION BY one.prompt_id, others.source ORDER BY box_iou DESC, other.prompt_id
                ) = 1
            )
            SELECT image_uri, source, prompt_id, category, other_source, other_prompt_id, other_category, box_iou,
                   coalesce(mask_iou(mask_size, mask_counts, other_size, other_counts), 0) AS mask_iou
            FROM best ORDER BY mask_iou, image_uri, prompt_id, other_source
        """,
    ),
    "drift": View(
        meaning="prompts that each run refined: shares of the outcomes, medians of the scores, true IoU where known",
        sql=f"""
            SELECT revision, run_id, any_value(runs.logical_date) AS logical_date, count(*) AS prompts, {_SHARES},
                   {_MEDIANS}
            FROM (SELECT {OUTCOME} AS outcome, * FROM history WHERE status IN ('ok', 'failed'))
            LEFT JOIN runs USING (run_id, revision) GROUP BY revision, run_id ORDER BY revision
        """,
    ),
}


def documented() -> dict[str, str]:
    """Return the names of all views for users, each with its meaning."""
    plain = {
        "masks": "the newest row of each prompt, without withdrawn prompts",
        "history": "all rows of all runs",
        "runs": "one row for each published run",
    }
    return plain | {name: view.meaning for name, view in VIEWS.items() if not name.startswith("_")}


def make_views(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Make the views and functions that `sql` names, on a connection that has `masks`, `history` and `runs`.

    Others are not made, because each costs about 20 ms. Views and functions that already exist are kept.
    """
    wanted = {name for name in VIEWS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)}
    for name in reversed(list(VIEWS)):
        if name in wanted:
            wanted |= {other for other in VIEWS if re.search(rf"\b{other}\b", VIEWS[name].sql)}
    text = " ".join([sql, *(VIEWS[name].sql for name in wanted)]).lower()
    if "mask_iou" in text and not connection.execute(_HAS_MASK_IOU).fetchall():
        connection.create_function(
            "mask_iou", _mask_ious, _MASK_COLUMNS, "DOUBLE", type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
        )  # fmt: skip
    if "box_" in text:
        connection.execute(_MACROS)
    if "_newest" in wanted:
        newest = connection.execute("SELECT run_id FROM runs ORDER BY version DESC LIMIT 1").fetchall()
        # With a constant run_id instead of a subquery, DuckDB does not open the parts of other runs.
        where = " OR ".join(f"run_id = '{run_id}'" for (run_id,) in newest) or "false"
        connection.execute(f"CREATE VIEW IF NOT EXISTS _newest AS {VIEWS['_newest'].sql} WHERE {where}")
    for name in VIEWS:
        if name in wanted - {"_newest"}:
            connection.execute(f"CREATE VIEW IF NOT EXISTS {name} AS {VIEWS[name].sql}")


_MASK_COLUMNS: list[Any] = ["INTEGER[]", "VARCHAR", "INTEGER[]", "VARCHAR"]
_CHECKED_AT_ONCE = 128
"""Masks that are checked at a time: the check takes a hundred times the memory of their text, which DuckDB does not
count."""
_HAS_MASK_IOU = "SELECT 1 FROM duckdb_functions() WHERE function_name = 'mask_iou'"
_MACROS = """
    CREATE OR REPLACE MACRO box_area(a) AS (a[3] - a[1]) * (a[4] - a[2]);
    CREATE OR REPLACE MACRO box_overlap(a, b) AS
        greatest(least(a[3], b[3]) - greatest(a[1], b[1]), 0) * greatest(least(a[4], b[4]) - greatest(a[2], b[2]), 0);
    CREATE OR REPLACE MACRO box_iou(a, b) AS
        box_overlap(a, b) / nullif(box_area(a) + box_area(b) - box_overlap(a, b), 0);
"""


def _mask_ious(
    sizes: pa.ChunkedArray, counts: pa.ChunkedArray, other_sizes: pa.ChunkedArray, other_counts: pa.ChunkedArray
) -> pa.Array:
    """Compute the IoU (N,) of the two masks of each row, null where a mask is missing or the sizes differ.

    Raises ValueError when counts are not COCO compressed counts of their size.
    """
    columns = (sizes, counts, other_sizes, other_counts)
    rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
    places = [place for place, row in enumerate(rows) if _comparable(*row)]
    ious: list[float | None] = [None] * len(rows)
    for first in range(0, len(places), _CHECKED_AT_ONCE):
        # The counts may be any text that a user wrote into a statement.
        some = [rows[place] for place in places[first : first + _CHECKED_AT_ONCE]]
        areas = [size[0] * size[1] for size, *_ in some]
        check_counts([row[1] for row in some], areas)
        check_counts([row[3] for row in some], areas)
    for place in places:
        ious[place] = mask_iou(*rows[place])
    return pa.array(ious, pa.float64())


def _comparable(
    size: list[int] | None, counts: str | None, other_size: list[int] | None, other_counts: str | None
) -> bool:
    if size is None or counts is None or other_counts is None or size != other_size:
        return False
    height, width = size
    return min(height, width) >= 1 and height * width < 2**31
