"""Take the boxes of a real object detector as prompts: match COCO detection results to the true objects.

The file is a list of `{"image_id": 42, "bbox": [x, y, width, height], "score": 0.9, "category_id": 1}`. In the place of
`image_id` a record may have `file_name`, as the set's `instances.json` writes it. Where several sets use one id or one
name for different images, `file_name` is `<set>/<file_name>`. A detector without classes leaves `category_id` out.

The detections of an image are clipped to it and taken in the order of their scores, the highest first. Each is matched
to the true object that has no detection yet and with whose tight box it has the highest IoU, if that is at least
`MATCHED`. A detection whose `category_id` is one of the set's can only be matched to an object of this category; a
detection with another `category_id`, or with none, to any object. All objects that count take part, before a sample of
them is drawn.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from stable_sam.errors import AnnotationError
from stable_sam.evaluation.prompts import box_iou
from stable_sam.evaluation.true_masks import DetectionCounts, TruthImage, TruthObject, TruthSet
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.source_annotation import id_text
from stable_sam.prompt_noise import clip_boxes
from stable_sam.storage.json_stream import JsonStream
from stable_sam.wording import counted

MATCHED = 0.5
"""Smallest IoU of a detected and a true box at which the object counts as found: COCO's loosest threshold."""
_Place = tuple[str, str]
"""A set's name and the file name of one of its images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detection:
    box_xywh: tuple[float, float, float, float]
    score: float
    category_id: str | None


def match_detections(sets: Sequence[TruthSet], uri: str) -> list[TruthSet]:
    """Return `sets` with the detections of the file at `uri` in their objects, and with the counts of all detections.

    Raises `AnnotationError` for a file that is no list of detections, for an image that is in none of the sets or in
    several of them, and when no detection matches an object. Raises `StorageError` when the file cannot be read.
    """
    found: defaultdict[_Place, list[_Detection]] = defaultdict(list)
    for place, detection in _read(uri, _places(sets)):
        found[place].append(detection)
    matched = [_match_set(part, found) for part in sets]
    if not any(item.detected_xyxy for part in matched for image in part.images for item in image.objects):
        given = sum(map(len, found.values()))
        raise AnnotationError(
            f"{uri}: expected boxes of true objects, IoU at least {MATCHED}, got none in {counted(given, 'detection')}"
        )
    return matched


def _places(sets: Sequence[TruthSet]) -> dict[tuple[str, str], list[_Place]]:
    """The images that a detection may mean, by its field ("image_id" or "file_name") and the value of that field."""
    places: defaultdict[tuple[str, str], list[_Place]] = defaultdict(list)
    for part in sets:
        for image in (*part.images, *part.other_images):
            place = part.name, image.name
            places["image_id", image.image_id].append(place)
            for name in {image.name, f"{part.name}/{image.name}"}:
                places["file_name", name].append(place)
    return dict(places)


def _read(uri: str, places: Mapping[tuple[str, str], Sequence[_Place]]) -> Iterator[tuple[_Place, _Detection]]:
    with open_annotations(uri) as file:
        stream = JsonStream(file, uri)
        if stream.peek() != "[":
            raise AnnotationError(f"{uri}: expected COCO detection results, a list of objects with bbox and score")
        for number, record in enumerate(stream.elements()):
            try:
                yield _place(record, places), _detection(record)
            except (ValueError, OverflowError) as error:
                raise AnnotationError(f"{uri}: detections[{number}]: {error}") from None
        stream.end()


def _place(record: Any, places: Mapping[tuple[str, str], Sequence[_Place]]) -> _Place:
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {record!r:.80}")
    field = "file_name" if "file_name" in record else "image_id"
    value = id_text(record.get(field))
    if value is None:
        raise ValueError(f"expected an image_id or a file_name, got {record.get(field)!r:.80}")
    meant = places.get((field, value), ())
    if not meant:
        raise ValueError(f"expected an image of the evaluated sets, got {field} {value!r:.200}")
    if len(meant) > 1:
        sets = ", ".join(name for name, _ in meant)
        raise ValueError(
            f"expected one image, got {field} {value!r:.200}, which the sets {sets} have: write <set>/<file_name>"
        )
    return meant[0]


def _detection(record: dict[str, Any]) -> _Detection:
    box, score = record.get("bbox"), record.get("score")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box) or min(box[2:]) < 0:
        raise ValueError(f"expected bbox as [x, y, width, height] in pixels, got {box!r:.80}")
    if not _is_finite(score):
        raise ValueError(f"expected score as a number, got {score!r:.80}")
    x, y, width, height = map(float, box)
    return _Detection(box_xywh=(x, y, width, height), score=score, category_id=id_text(record.get("category_id")))


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _match_set(part: TruthSet, found: Mapping[_Place, Sequence[_Detection]]) -> TruthSet:
    def of(image: TruthImage) -> Sequence[_Detection]:
        return found.get((part.name, image.name), ())

    images = tuple(_match_image(image, of(image), part.category_ids) for image in part.images)
    matched = sum(item.detected_xyxy is not None for image in images for item in image.objects)
    counts = DetectionCounts(
        matched=matched,
        unmatched=sum(len(of(image)) for image in part.images) - matched,
        other_pictures=sum(len(of(image)) for image in part.other_images),
    )
    return replace(part, images=images, detections=counts)


def _match_image(image: TruthImage, detections: Sequence[_Detection], category_ids: frozenset[str]) -> TruthImage:
    objects: list[TruthObject] = list(image.objects)
    boxes = np.stack([item.box_xyxy() for item in objects])
    for detection in sorted(detections, key=lambda one: -one.score):
        x, y, width, height = detection.box_xywh
        [box] = clip_boxes(np.array([[x, y, x + width, y + height]]), image.size_hw)
        iou = box_iou(boxes, box)
        for number, item in enumerate(objects):
            other = detection.category_id in category_ids and detection.category_id != item.category_id
            if other or item.detected_xyxy is not None:
                iou[number] = 0.0
        best = int(iou.argmax())
        if iou[best] >= MATCHED:
            left, top, right, bottom = box.tolist()
            objects[best] = replace(objects[best], detected_xyxy=(left, top, right, bottom))
    return replace(image, objects=tuple(objects))
