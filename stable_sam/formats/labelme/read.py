"""Reads LabelMe JSON, one file for each image.

    {"shapes": [{"label": "cat", "points": [[x, y], ...], "shape_type": "polygon", "group_id": null}, ...],
     "imagePath": "a.jpg", "imageHeight": 375, "imageWidth": 500}

Rectangles (two corners in any order), polygons, circles and masks become boxes; points become positive points. Shapes
of one label and one `group_id` are parts of one object and become one prompt with the box around all of them. A line
has no area and becomes a prompt with an error.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from stable_sam.errors import AnnotationError, one_line
from stable_sam.formats.reading import Context, SmallFile, bounds, union
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, id_text, image_size

OWN_FIELDS = frozenset({"label", "points", "score", "mask", "group_id"})
BOXES = ("polygon", "rectangle", "rotation", "oriented_rectangle")
POINTS = ("point", "points")


def read_labelme(file: SmallFile, context: Context) -> list[SourceAnnotation]:
    """Return one annotation for each object; raises `AnnotationError` for a file that is not such JSON."""
    try:
        document = json.loads(file.content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file.uri}: not valid JSON: {one_line(error)}") from None
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list):
        raise AnnotationError(f"{file.uri}: expected LabelMe JSON with a list of shapes, got none")
    size = {"height": document.get("imageHeight"), "width": document.get("imageWidth")}
    image = context.images_of(file.file).find(document.get("imagePath"), last=[file.stem])
    return [
        SourceAnnotation(
            prompt_id=f"{file.stem}:{place}",
            where=f"{file.uri}: shape {place}",
            image_id=image.image_id,
            image_uri=image.uri,
            size_hw=image_size(size),
            **_fields(parts, image.problem),
        )
        for place, parts in _objects(shapes)
    ]


def _objects(shapes: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the shapes of each object, with the place of its first shape in the file."""
    objects: dict[Any, tuple[int, list[Any]]] = {}
    for place, shape in enumerate(shapes):
        group = shape.get("group_id") if isinstance(shape, dict) else None
        label = shape.get("label") if isinstance(shape, dict) else None
        key = (str(id_text(label)), id_text(group)) if id_text(group) is not None else place
        objects.setdefault(key, (place, []))[1].append(shape)
    yield from objects.values()


def _fields(parts: Sequence[Any], image_problem: str | None) -> dict[str, Any]:
    boxes: list[Any] = []
    points: list[Any] = []
    problems = [image_problem]
    for shape in parts:
        kind = (shape.get("shape_type") or "polygon") if isinstance(shape, dict) else None
        given = shape.get("points") if kind else None
        if not isinstance(given, list) or not given:
            problems.append(f"expected a shape with points, got {reprlib.repr(shape):.80}")
        elif kind in POINTS:
            points.extend(given)
        elif kind == "circle":
            boxes.append(_around(given))
        elif kind == "mask":
            boxes.append(_to_the_last_pixel(bounds(given)))
        elif kind in BOXES:
            boxes.append(bounds(given))
        else:
            problems.append(f"expected a shape with an area, or points, got a {reprlib.repr(kind):.40}")
    first = parts[0] if isinstance(parts[0], dict) else {}
    given = {name: value for name, value in first.items() if value not in ({}, "", [])}
    return {
        "category": first.get("label"),
        "box_xyxy": union(boxes),
        "points_xy": points,
        "score": first.get("score"),
        "problem": "; ".join(filter(None, problems)) or None,
        "attributes": attributes_json(given, OWN_FIELDS),
    }


def _around(points: Sequence[Any]) -> list[Any]:
    """Return the box (XYXY) around a circle, given by its centre and a point on it."""
    found = bounds(points)
    if found is None or len(found) != 4 or len(points) != 2:
        return [points]
    (x, y), (x1, y1) = points
    radius = math.hypot(x1 - x, y1 - y)
    return [x - radius, y - radius, x + radius, y + radius]


def _to_the_last_pixel(box: Any) -> Any:
    """Return the box (XYXY) of a mask, whose corners in the file are its first and its last pixel."""
    return [box[0], box[1], box[2] + 1, box[3] + 1] if len(box) == 4 else box
