"""What an answer of a person means for the row that the table has now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from stable_sam.data.query import connected
from stable_sam.data.schema import SHARD_SCHEMA, prompt_from_row
from stable_sam.records import Prompt, RefinedMask, Verdict
from stable_sam.rle import EncodedMask

SCORES = ("predicted_iou", "stability_score", "prompt_stability", "dsp_weight", "box_agreement", "quality",
          "gain_over_box")  # fmt: skip
"""What a model says of its own mask: kept where that mask was confirmed."""
OUTCOMES = (*get_args(Verdict), "unchanged", "already")
"""What `decide` says of an answer that can be taken: a verdict; as it was sent, and nobody says that they looked; or
what the table has already."""
_BATCH = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a file says of one prompt."""

    prompt_id: str
    mask: EncodedMask | None
    """None: the object was deleted."""
    revision: int | None
    """Of the row that was sent out; None where the file does not say."""
    checked: bool
    """The file says that somebody looked, so that an unchanged mask is a confirmed one."""
    where: str
    """File and record, for messages."""


def newest_rows(table_uri: str, answers: Sequence[Answer], made_by: str) -> Iterator[dict[str, Any]]:
    """The newest row of each prompt that is answered, with the counts that were sent and how many others' rows came
    since; in the order of images."""
    asked = pa.table(
        {
            "prompt_id": pa.array([answer.prompt_id for answer in answers], pa.string()),
            "sent": pa.array([answer.revision for answer in answers], pa.int64()),
        }
    )
    with connected(table_uri) as connection:
        connection.register("asked", asked)
        rows = connection.sql(
            """
            WITH known AS (SELECT history.*, sent FROM history JOIN asked USING (prompt_id)),
            sent_rows AS (
                SELECT prompt_id, any_value(mask_counts) FILTER (revision = sent) AS sent_counts,
                       count(*) FILTER (revision > sent AND model_id <> $made_by) AS others
                FROM known GROUP BY prompt_id
            )
            SELECT known.* EXCLUDE (sent), sent_counts, others FROM known JOIN sent_rows USING (prompt_id)
            QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY revision DESC) = 1
            ORDER BY image_uri, image_id, prompt_id
            """,
            params={"made_by": made_by},
        )
        for batch in rows.to_arrow_reader(_BATCH):
            yield from batch.to_pylist()


def decide(row: Mapping[str, Any], answer: Answer, confirms: bool, unchanged_iou: float, is_known: bool) -> str:
    """One of `OUTCOMES`, or in a sentence why the answer cannot be taken."""
    if row["status"] == "withdrawn":
        return "was withdrawn from the source"
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
            return f"is reviewed already (revision {row['revision']}), and the file does not say what it was made from"
        if not (is_known and reviewed and row["others"] == 0):
            return (
                f"was replaced since the export (revision {answer.revision} was sent, {row['revision']} is current, "
                f"by {row['model_id']}): export it again"
            )
    if mask is None:
        return "rejected"
    if as_now:
        return "confirmed" if confirms else "unchanged"
    return "corrected"


def reviewed_row(row: Mapping[str, Any], answer: Answer, verdict: str) -> tuple[Prompt, RefinedMask]:
    """The reviewed row. A corrected mask has no scores: those of `row` are of another one."""
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
        scores = {name: row[name] for name in (*SCORES, "second_pass", "view", "area", "mask_counts")}
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


def rle_iou(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """IoU of two masks as pycocotools has them."""
    return float(np.asarray(coco_mask.iou([one], [other], [0]))[0, 0])


def rle(size: Sequence[int], counts: str) -> dict[str, Any]:
    """A mask's columns as pycocotools has them."""
    return {"size": list(size), "counts": counts.encode("ascii")}
