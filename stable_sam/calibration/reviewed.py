"""Label the reviewed masks of a table: the scores of the model's mask, and its IoU with the mask after the review."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import pyarrow as pa

from stable_sam.calibration.fit import REVIEWED, SAMPLE
from stable_sam.calibration.labels import RECORDS_SCHEMA, box_labels
from stable_sam.config import RefinerConfig
from stable_sam.config.calibration import box_scores, log_area
from stable_sam.errors import InputError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Route
from stable_sam.review.answers import reviewed_masks
from stable_sam.rle import rle
from stable_sam.table.query import connected, in_sample, rows_of
from stable_sam.wording import counted

# Condition for masks whose scores were made as the parameters say, in columns of a row and of its run.
_OURS = """
    (weights_sha256, dtype, jitter_count, jitter_scale, coalesce(stability_offset, 1))
        = ($weights_sha256, $dtype, $jitter_count, $jitter_scale, $stability_offset)
    AND CASE WHEN $tiles IS NULL THEN view IS NULL ELSE tiles = $tiles END
    AND (second_pass IS NOT NULL) = coalesce(dsp_weight >= $second_pass_from, false)
"""
# Counts the masks of this model that nobody has reviewed. A mask is missing in the sample only if it was there when the
# newest review was imported.
_WAITING = f"""
    SELECT route, {{condition}} AND revision < coalesce(
               (SELECT max(revision) FROM masks WHERE status = 'reviewed' AND {{condition}}), 0) AS missing, count(*)
    FROM masks JOIN (SELECT run_id, jitter_count, jitter_scale, stability_offset, tiles FROM runs) USING (run_id)
    WHERE status = 'ok' AND area > 0 AND {_OURS}
    GROUP BY ALL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedLabels:
    """The labelled masks of a table, and how much of the table they are."""

    table_uri: str
    records: pa.Table
    """Rows of RECORDS_SCHEMA of the kinds SAMPLE and REVIEWED."""
    reviewed: Mapping[str, int] = field(default_factory=dict)
    """Number of labelled masks by the route that they had before the review."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Number of masks of the same model that nobody has reviewed, by route."""
    confirmed: int = 0
    """Number of labelled masks that people confirmed as they were."""
    left_out: int = 0
    """Number of reviewed masks whose scores have another `ScoreSource`, and which are not labelled."""

    def lines(self) -> list[str]:
        """Return lines that say what a calibration learns from the table, and what it does not."""
        shares = [
            f"{self.reviewed.get(route, 0)} of {self.reviewed.get(route, 0) + self.waiting.get(route, 0)} {route}"
            for route in get_args(Route)
        ]
        sample = sum(kind == SAMPLE for kind in self.records["kind"].to_pylist())
        count = self.records.num_rows
        said = f"{self.table_uri}: {counted(count, 'reviewed mask')} ({', '.join(shares)})"
        if sample:
            lines = [f"{said}, {sample} of them in the random sample, on which the promises are checked."]
        else:
            lines = [
                f"{said}. People chose them, so the curves are fitted to them but the promises are checked on others."
            ]
        if count and not self.confirmed:
            lines.append(
                "None of them was confirmed. If right masks were not imported as confirmed (--confirm-unchanged), the "
                "curves learn that masks like them are bad."
            )
        if self.left_out:
            lines.append(
                f"{counted(self.left_out, 'more mask is', 'more masks are')} left out, made with other weights, dtype, "
                "jitter, stability offset, tiles or second pass. Their images and masks can still be used: export --to "
                "coco --where \"status = 'reviewed'\", then calibrate --data."
            )
        return lines


def reviewed_labels(
    table_uri: str, refiner: RefinerConfig, model: ModelIdentity, sample: float | None = None
) -> ReviewedLabels:
    """Label the reviewed masks of a table whose scores `model` made.

    sample: fraction of the table that was exported as a random sample (`in_sample`) and reviewed completely; None when
    there is no such sample. Raises `InputError` when masks of the sample are not reviewed, `ConfigError`, and what
    `stable_sam.table.query.query` raises.
    """
    ours = asdict(model.score_source(refiner))
    condition = "false" if sample is None else in_sample(sample)
    waiting: Counter[str] = Counter()
    missing = 0
    reviewed = reviewed_masks(table_uri)
    with connected(table_uri) as connection:
        for route, is_missing, count in connection.execute(_WAITING.format(condition=condition), ours).fetchall():
            waiting[route] += count
            missing += count if is_missing else 0
        drawn = connection.execute(f"SELECT prompt_id FROM masks WHERE status = 'reviewed' AND {condition}").fetchall()
        connection.register("reviewed", reviewed)
        sql = f"SELECT * FROM reviewed WHERE {_OURS} ORDER BY image_uri, prompt_id"
        labels = rows_of(connection, sql, ours)
    sampled = {prompt_id for (prompt_id,) in drawn}
    some = any(row["prompt_id"] in sampled for row in labels)
    if sample is not None and (missing or not some):
        raise InputError(
            f"{table_uri}: expected all masks of this model in the sample of {sample:g} to be reviewed, "
            + (f"{counted(missing, 'mask is', 'masks are')} not" if some else "none is")
            + f": export --sample {sample:g} --where \"status = 'ok'\", review, import-review --confirm-unchanged"
        )
    records = [_record(table_uri, row, SAMPLE if row["prompt_id"] in sampled else REVIEWED) for row in labels]
    return ReviewedLabels(
        table_uri=table_uri,
        records=pa.Table.from_pylist(records, schema=RECORDS_SCHEMA),
        reviewed=Counter(row["model_route"] for row in labels),
        waiting=waiting,
        confirmed=sum(row["verdict"] == "confirmed" for row in labels),
        left_out=reviewed.num_rows - len(labels),
    )


def _record(table_uri: str, row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    truth = None if row["true_mask_counts"] is None else rle(row["true_mask_size"], row["true_mask_counts"])
    own = {
        "set": table_uri,
        "picture": row["image_uri"],
        "kind": kind,
        "iou": row["true_iou"],
        "log_area": log_area(row["area"] or 0, row["mask_size"]),
        **box_scores(row["box_xyxy"], row["area"] or 0, row["mask_size"]),
        # Where there is no object, mask and box are equally wrong, and nothing is known of the gain.
        **(dict.fromkeys(("object_share", "box_iou")) if truth is None else box_labels(row["box_xyxy"], truth)),
    }
    return {name: own[name] if name in own else row[name] for name in RECORDS_SCHEMA.names}
