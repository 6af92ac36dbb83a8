"""Reads reviewed COCO instances: each annotation's `prompt_id` says which prompt its mask is for.

What was sent stands in the key `stable_sam` of each image, or else in the list of what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stable_sam.errors import AnnotationError
from stable_sam.formats.coco.write import OWN_KEY
from stable_sam.formats.polygons import fill
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, encoded, reviewed_size, revisions
from stable_sam.rle import EncodedMask, decode_mask, encode_segmentation
from stable_sam.storage.json_stream import JsonStream


def review_coco(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image in the `images` of every file; raises `AnnotationError` for a file that is not COCO."""
    for name in files.named(".json"):
        yield from _file(files, name)


def _file(files: Files, name: str) -> Iterator[ReviewedImage]:
    uri = files.where(name)
    lists: dict[str, list[Any]] = {}
    with open_annotations(uri) as file:
        stream = JsonStream(file, uri)
        if stream.peek() != "{":
            raise AnnotationError(f"{uri}: expected COCO instances, got no JSON object")
        for key in stream.members():
            if key in ("images", "annotations") and stream.peek() == "[":
                lists[key] = list(stream.elements())
            else:
                stream.skip()
    if len(lists) < 2:
        raise AnnotationError(f"{uri}: expected COCO instances with the lists images and annotations, got none")
    if any(isinstance(annotation, dict) and "segments_info" in annotation for annotation in lists["annotations"]):
        return  # panoptic annotations, which datumaro writes beside the instances
    of_image: dict[Any, list[Any]] = {}
    for number, annotation in enumerate(lists["annotations"]):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
            raise AnnotationError(f"{uri}: annotations[{number}]: expected an object with an image_id")
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    for number, image in enumerate(lists["images"]):
        size = reviewed_size(image) if isinstance(image, dict) else None
        if size is None or not isinstance(image.get("file_name"), str) or not isinstance(image.get("id"), int | str):
            raise AnnotationError(f"{uri}: images[{number}]: expected id, file_name, height and width")
        own, listed = image.get(OWN_KEY), None if files.sent is None else files.sent.find(image["file_name"])
        sent = revisions(own.get("sent")) if isinstance(own, dict) else None
        yield ReviewedImage(
            where=f"{uri}: image {image['id']}",
            findings=[_finding(uri, each, size) for each in of_image.get(image["id"], ())],
            sent=sent if sent is not None or listed is None else listed.revisions,
            listed=listed,
        )


def _finding(uri: str, annotation: Mapping[str, Any], size_hw: tuple[int, int]) -> Finding:
    where = f"{uri}: annotation {annotation.get('id')}"
    attributes = annotation.get("attributes")
    named = annotation.get("prompt_id") or (isinstance(attributes, dict) and attributes.get("prompt_id"))
    prompt_id = str(named) if isinstance(named, str | int) and not isinstance(named, bool) else None
    try:
        mask = segmentation_mask(annotation.get("segmentation"), size_hw)
    except ValueError as error:
        return Finding(where=where, prompt_id=prompt_id, problem=str(error))
    return Finding(where=where, prompt_id=prompt_id, mask=mask)


def segmentation_mask(segmentation: Any, size_hw: tuple[int, int]) -> EncodedMask | None:
    """Return the mask of a segmentation in any of COCO's three forms, None when it is empty.

    The forms are polygons, which are the parts of one object and may overlap, uncompressed RLE, and compressed RLE.
    Raises ValueError for anything else.
    """
    if isinstance(segmentation, list) and segmentation:
        rings = [ring_of(polygon) for polygon in segmentation]
        return encoded(np.logical_or.reduce([fill([ring], size_hw) for ring in rings]))
    size = list(size_hw)
    if isinstance(segmentation, dict) and segmentation.get("size") == size:
        segmentation = segmentation | {"size": size}  # replaces numbers such as 8.0, which are equal to whole ones
    # Decoding and encoding again gives one form of the counts, because other tools may write the same mask differently.
    return encoded(decode_mask(size_hw, encode_segmentation(segmentation, size_hw).counts))


def ring_of(polygon: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the corners (N, 2) of COCO's `[x, y, x, y, ...]`, XY pixels, float64.

    Raises ValueError for fewer than 3 corners and for values that are no numbers below 1e9.
    """
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("expected a polygon of at least 3 corners")
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in polygon):
        raise ValueError("expected a polygon of numbers below 1e9")
    return np.array(polygon, np.float64).reshape(-1, 2)
