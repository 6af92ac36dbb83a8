"""Reads reviewed CVAT for images 1.1: the attribute `prompt_id` of a mask or polygon says which prompt it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import AnnotationError
from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.cvat.write import PROMPT_ATTRIBUTE
from stable_sam.formats.polygons import fill
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, reviewed_size, united
from stable_sam.formats.xml_elements import children, whole_number


def review_cvat(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image of every file, with the shapes of one prompt united.

    Raises `AnnotationError` for a file that is not such XML.
    """
    for name in files.named(".xml"):
        uri = files.where(name)
        with open_annotations(uri) as file:
            for element in children(file, uri, "annotations"):
                if element.tag == "image":
                    yield _image(element, uri, files)


def _image(image: Element, uri: str, files: Files) -> ReviewedImage:
    name = image.get("name") or ""
    size = reviewed_size({side: whole_number(image.get(side)) for side in ("height", "width")})
    where = f"{uri}: image {name}"
    if size is None:
        sides = [image.get(side) for side in ("width", "height")]
        raise AnnotationError(f"{where}: expected the width and height of an image, got {sides!r:.80}")
    listed = None if files.sent is None else files.sent.find(name)
    ids = {} if listed is None else {str(entry["id"]): entry["prompt_id"] for entry in listed.having("id")}
    shapes = [shape for shape in image if shape.tag not in ("tag", "attribute")]
    sent = None if listed is None else listed.revisions
    return ReviewedImage(
        where=where,
        findings=united(
            (_shape(shape, f"{where}: {shape.tag} {number}", size, ids) for number, shape in enumerate(shapes)), sent
        ),
        sent=sent,
        listed=listed,
    )


def _shape(
    shape: Element, where: str, size_hw: tuple[int, int], ids: Mapping[str, str]
) -> tuple[Finding, NDArray[np.bool_] | None]:
    written = next((a.text for a in shape.iterfind("attribute") if a.get("name") == PROMPT_ATTRIBUTE), None)
    prompt_id = ids.get(written, written) if written else None
    try:
        if shape.tag == "mask":
            mask = _runs(shape, size_hw)
        elif shape.tag == "polygon":
            text = (shape.get("points") or "").replace(";", ",")
            mask = fill([ring_of([float(value) for value in text.split(",")])], size_hw)
        else:
            raise ValueError(f"expected a mask or a polygon, got a {shape.tag}")
    except ValueError as error:
        return Finding(where=where, prompt_id=prompt_id, problem=str(error)), None
    return Finding(where=where, prompt_id=prompt_id), mask


def _runs(shape: Element, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of CVAT's run lengths, which `stable_sam.formats.cvat.write` describes."""
    left, top, width, height = (whole_number(shape.get(side)) or 0 for side in ("left", "top", "width", "height"))
    inside = 0 <= left < left + width <= size_hw[1] and 0 <= top < top + height <= size_hw[0]
    runs = [int(run) for run in (shape.get("rle") or "").split(",")]
    if not inside or min(runs) < 0 or sum(runs) != width * height:
        raise ValueError("expected a mask inside its image, with run lengths that add up to its box")
    mask = np.zeros(size_hw, np.bool_)
    painted = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = painted.reshape(height, width)
    return mask
