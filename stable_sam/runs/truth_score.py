"""How good a run's masks are where the truth is known: what stays with the run in the table's log."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalake import DeltaTable
from pyarrow.dataset import Dataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stable_sam.rle import rle
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.truth import TRUTH_SCHEMA, read_truth
from stable_sam.table.current import first_row, load_live, workspace
from stable_sam.table.query import rows_of

MAX_IMAGES = 10_000
"""Of more images with truth, so many (by a hash of their URIs) give the AP, which holds all their masks."""
_FOUND = "image_uri, prompt_id, category, mask_size, mask_counts, area, coalesce(quality, predicted_iou, 1) AS score"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthScore:
    """The figures of a run; None where there is nothing to count."""

    truth_matched: int = 0
    """Masks of the run with a `true_iou`: see `stable_sam.runs.truth.match`."""
    truth_mean_iou: float | None = None
    """Their mean `true_iou`."""
    truth_share_75: float | None = None
    """Part of them with a `true_iou` of at least 0.75."""
    truth_images: int = 0
    """Images that the AP is of: the run refined a prompt of each, and the truth has them."""
    truth_ap: float | None = None
    """COCO's mask AP of what is current on these images once the run is published, rows of earlier runs included;
    ordered by quality, else predicted_iou, else (corrected by people) first. Without categories where truth or table
    has none."""
    truth_ap50: float | None = None
    truth_ap75: float | None = None

    def line(self) -> str:
        """One line for people."""
        figures = {
            "mean IoU": self.truth_mean_iou,
            "share of IoU >= 0.75": self.truth_share_75,
            "AP": self.truth_ap,
            "AP50": self.truth_ap50,
            "AP75": self.truth_ap75,
        }
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        return f"Truth: {self.truth_matched} masks matched on {self.truth_images} images" + (
            f"; {shown}." if shown else "."
        )


def score_run(manifest: RunManifest, table: DeltaTable | None, parts: Dataset) -> TruthScore:
    """Score a run whose rows are `parts`, to be added to `table`, against the truth that was stored with its plan.

    Raises `StorageError`.
    """
    shards = [shard for shard in manifest.shards if shard.truth]
    if not shards:
        return TruthScore()
    with workspace() as connection:
        connection.register("chunk", TRUTH_SCHEMA.empty_table())
        connection.execute("CREATE TABLE truth AS SELECT * FROM chunk")
        for shard in shards:
            connection.register("chunk", read_truth(shard))
            connection.execute("INSERT INTO truth SELECT * FROM chunk")
        connection.execute(
            f"CREATE TABLE asked AS SELECT DISTINCT image_uri FROM truth ORDER BY md5(image_uri) LIMIT {MAX_IMAGES}"
        )
        connection.register("added", parts)
        load_live(connection, table)
        matched, mean, share = first_row(
            connection,
            "SELECT count(true_iou), round(favg(true_iou), 6), "
            "round(avg((true_iou >= 0.75)::INT) FILTER (true_iou IS NOT NULL), 6) FROM added",
        )
        truth = rows_of(connection, "SELECT * FROM truth SEMI JOIN asked USING (image_uri) ORDER BY ALL")
        found = rows_of(
            connection,
            f"""
            SELECT {_FOUND} FROM (
                SELECT * FROM added WHERE status <> 'withdrawn'
                UNION ALL
                SELECT * FROM candidates SEMI JOIN live USING (prompt_id, revision)
                ANTI JOIN (SELECT prompt_id FROM added) USING (prompt_id)
            ) SEMI JOIN asked USING (image_uri) WHERE mask_counts IS NOT NULL ORDER BY image_uri, prompt_id
            """,
        )
    images = sorted({row["image_uri"] for row in truth})
    ap, ap50, ap75 = average_precision(images, [row for row in truth if row["mask_counts"] is not None], found)
    return TruthScore(
        truth_matched=matched,
        truth_mean_iou=mean,
        truth_share_75=share,
        truth_images=len(images),
        truth_ap=ap,
        truth_ap50=ap50,
        truth_ap75=ap75,
    )


def average_precision(
    images: Sequence[str], truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None, float | None]:
    """COCO's mask AP, AP50 and AP75 on `images`; None where there is no true mask.

    truth, found: image_uri, category, mask_size and mask_counts; with iscrowd, or with area and score.
    """
    if not truth:
        return None, None, None
    by_category = all(any(row["category"] is not None for row in rows) for rows in (truth, found))
    names = sorted({str(row["category"]) for row in truth})
    categories = {name: number for number, name in enumerate(names if by_category else [""], 1)}
    numbers = {uri: number for number, uri in enumerate(images, 1)}

    # Ids from 1 on: COCOeval takes a match with the id 0 for none.
    def annotations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "image_id": numbers[row["image_uri"]],
                "category_id": categories.get(str(row["category"]) if by_category else "", 0),
                "segmentation": (mask := rle(row["mask_size"], row["mask_counts"])),
                "area": int(coco_mask.area(mask)),
                "iscrowd": int(row.get("iscrowd") or 0),
                "score": row.get("score"),
            }
            for number, row in enumerate(rows, 1)
        ]

    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = [_coco(numbers, categories, annotations(rows)) for rows in (truth, found)]
        evaluation = COCOeval(*sides, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (None if value < 0 else round(float(value), 6) for value in evaluation.stats[:3])
    return ap, ap50, ap75


def _coco(numbers: Mapping[str, int], categories: Mapping[str, int], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": 0, "width": 0} for number in numbers.values()],  # of the masks themselves
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
