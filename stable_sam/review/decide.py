"""Decides what a reviewer's answer means for the current row of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pyarrow as pa

from stable_sam.formats.review_records import Answer
from stable_sam.records import Prompt, RefinedMask, Verdict
from stable_sam.rle import EncodedMask, rle, rle_iou
from stable_sam.scores import FROM_MODEL
from stable_sam.table.current import NEWEST_FIRST
from stable_sam.table.query import connected
from stable_sam.table.schema import SHARD_SCHEMA, prompt_from_row

DECISIONS = (*get_args(Verdict), "unchanged", "already")
"""The results of `decide` for answers without a problem. A verdict makes a new row. `unchanged` means that the mask is
as it was sent and nothing says that somebody looked; `already` means that the table has this answer."""
_BATCH = 1_000


def newest_rows(table_uri: str, answers: Sequence[Answer], made_by: str) -> Iterator[dict[str, Any]]:
    """Yield the newest row of each answered prompt that the table has, in the order of the images.

    Two fields are added to the table's columns: `sent_counts`, the RLE counts of the row that was sent, and `others`,
    the number of later rows that were not made by `made_by`. Raises what `stable_sam.table.query.connected` raises.
    """
    asked = pa.table(
        {
            "prompt_id": pa.array([answer.prompt_id for answer in answers], pa.string()),
            "sent": pa.array([answer.revision for answer in answers], pa.int64()),
        }
    )
    with connected(table_uri) as connection:
        connection.register("asked", asked)
        rows = connection.sql(
            f"""
            WITH known AS (SELECT history.*, sent FROM history JOIN asked USING (prompt_id)),
            sent_rows AS (
                SELECT prompt_id, any_value(mask_counts) FILTER (revision = sent) AS sent_counts,
                       count(*) FILTER (revision > sent AND model_id <> $made_by) AS others
                FROM known GROUP BY prompt_id
            )
            SELECT known.* EXCLUDE (sent), sent_counts, others FROM known JOIN sent_rows USING (prompt_id)
            QUALIFY {NEWEST_FIRST} = 1
            ORDER BY image_uri, image_id, prompt_id
            """,
            params={"made_by": made_by},
        )
        for batch in rows.to_arrow_reader(_BATCH):
            yield from batch.to_pylist()


def decide(row: Mapping[str, Any], answer: Answer, confirms: bool, unchanged_iou: float, is_known: bool) -> str:
    """Return one of `DECISIONS`, or else the reason why the answer cannot be imported, for a message.

    `row` is one of `newest_rows`. `confirms` is whether somebody looked at the mask. `unchanged_iou` is the IoU from
    which two masks count as equal. `is_known` is whether the import names its reviewer.
    """
    if row["status"] == "withdrawn":
        return "its annotation was withdrawn from the source"
    mask, size = answer.mask, row["mask_size"] or row["image_size"]
    if mask is not None and size is not None and tuple(size) != mask.size_hw:
        return f"expected a mask of {size[1]} x {size[0]} pixels, got one of {mask.size_hw[1]} x {mask.size_hw[0]}"
    reviewed = row["status"] == "reviewed"
    as_now = _same(mask, row["mask_size"], row["mask_counts"], unchanged_iou) and (mask is not None or reviewed)
    if reviewed and as_now:
        return "already"
    stale = answer.revision != row["revision"] and (reviewed or answer.revision is not None)
    if stale and not as_now:
        as_sent = mask is not None and _same(mask, row["mask_size"] or size, row["sent_counts"], unchanged_iou)
        if as_sent and not confirms:
            return "unchanged"
        if answer.revision is None:
            return (
                f"its row is reviewed already (revision {row['revision']}), and the file does not say which revision "
                "was sent: export it again"
            )
        if not (is_known and reviewed and row["others"] == 0):
            return (
                f"its row was replaced since the export (revision {answer.revision} was sent, revision "
                f"{row['revision']} by {row['model_id']} is current): export it again"
            )
    if mask is None:
        return "rejected"
    if as_now:
        return "confirmed" if confirms else "unchanged"
    return "corrected"


def reviewed_row(row: Mapping[str, Any], answer: Answer, verdict: str) -> tuple[Prompt, RefinedMask]:
    """Return the prompt and the reviewed mask that the answer makes of `row`.

    A confirmed mask keeps the scores of `row`; a corrected one has none, because the scores belong to another mask.
    """
    prompt = replace(prompt_from_row({name: row[name] for name in SHARD_SCHEMA.names}), error=None)
    kind: Verdict = "rejected" if verdict == "rejected" else "confirmed" if verdict == "confirmed" else "corrected"
    mask = RefinedMask(
        prompt_id=prompt.prompt_id,
        status="reviewed",
        verdict=kind,
        route="reject" if kind == "rejected" else "accept",
        route_reason=f"reviewed: {kind}",
    )
    if kind == "confirmed":
        scores = {name: row[name] for name in (*FROM_MODEL, "second_pass", "view", "area", "mask_counts")}
        places: dict[str, Any] = {
            name: None if row[name] is None else tuple(row[name]) for name in ("mask_size", "bbox_xywh", "tile_xywh")
        }
        mask = replace(mask, **scores, **places)
    elif answer.mask is not None:
        found = answer.mask
        mask = replace(
            mask, mask_size=found.size_hw, mask_counts=found.counts, area=found.area, bbox_xywh=found.bbox_xywh
        )
    return prompt, mask


def _same(mask: EncodedMask | None, size: Sequence[int] | None, counts: str | None, from_iou: float) -> bool:
    if mask is None or counts is None or size is None:
        return mask is None and counts is None
    return mask.counts == counts or rle_iou(rle(mask.size_hw, mask.counts), rle(size, counts)) >= from_iou
