"""Reads Label Studio JSON: an export (a list of tasks), one task, or one annotation as its target storage keeps it.

    [{"id": 1, "data": {"image": "s3://lake/a.jpg"}, "annotations": [{"id": 7, "result": [
        {"id": "r1", "type": "rectanglelabels", "original_width": 500, "original_height": 375,
         "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["cat"]}}]}]}]

Coordinates are per cent of the image. Rectangles (rotated ones too), polygons, ellipses, brush strokes, bitmasks and
closed vectors become the box around them. A keypoint becomes a positive point, or a background point where
`is_positive` is false. All results of one region (a shape and the labels chosen for it) become one prompt. Cancelled
annotations are ignored; when a task has no other annotation, its predictions are read. Results without a place in the
image (choices, texts, relations) do not become prompts; results of an unknown kind that have one fail.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from stable_sam.errors import PromptError
from stable_sam.formats.image_lookup import FoundImage, ImageLookup
from stable_sam.formats.labelstudio.bitmask import bitmask_box
from stable_sam.formats.labelstudio.brush_rle import painted_box
from stable_sam.formats.labelstudio.task_images import TaskImages
from stable_sam.formats.labelstudio.vector import vector_points
from stable_sam.formats.reading import AnnotationFile, Context, bounds, is_number, scaled, union
from stable_sam.formats.source_annotation import MAX_SIDE, SourceAnnotation, attributes_json, id_text
from stable_sam.storage.json_stream import JsonStream

SHAPES = {
    **{kind: kind for kind in ("rectangle", "polygon", "ellipse", "brush", "bitmask", "vector", "keypoint")},
    "magicwand": "brush",
}
"""Shapes by the beginnings of the types of results."""
PLACED = ("points", "vertices", "rle", "imageDataURL", "sequence", "bbox")
"""A value with one of these names has a place in the image, as has one with x and y."""
ATTRIBUTES = ("origin", "from_name", "meta", "hidden", "locked")


def read_labelstudio(opened: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[SourceAnnotation]:
    """Yield one annotation for each region; raises `AnnotationError` for a file that is not valid JSON."""
    stream, lookup = JsonStream(opened, file.uri), context.images_of(file)
    tasks = stream.elements() if stream.peek() == "[" else iter([stream.value()])
    for place, task in enumerate(tasks):
        yield from _regions(task, place, file.uri, lookup, context)
    stream.end()


def _regions(task: Any, place: int, uri: str, lookup: ImageLookup, context: Context) -> Iterator[SourceAnnotation]:
    if not isinstance(task, dict) or not isinstance(_task_of(task).get("data"), dict):
        problem = f"expected a task with data, got {reprlib.repr(task):.80}"
        where = f"{uri}: task at place {place}"
        yield SourceAnnotation(prompt_id=f"task-{place}", where=where, image_id="", problem=problem)
        return
    of = _task_of(task)
    task_id = id_text(of.get("id")) or f"task-{place}"
    images = TaskImages(of["data"], lookup)
    for number, made in enumerate(_made(task)):
        made_id = id_text(made.get("id")) or str(number)
        for position, (region_id, results) in enumerate(_by_region(made.get("result"))):
            prompt_id = f"{task_id}:{made_id}:{region_id or position}"
            where = f"{uri}: task {task_id} at place {place}, region {region_id or position}"
            yield _annotation(results, prompt_id, where, images, context)


def _task_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the task of a record, which is a task or, from a target storage, an annotation that holds its task."""
    inner = record.get("task")
    return inner if isinstance(inner, dict) and "result" in record else record


