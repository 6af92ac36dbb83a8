"""Choose the prompts of the gallery: all of a small table, or the worst, the most changed and a random sample."""

from __future__ import annotations

from typing import Any

from duckdb import DuckDBPyConnection

from stable_sam.table.current import NEWEST_FIRST
from stable_sam.table.query import rows_of
from stable_sam.table.views import OUTCOME, WORST_FIRST

_DRAW = "md5(prompt_id || '/{seed}')"
# How far the tight box moved and the area grew tells well enough which masks changed most. The page compares the masks.
_MOVED = """
    CASE WHEN now.area IS NULL AND before.area IS NULL THEN 0
    WHEN now.area IS NULL OR before.area IS NULL THEN 2
    ELSE list_distance(now.bbox_xywh, before.bbox_xywh) / sqrt(1 + greatest(now.area, before.area))
        + abs(now.area - before.area) / (1 + greatest(now.area, before.area)) END
"""
_CHOSEN = f"""
    WITH rated AS MATERIALIZED (
        SELECT prompt_id, {OUTCOME} AS outcome, quality, prompt_stability, predicted_iou, revision, area, bbox_xywh,
            {_DRAW} AS draw
        FROM masks),
    tonight AS (SELECT * FROM rated WHERE revision = (SELECT max(revision) FROM runs)),
    earlier AS (
        SELECT prompt_id, area, bbox_xywh FROM history SEMI JOIN tonight USING (prompt_id)
        WHERE status <> 'withdrawn' AND revision < (SELECT max(revision) FROM runs)
        QUALIFY {NEWEST_FIRST} = 1),
    picked AS (
        (SELECT 0 AS turn, 0 AS place, prompt_id FROM rated ORDER BY draw LIMIT {{quarter}})
        UNION ALL
        (SELECT 0, 0, prompt_id FROM tonight AS now JOIN earlier AS before USING (prompt_id)
         WHERE {_MOVED} > 0 ORDER BY {_MOVED} DESC, prompt_id LIMIT {{quarter}})
        UNION ALL
        (SELECT 1, row_number() OVER (ORDER BY {WORST_FIRST}), prompt_id
         FROM (SELECT * FROM rated ORDER BY {WORST_FIRST} LIMIT {{limit}}))),
    chosen AS (
        SELECT prompt_id FROM picked GROUP BY prompt_id ORDER BY min(turn), min(place), prompt_id LIMIT {{limit}}),
    previous AS (
        SELECT prompt_id, mask_size, mask_counts, revision FROM history SEMI JOIN chosen USING (prompt_id)
        WHERE status <> 'withdrawn'
        QUALIFY {NEWEST_FIRST} = 2)
    SELECT masks.*, {OUTCOME} AS outcome, runs.annotations_uri AS source, {_DRAW} AS draw,
        previous.mask_size AS previous_size, previous.mask_counts AS previous_counts,
        previous.revision AS previous_revision
    FROM masks SEMI JOIN chosen USING (prompt_id) LEFT JOIN previous USING (prompt_id) LEFT JOIN runs USING (run_id)
    ORDER BY {WORST_FIRST}
"""


def select_rows(connection: DuckDBPyConnection, *, limit: int, seed: int) -> list[dict[str, Any]]:
    """Choose up to `limit` rows of the view masks, worst first.

    Each row also has `outcome`, `source` (the URI of its annotations), and the mask that it replaced (`previous_size`,
    `previous_counts`, `previous_revision`; null for a first revision). A quarter of `limit`, or all rows of a small
    table, are a random sample drawn by `seed`: those with the smallest `draw`.
    """
    return rows_of(connection, _CHOSEN.format(limit=int(limit), quarter=int(limit) // 4, seed=int(seed)))
