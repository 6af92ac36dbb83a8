"""Reads CVAT for images 1.1 (XML): one file for a task or a project of CVAT.

    <annotations><image id="0" name="a.jpg" width="8" height="8">
      <box label="cat" occluded="0" z_order="1" xtl="0" ytl="2" xbr="4" ybr="4"><attribute name="a">v</attribute></box>

Boxes (rotated ones too), polygons, ellipses, masks and cuboids become the box around them. Points become positive
points, and the visible points of a skeleton become one prompt. Shapes of one label and one `group_id` are parts of one
object. A polyline has no area and becomes a prompt with an error. Tags describe the whole image and are not read.
CVAT for video is another format and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element

from stable_sam.errors import AnnotationError
from stable_sam.formats.columns.check import PlaceCounter
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.reading import AnnotationFile, Context, bounds, in_order, union
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, image_size
from stable_sam.formats.xml_elements import children, number, whole_number

CORNERS = ("xtl", "ytl", "xbr", "ybr")
NO_OBJECTS = frozenset({"tag", "attribute"})
GEOMETRY = frozenset({"label", "points", *CORNERS, "cx", "cy", "rx", "ry", "rle", "left", "top", "width", "height"})
FLAGS = ("occluded", "z_order", "outside")


def read_cvat(stream: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[SourceAnnotation]:
    """Yield one annotation for each object; raises `AnnotationError` for a file that is not such XML."""
    places, lookup = PlaceCounter(len(context.folder), context.folder.number), context.images_of(file)
    for image in children(stream, file.uri, "annotations"):
        if image.tag == "track":
            raise AnnotationError(
                f"{file.uri}: expected CVAT for images, got CVAT for video: export it as CVAT for images"
            )
        if image.tag == "image":
            yield from _shapes(image, file.uri, lookup, places)


def _shapes(image: Element, uri: str, lookup: ImageLookup, places: PlaceCounter) -> Iterator[SourceAnnotation]:
    name, subset = image.get("name"), image.get("subset")
    # In the export of a project, CVAT writes the images of each subset into a folder of its own.
    found = lookup.find(name, first=[f"{subset}/{name}", f"{subset}/{name}".lower()] if subset else [])
    size = image_size({side: whole_number(image.get(side)) for side in ("height", "width")})
    image_id = found.image_id or f"image-{image.get('id')}"
    for parts in _objects(image):
        shape, place_id = parts[0], f"{image_id}:{places.next(image_id)}"
        yield SourceAnnotation(
            prompt_id=place_id,
            where=f"{uri}: {shape.tag} {place_id}",
            image_id=image_id,
            image_uri=found.uri,
            size_hw=size,
            category=shape.get("label"),
            attributes=attributes_json(_attributes(shape), GEOMETRY),
            **_together([_geometry(part) for part in parts], found.problem),
        )


def _objects(image: Element) -> Iterator[list[Element]]:
    """Yield the shapes of each object."""
    objects: dict[Any, list[Element]] = {}
    for place, shape in enumerate(shape for shape in image if shape.tag not in NO_OBJECTS):
        group = shape.get("group_id")
        objects.setdefault((shape.get("label"), group) if group not in (None, "", "0") else place, []).append(shape)
    yield from objects.values()


def _together(parts: list[dict[str, Any]], problem: str | None) -> dict[str, Any]:
    problems = [problem, *(part.get("problem") for part in parts)]
    return {
        "box_xyxy": union([part["box"] for part in parts if part.get("box") is not None]),
        "points_xy": [point for part in parts for point in part.get("points", ())],
        "problem": "; ".join(filter(None, problems)) or None,
    }


def _attributes(shape: Element) -> dict[str, Any]:
    own = {
        name: whole if name in FLAGS and (whole := whole_number(text)) is not None else text
        for name, text in shape.attrib.items()
    }
    return own | {child.get("name") or "": child.text for child in shape.iterfind("attribute")} | {"shape": shape.tag}


def _geometry(shape: Element) -> dict[str, Any]:
    """Return the `box` (XYXY pixels), the `points` (XY pixels) or the `problem` of a shape."""
    if shape.tag == "box":
        corners = in_order([number(shape.get(corner)) for corner in CORNERS])
        return {"box": _turned(corners, number(shape.get("rotation")))}
    if shape.tag == "polygon":
        return {"box": bounds(_points(shape))}
    if shape.tag == "ellipse":
        return {"box": _of_ellipse(shape)}
    if shape.tag == "mask":
        return {"box": _of_mask(shape)}
    if shape.tag == "cuboid":
        corners = [f"{axis}{at}" for at in ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2") for axis in "xy"]
        values = [number(shape.get(corner)) for corner in corners]
        return {"box": bounds([values[at : at + 2] for at in range(0, len(values), 2)])}
    if shape.tag == "points":
        return {"points": _points(shape)}
    if shape.tag == "skeleton":
        joints = shape.iterfind("points")
        visible = [joint for joint in joints if joint.get("outside") != "1" and joint.get("occluded") != "1"]
        return {"points": [point for joint in visible for point in _points(joint)]}
    return {"problem": f"expected a shape with an area, or points, got a {shape.tag!s:.40}"}


def _points(shape: Element) -> list[list[Any]]:
    return [[number(value) for value in point.split(",")] for point in (shape.get("points") or "").split(";") if point]


def _of_mask(shape: Element) -> list[Any]:
    left, top, width, height = (number(shape.get(side)) for side in ("left", "top", "width", "height"))
    values = [left, top, width, height]
    good = all(isinstance(value, float) for value in values)
    return [left, top, left + width, top + height] if good else values


def _turned(box: list[Any], degrees: Any) -> list[Any]:
    """Return the box (XYXY) around `box` (XYXY) rotated about its centre."""
    if not isinstance(degrees, float) or degrees == 0 or not all(isinstance(value, float) for value in box):
        return box
    x0, y0, x1, y1 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = (x1 - x0) * cos + (y1 - y0) * sin, (x1 - x0) * sin + (y1 - y0) * cos
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def _of_ellipse(shape: Element) -> list[Any]:
    values = [number(shape.get(name)) for name in ("cx", "cy", "rx", "ry")]
    if not all(isinstance(value, float) for value in values):
        return values
    cx, cy, rx, ry = values
    if min(rx, ry) < 0:
        return [cx - rx, cy - ry, cx + rx, cy + ry]  # is inverted, and fails
    degrees = number(shape.get("rotation"))
    angle = math.radians(degrees) if isinstance(degrees, float) else 0.0
    width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return [cx - width, cy - height, cx + width, cy + height]