def _made(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the annotations that people made for a task, or else the predictions of a model."""
    if "result" in task:
        return [task]
    for key in ("annotations", "completions", "predictions"):
        given = task.get(key)
        made = given if isinstance(given, list) else []
        kept: list[Mapping[str, Any]] = [one for one in made if isinstance(one, dict) and not _cancelled(one)]
        if kept:
            return kept
    return []


def _cancelled(made: Mapping[str, Any]) -> bool:
    return bool(made.get("was_cancelled") or made.get("skipped"))


def _by_region(results: Any) -> Iterator[tuple[str | None, list[Any]]]:
    """Yield the results of each region that has a place in the image, with the region's id, in the order of the file.

    A region id that occurs again on another image of the task is another region; its number is appended to the id.
    """
    regions: dict[tuple[Any, ...], list[Any]] = {}
    given = results if isinstance(results, list) else []
    for place, result in enumerate(given):
        region_id = _region_id(result)
        if not isinstance(result, dict) or _shape(result) or _has_place(result):
            image = (str(result.get("to_name")), str(result.get("item_index"))) if region_id else ()
            regions.setdefault((region_id or place, *image), []).append(result)
    of_id: dict[str, list[list[Any]]] = {}
    for key, found in regions.items():
        of_id.setdefault(key[0], []).append(found)
    for result in given:
        # The labels and other values that were chosen for a region are added to its results.
        if isinstance(result, dict) and not (_shape(result) or _has_place(result)):
            for found in of_id.get(_region_id(result) or "", [])[:1]:
                found.append(result)
    for region_id, several in of_id.items():
        for number, found in enumerate(several):
            name = region_id if isinstance(region_id, str) else None
            yield (f"{name}-{number}" if name and number else name), found


def _region_id(result: Any) -> str | None:
    return id_text(result.get("id")) if isinstance(result, dict) else None


def _shape(result: Mapping[str, Any]) -> str | None:
    kind = str(result.get("type"))
    return next((shape for beginning, shape in SHAPES.items() if kind.startswith(beginning)), None)


def _has_place(result: Mapping[str, Any]) -> bool:
    value = result.get("value")
    return isinstance(value, dict) and ({"x", "y"} <= value.keys() or any(name in value for name in PLACED))


def _annotation(
    results: list[Any], prompt_id: str, where: str, images: TaskImages, context: Context
) -> SourceAnnotation:
    known = [result for result in results if isinstance(result, dict)]
    shapes = [result for result in known if _shape(result)]
    first = next(iter(shapes or known), {})
    image = images.of(first)
    size, problems = _size(first, image, context)
    problems.insert(0, image.problem)
    if not known:
        problems.append(f"expected a region with a value, got {reprlib.repr(results[0]):.80}")
    elif not shapes:
        problems.append(f"a region of type {reprlib.repr(first.get('type')):.40} is not read")
    parts = []
    for shape in shapes:
        try:
            parts.append(_geometry(shape, size))
        except PromptError as error:
            problems.append(str(error))
    labels, others = _labels(results)
    shown = {name: first[name] for name in ATTRIBUTES if first.get(name)}
    return SourceAnnotation(
        prompt_id=prompt_id,
        where=where,
        image_id=image.image_id,
        image_uri=image.uri,
        size_hw=size,
        problem=next(filter(None, problems), None),
        box_xyxy=union([part["box"] for part in parts if part.get("box") is not None]),
        points_xy=[point for part in parts for point in part.get("points", ())],
        point_labels=[label for part in parts for label in part.get("labels", ())],
        annotation_id=prompt_id.rpartition(":")[2],
        category=labels[0] if labels else None,
        score=first.get("score"),
        attributes=attributes_json(shown | others | ({"labels": labels} if len(labels) > 1 else {}), known=()),
    )


def _size(
    result: Mapping[str, Any], image: FoundImage, context: Context
) -> tuple[tuple[int, int] | None, list[str | None]]:
    """Return the (height, width) of the image that a result is drawn on, and what is wrong with it."""
    problems: list[str | None] = []
    size = _stated_size(result)
    if size is None and image.uri:
        size, unknown = context.sizes.of(image.uri)
        problems.append(unknown)
    if result.get("image_rotation"):
        turn = reprlib.repr(result["image_rotation"])
        problems.append(f"expected an image that is not rotated, got {turn:.20} degrees")
    return size, problems


def _labels(results: list[Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the labels of a region, and its other values by the names of the controls that they were entered in."""
    labels: list[str] = []
    others: dict[str, Any] = {}
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        for name, given in value.items() if isinstance(value, dict) else ():
            if name.endswith("labels") and isinstance(given, list):
                labels += [label for label in given if isinstance(label, str) and label not in labels]
            elif name in ("choices", "text", "rating", "taxonomy", "number", "datetime"):
                others[str(result.get("from_name") or name)] = given
    return labels, others


def _geometry(result: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return `box` (XYXY), or `points` and their `labels`, or nothing when the size is not known.

    Raises `PromptError`.
    """
    shape, value = _shape(result), result.get("value")
    if not isinstance(value, dict):
        raise PromptError(f"expected a region with a value, got {reprlib.repr(dict(result)):.80}")
    if size is None:
        return {}
    height, width = size
    across, down = width / 100, height / 100
    if shape == "brush":
        if value.get("format", "rle") != "rle":
            raise PromptError(f"expected brush strokes as rle, got {reprlib.repr(value.get('format')):.40}")
        return {"box": painted_box(value.get("rle"), size)}
    if shape == "bitmask":
        return {"box": bitmask_box(value.get("imageDataURL"), size)}
    if shape == "vector":
        return {"box": bounds([scaled(point, across, down) for point in vector_points(value)])}
    if shape == "polygon":
        points = value.get("points")
        listed = (
            [scaled(p, across, down) if isinstance(p, list) else p for p in points] if isinstance(points, list) else []
        )
        return {"box": bounds(listed)}
    x, y = scaled([value.get("x"), value.get("y")], across, down)
    if shape == "keypoint":
        return {"points": [[x, y]], "labels": [0 if result.get("is_positive") is False else 1]}
    names = ("radiusX", "radiusY") if shape == "ellipse" else ("width", "height")
    w, h = scaled([value.get(name) for name in names], across, down)
    degrees = value.get("rotation") or 0
    if not all(is_number(one) and math.isfinite(one) for one in (x, y, w, h, degrees)):
        raise PromptError(f"expected x, y, {names[0]} and {names[1]} as numbers, got {reprlib.repr(dict(value)):.80}")
    if min(w, h) < 0:
        raise PromptError(f"expected width and height above 0, got {reprlib.repr(dict(value)):.80}")
    return {"box": _around(shape, x, y, w, h, math.radians(degrees))}


def _around(shape: str | None, x: float, y: float, w: float, h: float, angle: float) -> list[float] | None:
    """Return the box (XYXY) around an ellipse with centre (x, y), or a rectangle rotated about its corner (x, y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    if shape == "ellipse":
        across, down = math.hypot(w * cos, h * sin), math.hypot(w * sin, h * cos)
        return [x - across, y - down, x + across, y + down]
    if angle == 0:
        return [x, y, x + w, y + h]
    return bounds([[x + u * cos - v * sin, y + u * sin + v * cos] for u in (0, w) for v in (0, h)])


def _stated_size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    sides = result.get("original_height"), result.get("original_width")
    good = all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)
    return sides if good else None  # type: ignore[return-value]  # both are whole numbers
