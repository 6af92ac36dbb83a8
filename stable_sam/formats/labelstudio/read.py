"""Reads Label Studio JSON: an export (a list of tasks), one task, or one annotation as its target storage keeps it.

    [{"id": 1, "data": {"image": "s3://lake/a.jpg"}, "annotations": [{"id": 7, "result": [
        {"id": "r1", "type": "rectanglelabels", "original_width": 500, "original_height": 375,
         "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["cat"]}}]}]}]

Coordinates are per cent of the image. Rectangles (rotated ones too), polygons, ellipses and brush strokes become the
box around them. A keypoint becomes a positive point, or a background point where `is_positive` is false. All results of
one region (a shape and the labels chosen for it) become one prompt. Cancelled annotations are ignored; when a task has
no other annotation, its predictions are read. Results without a shape (choices, texts, relations) do not become
prompts.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from stable_sam.errors import ImageError, PromptError
from stable_sam.formats.image_lookup import ENDINGS, FoundImage, find_image
from stable_sam.formats.labelstudio.brush_rle import painted_box
from stable_sam.formats.reading import Context, bounds, is_number, scaled
from stable_sam.formats.source_annotation import MAX_SIDE, SourceAnnotation, attributes_json, id_text
from stable_sam.storage.json_stream import JsonStream

SHAPES = ("rectangle", "polygon", "ellipse", "brush", "keypoint")
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""The prefix that Label Studio puts before the names of uploaded files."""
ATTRIBUTES = ("origin", "from_name", "meta", "hidden", "locked")


def read_labelstudio(file: BinaryIO, uri: str, context: Context) -> Iterator[SourceAnnotation]:
    """Yield one annotation for each region; raises `AnnotationError` for a file that is not valid JSON."""
    stream = JsonStream(file, uri)
    tasks = stream.elements() if stream.peek() == "[" else iter([stream.value()])
    for place, task in enumerate(tasks):
        yield from _regions(task, place, uri, context)
    stream.end()


def _regions(task: Any, place: int, uri: str, context: Context) -> Iterator[SourceAnnotation]:
    if not isinstance(task, dict) or not isinstance(_task_of(task).get("data"), dict):
        problem = f"expected a task with data, got {reprlib.repr(task):.80}"
        where = f"{uri}: task at place {place}"
        yield SourceAnnotation(prompt_id=f"task-{place}", where=where, image_id="", problem=problem)
        return
    of = _task_of(task)
    task_id = id_text(of.get("id")) or f"task-{place}"
    image = _image(of["data"], context)
    for number, made in enumerate(_made(task)):
        made_id = id_text(made.get("id")) or str(number)
        for position, (region_id, results) in enumerate(_by_region(made.get("result"))):
            prompt_id = f"{task_id}:{made_id}:{region_id or position}"
            where = f"{uri}: task {task_id}, region {region_id or position}"
            yield _annotation(results, prompt_id, where, image, context)


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
    """Yield the results of each region that has a shape, with the region's id, in the order of the file."""
    regions: dict[Any, list[Any]] = {}
    for place, result in enumerate(results if isinstance(results, list) else []):
        region_id = id_text(result.get("id")) if isinstance(result, dict) else None
        regions.setdefault(region_id or place, []).append(result)
    for key, found in regions.items():
        if any(not isinstance(result, dict) or _shape(result) for result in found):
            yield (key if isinstance(key, str) else None), found


def _shape(result: Mapping[str, Any]) -> str | None:
    kind = str(result.get("type"))
    return next((shape for shape in SHAPES if kind.startswith(shape)), None)


