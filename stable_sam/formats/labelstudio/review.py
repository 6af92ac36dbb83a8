"""Reads Label Studio's JSON export of the tasks that `write_labelstudio` wrote, after annotators reviewed them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from stable_sam.errors import AnnotationError, PromptError
from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.coco.write import OWN_KEY
from stable_sam.formats.labelstudio.brush_rle import decode_brush
from stable_sam.formats.polygons import fill
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.review_files import Files, Sent
from stable_sam.formats.review_records import (
    Finding,
    ReviewedImage,
    SentImage,
    encoded,
    is_revision,
    reviewed_size,
)
from stable_sam.storage.json_stream import JsonStream

_UPLOADED = re.compile(r"^.*/(upload/.*/)?[0-9a-f]{8}-(?=[^/]*$)")


def review_labelstudio(files: Files) -> Iterator[ReviewedImage]:
    """Yield an image for every submitted annotation; it counts as checked. Predictions and skipped tasks are ignored.

    Raises `AnnotationError` for a file that is not a list of tasks.
    """
    for name in files.named(".json"):
        uri = files.where(name)
        with open_annotations(uri) as file:
            stream = JsonStream(file, uri)
            if stream.peek() != "[":
                raise AnnotationError(f'{uri}: expected a list of tasks, which is Label Studio\'s export "JSON"')
            for number, task in enumerate(stream.elements()):
                if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                    raise AnnotationError(
                        f'{uri}: tasks[{number}]: expected a task with data, as in Label Studio\'s export "JSON"'
                    )
                yield from _annotations(f"{uri}: task {task.get('id', number)}", task, files.sent)


def _annotations(where: str, task: Mapping[str, Any], list_of_sent: Sent | None) -> Iterator[ReviewedImage]:
    own = task["data"].get(OWN_KEY)
    sent = own.get("sent") if isinstance(own, dict) else None
    regions: dict[str, Any] = sent if isinstance(sent, dict) else {}
    if not all(isinstance(one, dict) and isinstance(one.get("prompt_id"), str) and is_revision(one.get("revision"))
               for one in regions.values()):  # fmt: skip
        raise AnnotationError(f"{where}: data.{OWN_KEY}: expected what the export wrote there, got something else")
    listed = None if list_of_sent is None else _listed(task["data"], list_of_sent)
    if listed is not None and not regions:
        regions = {str(each["id"]): each for each in listed.having("id")}
    annotations = task.get("annotations") or []
    if not isinstance(annotations, list):
        raise AnnotationError(f"{where}: expected a list of annotations, got {annotations!r:.60}")
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        which = f"{where}, annotation {annotation.get('id')}"
        results = annotation.get("result")
        if not isinstance(results, list):
            raise AnnotationError(f"{which}: expected a list of results, got {results!r:.60}")
        yield ReviewedImage(
            where=which,
            findings=[_finding(which, result, regions) for result in results if isinstance(result, dict)],
            sent={one["prompt_id"]: one["revision"] for one in regions.values()} if regions else None,
            listed=listed,
            checked=True,
        )


def _listed(data: Mapping[str, Any], sent: Sent) -> SentImage | None:
    """Return the task's image in the list of what was sent: by its URI, or by the address that the tool has for it."""
    own = data.get(OWN_KEY)
    found = sent.find(own["image_uri"]) if isinstance(own, dict) and isinstance(own.get("image_uri"), str) else None
    for value in data.values():
        if found is None and isinstance(value, str):
            address = urlsplit(value)
            # Local storage has the path in the query; uploaded files have eight digits before their names.
            path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
            found = sent.find(value) or sent.find(path) or sent.find(_UPLOADED.sub("", path))
    return found


def _finding(where: str, result: Mapping[str, Any], regions: Mapping[str, Mapping[str, Any]]) -> Finding:
    # Some versions of Label Studio append "#" and the annotation's id to the region's id.
    region = str(result.get("id")).partition("#")[0]
    where = f"{where}, region {region}"
    prompt_id = regions[region]["prompt_id"] if region in regions else None
    value = result.get("value")
    size = reviewed_size({"height": result.get("original_height"), "width": result.get("original_width")})
    try:
        if size is None or not isinstance(value, dict):
            raise ValueError("expected a region with value, original_width and original_height")
        if result.get("image_rotation"):
            raise ValueError("expected an image that is not rotated: a mask on a rotated image does not fit the file")
        if "rle" in value:
            mask = decode_brush(value["rle"], size)
        elif isinstance(value.get("points"), list):
            corners = [coordinate for point in value["points"] for coordinate in point]
            mask = fill([ring_of(corners) / 100 * np.array(size[::-1], np.float64)], size)
        else:
            raise ValueError(f"expected a brush mask or a polygon, got {result.get('type')!r:.60}")
    except (PromptError, ValueError, TypeError) as error:
        return Finding(where=where, prompt_id=prompt_id, problem=str(error))
    return Finding(where=where, prompt_id=prompt_id, mask=encoded(mask))
