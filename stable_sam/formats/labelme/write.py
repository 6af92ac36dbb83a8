"""Writes LabelMe JSON: a file for each image in `images/`, beside the copy of the image."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.coco.write import OWN_KEY
from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Target
from stable_sam.formats.polygons import polygon_parts
from stable_sam.rle import decode_mask

VERSION = "5.5.0"
"""Version of the format: the first in which all tools have shapes of type `mask`."""


@contextmanager
def write_labelme(target: Target) -> Iterator[Add]:
    """Write masks without holes as polygons, a shape for each part under one `group_id`; others become `mask` shapes.

    When the export wants no polygons, all masks become `mask` shapes. LabelMe keeps keys that it does not know: the
    `prompt_id` of a shape, and the `stable_sam` of a file, which says what was sent.
    """

    def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
        height, width = image.size_hw
        shapes = [
            shape
            for group, item in enumerate(image.objects, 1)
            for shape in _shapes(item, group, polygons=target.polygons)
        ]
        document = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name.rpartition("/")[2] if target.copies else image.reference,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            OWN_KEY: {
                "image_uri": image.image_uri,
                "sent": {item.prompt_id: item.revision for item in image.objects},
            },
        }
        target.write(f"images/{image.stem}.json", json.dumps(document, ensure_ascii=False, indent=1))
        return [{} for _ in image.objects]

    yield add


def _shapes(item: ExportObject, group: int, *, polygons: bool) -> list[dict[str, Any]]:
    mask = decode_mask(item.mask.size_hw, item.mask.counts)
    common = {"label": item.category.name, "flags": {}, "description": "", "prompt_id": item.prompt_id}
    parts = polygon_parts(mask) if polygons else []
    if parts and not any(part.holes for part in parts):
        group_id = group if len(parts) > 1 else None
        return [
            common | {"shape_type": "polygon", "group_id": group_id, "points": part.outer.tolist(), "mask": None}
            for part in parts
        ]
    left, top, width, height = map(int, item.mask.bbox_xywh)
    corners = [[left, top], [left + width - 1, top + height - 1]]
    crop = mask[top : top + height, left : left + width]
    return [common | {"shape_type": "mask", "group_id": None, "points": corners, "mask": _png(crop)}]


def _png(mask: NDArray[np.bool_]) -> str:
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(mask).astype(np.uint8) * 255)
    return base64.b64encode(encoded.tobytes()).decode("ascii")