def _annotation(
    results: list[Any], prompt_id: str, where: str, image: FoundImage, context: Context
) -> SourceAnnotation:
    shaped = next((result for result in results if isinstance(result, dict) and _shape(result)), None)
    value = shaped.get("value") if shaped else None
    problem, size, fields = image.problem, None, {}
    if shaped is None or not isinstance(value, dict):
        problem = problem or f"expected a region with a value, got {reprlib.repr(results[0]):.80}"
    else:
        size = _stated_size(shaped)
        if size is None and image.uri:
            size, unknown = context.sizes.of(image.uri)
            problem = problem or unknown
        if shaped.get("image_rotation"):
            problem = (
                problem
                or f"expected an image that is not rotated, got {reprlib.repr(shaped['image_rotation']):.20} degrees"
            )
        if size is not None:
            try:
                fields = _geometry(_shape(shaped), value, shaped, size)
            except PromptError as error:
                problem = problem or str(error)
    labels, others = _labels(results)
    shown = {name: shaped[name] for name in ATTRIBUTES if shaped and shaped.get(name)}
    return SourceAnnotation(
        prompt_id=prompt_id,
        where=where,
        image_id=image.image_id,
        image_uri=image.uri,
        size_hw=size,
        problem=problem,
        annotation_id=prompt_id.rpartition(":")[2],
        category=labels[0] if labels else None,
        score=shaped.get("score") if shaped else None,
        attributes=attributes_json(shown | others | ({"labels": labels} if len(labels) > 1 else {}), known=()),
        **fields,
    )


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


def _geometry(
    shape: str | None, value: Mapping[str, Any], result: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    height, width = size
    across, down = width / 100, height / 100
    if shape == "brush":
        if value.get("format", "rle") != "rle":
            raise PromptError(f"expected brush strokes as rle, got {reprlib.repr(value.get('format')):.40}")
        return {"box_xyxy": painted_box(value.get("rle"), size)}
    if shape == "polygon":
        points = value.get("points")
        listed = (
            [scaled(p, across, down) if isinstance(p, list) else p for p in points] if isinstance(points, list) else []
        )
        return {"box_xyxy": bounds(listed)}
    x, y = scaled([value.get("x"), value.get("y")], across, down)
    if shape == "keypoint":
        return {"points_xy": [[x, y]], "point_labels": [0 if result.get("is_positive") is False else 1]}
    names = ("radiusX", "radiusY") if shape == "ellipse" else ("width", "height")
    w, h = scaled([value.get(name) for name in names], across, down)
    degrees = value.get("rotation") or 0
    if not all(is_number(one) and math.isfinite(one) for one in (x, y, w, h, degrees)):
        raise PromptError(f"expected x, y, {names[0]} and {names[1]} as numbers, got {reprlib.repr(dict(value)):.80}")
    return {"box_xyxy": _around(shape, x, y, w, h, math.radians(degrees))}


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


def _image(data: Mapping[str, Any], context: Context) -> FoundImage:
    """Find the image of a task: the image whose path below the image folder is the longest end of the task's path."""
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    like_images = (text for text in texts.values() if _path(text).rpartition(".")[2] in ENDINGS)
    given = texts.get("image") or texts.get("img") or next(like_images, None)
    if given is None:
        return FoundImage(
            image_id="", problem=f"expected a task with an image, got data {reprlib.repr(dict(data)):.80}"
        )
    try:
        if "://" in given:
            uri = context.folder.find_uri(given)
            return FoundImage(image_id=uri[len(context.folder.uri) :].strip("/"), uri=uri)
    except ImageError:
        pass  # the images may have been copied to another folder since
    parts = [part for part in _path(given).split("/") if part not in ("", ".", "..")]
    names = ["/".join(parts[at:]) for at in range(len(parts))]
    if parts and UPLOAD_PREFIX.match(parts[-1]):
        names.append(UPLOAD_PREFIX.sub("", parts[-1], count=1))
    found = find_image(context.folder, parts[-1] if parts else given, names)
    if found.problem is None:
        return found
    return FoundImage(image_id=found.image_id, problem=f"image {given!r:.200} is not below {context.folder.uri}")


def _path(reference: str) -> str:
    """Return the path in a reference of Label Studio, which is /data/local-files/?d=path, a URL, or a path."""
    try:
        parts = urlsplit(reference)
        inner = parse_qs(parts.query).get("d") or parse_qs(parts.query).get("fileuri")
    except ValueError:
        return reference
    return inner[0] if inner else unquote(parts.path)
