"""Scores a run's masks with the true masks that are known. The figures are kept with the run in the table's log."""

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
from stable_sam.runs.truth import TRUTH_SCHEMA, read_stored_truth
from stable_sam.table.current import first_row, load_live, workspace
from stable_sam.table.query import rows_of
from stable_sam.wording import counted

MAX_IMAGES = 10_000
"""Most images that the AP is computed on, chosen by a hash of their URIs: all their masks are held in memory."""
_FOUND = "image_uri, prompt_id, category, mask_size, mask_counts, area, coalesce(quality, predicted_iou, 1) AS score"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthScore:
    """How good a run's masks are. A figure is None when there is nothing to compute it from."""

    truth_matched: int = 0
    """Number of masks of the run with a `true_iou`, which `stable_sam.runs.truth.match` decides."""
    truth_mean_iou: float | None = None
    """Mean `true_iou` of these masks."""
    truth_share_75: float | None = None
    """Share of these masks with a `true_iou` of at least 0.75."""
    truth_images: int = 0
    """Number of images on which the AP is computed: images with truth of which the run refined a prompt."""
    truth_ap: float | None = None
    """COCO's mask AP (IoU 0.50 to 0.95) on these images, of all masks that are current once the run is published, also
    those of earlier runs. Masks are ordered by quality, or by predicted_iou without it; corrected masks come first.
    Categories are ignored when the truth or the table has none."""
    truth_ap50: float | None = None
    """COCO's mask AP at IoU 0.50, computed like `truth_ap`."""
    truth_ap75: float | None = None
    """COCO's mask AP at IoU 0.75, computed like `truth_ap`."""

    def line(self) -> str:
        """Describe the figures in one line."""
        figures = {
            "mean IoU": self.truth_mean_iou,
            "share of IoU >= 0.75": self.truth_share_75,
            "AP": self.truth_ap,
            "AP50": self.truth_ap50,
            "AP75": self.truth_ap75,
        }
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        matched = f"{counted(self.truth_matched, 'mask')} matched on {counted(self.truth_images, 'image')}"
        return f"Truth: {matched}; {shown}." if shown else f"Truth: {matched}."


def score_run(manifest: RunManifest, table: DeltaTable | None, parts: Dataset) -> TruthScore:
    """Score a run with the true masks that were stored with its plan.

    table: the table before the run is added; None when there is none yet.
    parts: the rows of the run.
    Raises `StorageError`.
    """
    shards = [shard for shard in manifest.shards if shard.truth]
    if not shards:
        return TruthScore()
    with workspace() as connection:
        connection.register("chunk", TRUTH_SCHEMA.empty_table())
        connection.execute("CREATE TABLE truth AS SELECT * FROM chunk")
        for shard in shards:
            connection.register("chunk", read_stored_truth(shard))
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
    """Compute COCO's mask AP, AP50 and AP75 on `images`; each is None when there is no true mask.

    truth: the true masks, with image_uri, category, mask_size, mask_counts and iscrowd.
    found: the masks to score, with image_uri, category, mask_size, mask_counts and score.
    """
    if not truth:
        return None, None, None
    by_category = all(any(row["category"] is not None for row in rows) for rows in (truth, found))
    names = sorted({str(row["category"]) for row in truth})
    categories = {name: number for number, name in enumerate(names if by_category else [""], 1)}
    numbers = {uri: number for number, uri in enumerate(images, 1)}

    # Ids begin with 1, because COCOeval takes a match with the id 0 for no match.
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

    # pycocotools prints its progress and its results.
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
        # The masks have sizes of their own, so the images need none.
        "images": [{"id": number, "height": 0, "width": 0} for number in numbers.values()],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
