"""Reads reviewed LabelMe files: the key `prompt_id` of a shape says which prompt it is for."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import AnnotationError, one_line
from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.coco.write import OWN_KEY
from stable_sam.formats.png.header import decoded_png, png_size
from stable_sam.formats.polygons import fill
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, reviewed_size, revisions, united


def review_labelme(files: Files) -> Iterator[ReviewedImage]:
    """Yield the image of every file; raises `AnnotationError` for a file that is not LabelMe's."""
    for name in files.named(".json"):
        uri = files.where(name)
        try:
            document = json.loads(files.read(name))
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{uri}: not valid JSON: {one_line(error)}") from None
        size = None
        if isinstance(document, dict):
            size = reviewed_size({"height": document.get("imageHeight"), "width": document.get("imageWidth")})
        if size is None or not isinstance(document.get("shapes"), list):
            raise AnnotationError(f"{uri}: expected a LabelMe file with shapes, imageHeight and imageWidth")
        own = document.get(OWN_KEY)
        sent = revisions(own.get("sent")) if isinstance(own, dict) else None
        listed = None if files.sent is None else files.sent.find(name)
        sent = sent if sent is not None or listed is None else listed.revisions
        shapes = enumerate(document["shapes"])
        yield ReviewedImage(
            where=uri,
            findings=united((_shape(shape, f"{uri}: shapes[{number}]", size) for number, shape in shapes), sent),
            sent=sent,
            listed=listed,
        )


def _shape(shape: Any, where: str, size_hw: tuple[int, int]) -> tuple[Finding, NDArray[np.bool_] | None]:
    if not isinstance(shape, dict):
        return Finding(where=where, prompt_id=None, problem="expected a shape, got something else"), None
    named = shape.get("prompt_id")
    prompt_id = named if isinstance(named, str) else None
    try:
        return Finding(where=where, prompt_id=prompt_id), _mask(shape, size_hw)
    except (ValueError, TypeError, OverflowError) as error:
        return Finding(where=where, prompt_id=prompt_id, problem=str(error)), None


def _mask(shape: dict[str, Any], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    kind = shape.get("shape_type") or "polygon"
    points = [[float(x), float(y)] for x, y in shape.get("points") or ()]
    if kind == "polygon":
        return fill([ring_of([coordinate for point in points for coordinate in point])], size_hw)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return fill([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], size_hw)
    if kind != "mask" or not points:
        raise ValueError(f"expected a polygon, rectangle or mask, got a {kind!s:.60}")
    try:
        data = base64.b64decode(shape.get("mask") or "", validate=True)
    except (binascii.Error, TypeError):
        raise ValueError("expected a mask as PNG in base64") from None
    height, width = png_size(data) or (0, 0)
    left, top = int(points[0][0]), int(points[0][1])
    if left < 0 or top < 0 or top + height > size_hw[0] or left + width > size_hw[1]:
        raise ValueError("expected a mask inside its image")
    crop = decoded_png(data, cv2.IMREAD_GRAYSCALE)
    if crop is None:
        raise ValueError("expected a mask as PNG in base64")
    mask = np.zeros(size_hw, np.bool_)
    mask[top : top + height, left : left + width] = crop > 0
    return mask
