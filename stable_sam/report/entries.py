"""Make the JSON that the script of the page gets for each prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from stable_sam.report.explanations import Explanations
from stable_sam.report.pictures import Pictures, drawable
from stable_sam.rle import decode_mask, encode_mask, mask_iou
from stable_sam.scores import IN_UNIT
from stable_sam.wording import counted

MASK_SIDE_MAX = 1600
"""Longest side in pixels to which larger masks are reduced; their pictures in the page are smaller still."""
OUTSIDE = 0.1
"""How far outside the image a box is drawn at most, as a fraction of the image's longer side. The box of a failed row
may be millions of pixels long."""


def entries(rows: Sequence[dict[str, Any]], pictures: Pictures, explained: Explanations) -> list[dict[str, Any]]:
    """Return one mapping for each row, in the same order; what a row does not have is left out.

    A mask is in pixels of its own `size`; everything else that is drawn is in pixels of the upright image.
    """
    draws = {draw: place for place, draw in enumerate(sorted(row["draw"] for row in rows))}
    made = (_entry(row, pictures, explained) | {"draw": draws[row["draw"]]} for row in rows)
    return [{name: value for name, value in entry.items() if value not in (None, "", [], {})} for entry in made]


def _entry(row: dict[str, Any], pictures: Pictures, explained: Explanations) -> dict[str, Any]:
    prompt_id, seen = row["prompt_id"], pictures.seen[row["prompt_id"]]
    known = {
        "id": prompt_id,
        "outcome": row["outcome"],
        "verdict": row["verdict"],
        "reason": row["error"] or row["route_reason"],
        "category": row["category"],
        "source": row["source"],
        "image": row["image_uri"],
        "weak": " and ".join(part for part in (_box_text(row["box_xyxy"]), _points_text(row["points_xy"])) if part),
        "detector": _finite(row["score"]),
        "scores": {one.column: value for one in IN_UNIT if (value := _finite(row[one.column])) is not None},
        "gain": _finite(row["gain_over_box"]),
        "area": row["area"],
        "second_pass": row["second_pass"],
        "view": _view(row),
        "attributes": _attributes(row["attributes"]),
        "revision": row["revision"],
        "night": row["logical_date"],
        "change": _change(row),
        "changed_from": row["previous_revision"],
        "explanation": explained.of.get(prompt_id),
        "unexplained": explained.missing.get(prompt_id),
        "note": seen.note,
    }
    if seen.note:
        return known
    same_size = row["previous_size"] == row["mask_size"] or row["mask_size"] is None
    return known | {
        "picture": seen.picture,
        "frame": seen.frame,
        "window": seen.window,
        "size": seen.image_hw,
        "box": _box(row, seen.image_hw),
        "points": _points(row),
        "tight": row["bbox_xywh"] if row["area"] else None,
        "mask": _mask(row["mask_size"], row["mask_counts"]) if row["area"] else None,
        "before": _mask(row["previous_size"], row["previous_counts"]) if known["change"] and same_size else None,
    }


def _view(row: dict[str, Any]) -> str | None:
    """The tile or the wider view in which the mask of a small object was made, in words."""
    if row["view"] is None:
        return None
    if row["tile_xywh"] is None:
        return "the whole image, a wider view than the object's size needs"
    x, y, width, height = row["tile_xywh"]
    wider = ", a wider view than the object's size needs" if row["view"] == "wider" else ""
    return f"a tile of {width} x {height} pixels at {x}, {y}{wider}"


def _change(row: dict[str, Any]) -> float | None:
    """1 - IoU of the mask with that of the previous revision; None when there is no previous revision."""
    if row["previous_revision"] is None:
        return None
    if row["mask_counts"] == row["previous_counts"] and row["mask_size"] == row["previous_size"]:
        return 0.0
    iou = mask_iou(row["mask_size"], row["mask_counts"], row["previous_size"], row["previous_counts"])
    return 1 - (iou or 0.0)


def _mask(size: list[int] | None, counts: str | None) -> dict[str, Any] | None:
    if size is None or counts is None:
        return None
    scale = MASK_SIDE_MAX / max(size)
    if scale >= 1:
        return {"size": size, "counts": counts}
    full = np.ascontiguousarray(decode_mask((size[0], size[1]), counts)).view(np.uint8) * np.uint8(255)
    height, width = (max(1, round(n * scale)) for n in size)
    reduced = np.asarray(cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA)) > 127
    encoded = encode_mask(reduced)
    return {"size": encoded.size_hw, "counts": encoded.counts}


def _box(row: dict[str, Any], image_hw: tuple[int, int]) -> list[float] | None:
    if not drawable(row["box_xyxy"]):
        return None
    height, width = image_hw
    far = OUTSIDE * max(image_hw)
    x0, y0, x1, y1 = row["box_xyxy"]
    xs, ys = sorted((x0, x1)), sorted((y0, y1))
    return [round(float(n), 2) for n in np.clip([xs[0], ys[0], xs[1], ys[1]], -far, [width + far, height + far] * 2)]


def _points(row: dict[str, Any]) -> list[tuple[float, float, int]]:
    """x, y and label of each point that can be drawn; the label is 1 on the object and 0 on the background."""
    points, labels = row["points_xy"] or [], row["point_labels"] or []
    known = labels if len(labels) == len(points) else [1] * len(points)
    return [(x, y, int(label > 0)) for (x, y), label in zip(points, known, strict=True) if drawable((x, y))]


def _box_text(box: Sequence[float] | None) -> str:
    return "" if box is None else f"box ({', '.join(f'{n:g}' for n in box)})"


def _points_text(points: Sequence[Sequence[float]] | None) -> str:
    return "" if not points else counted(len(points), "point")


def _attributes(text: str | None) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in json.loads(text).items()] if text else []


def _finite(number: float | None) -> float | None:
    return round(number, 5) if number is not None and math.isfinite(number) else None
