"""Reads Pascal VOC XML, one file for each image, and the older XML of LabelMe's web tool.

    <annotation><filename>a.jpg</filename><size>...</size>
      <object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin> ... </bndbox></object>
    </annotation>

`bndbox` counts pixels from 1 and includes the last one, as the VOC development kit does: x0 = xmin - 1, x1 = xmax. In a
file by a tool that counts from 0, each box becomes one pixel larger at the left and at the top, never smaller than it
was drawn. Corners may be swapped. A rotated box (`robndbox`: centre, size and angle in radians) and LabelMe's polygons
become the boxes around them, without the shift by one pixel, and the boxes of LabelMe's segments are read as they are.
The `part`s of an object are not read.
"""

from __future__ import annotations

import math
from typing import Any
from xml.etree.ElementTree import Element

from stable_sam.formats.reading import Context, SmallFile, bounds, in_order
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, image_size
from stable_sam.formats.xml_elements import children, number, whole_number

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FLAGS = ("difficult", "truncated", "occluded")
SCORES = ("score", "confidence")
OWN_FIELDS = frozenset({"name", "bndbox", "robndbox", "polygon", "segm", "part", "parts", "deleted", *SCORES})


def read_voc(file: SmallFile, context: Context) -> list[SourceAnnotation]:
    """Return one annotation for each object; raises `AnnotationError` for a file that is not such XML."""
    header: dict[str, str | None] = {}
    size: dict[str, int | None] = {}
    objects: list[tuple[int, dict[str, Any]]] = []
    count = 0
    for element in children(file.stream(), file.uri, "annotation"):
        if element.tag == "object":
            if (element.findtext("deleted") or "").strip() != "1":
                objects.append((count, _fields(element)))
            count += 1
        elif element.tag == "size":
            size = {side: whole_number(element.findtext(side)) for side in ("height", "width")}
        elif element.tag == "imagesize":
            size = {"height": whole_number(element.findtext("nrows")), "width": whole_number(element.findtext("ncols"))}
        else:
            header.setdefault(element.tag, (element.text or "").strip())
    name, folder = header.get("filename"), header.get("folder")
    in_folder = [f"{folder}/{name}"] if name and folder else []
    image = context.images_of(file.file).find(name, last=[*in_folder, file.stem])
    return [
        SourceAnnotation(
            prompt_id=f"{file.stem}:{place}",
            where=f"{file.uri}: object {place}",
            image_id=image.image_id,
            image_uri=image.uri,
            problem=image.problem,
            size_hw=image_size(size),
            **fields,
        )
        for place, fields in objects
    ]


def _fields(element: Element) -> dict[str, Any]:
    leaves = {child.tag: (child.text or "").strip() for child in element if len(child) == 0}
    groups = {child.tag: {leaf.tag: leaf.text for leaf in child} for child in element if len(child)}
    flags = {name: flag for name in FLAGS if (flag := whole_number(leaves.get(name))) is not None}
    attributes = {name: text for name, text in leaves.items() if text} | groups | flags
    score = next((leaves[name] for name in SCORES if name in leaves), None)
    return {
        "category": leaves.get("name"),
        "box_xyxy": _box(element),
        "score": number(score),
        "attributes": attributes_json(attributes, OWN_FIELDS),
    }


def _box(element: Element) -> list[Any] | None:
    box = element.find("bndbox")
    if box is not None:
        corners = in_order([number(box.findtext(corner)) for corner in CORNERS])
        return [value - 1 if at < 2 and isinstance(value, float) else value for at, value in enumerate(corners)]
    turned = element.find("robndbox")
    if turned is not None:
        return _around([number(turned.findtext(name)) for name in ("cx", "cy", "w", "h", "angle")])
    segment = element.find("segm/box")
    if segment is not None:
        return list(in_order([number(segment.findtext(corner)) for corner in CORNERS]))
    points = [[number(point.findtext("x")), number(point.findtext("y"))] for point in element.iterfind("polygon/pt")]
    if not points:  # Roboflow writes polygons as x1, y1, x2, ...
        values = {child.tag: number(child.text) for child in element.iterfind("polygon/*")}
        points = [[values[f"x{n}"], values.get(f"y{n}")] for n in range(1, len(values)) if f"x{n}" in values]
    return bounds(points)


def _around(values: list[Any]) -> list[Any]:
    """Return the box (XYXY) around a rotated box, which is given as [cx, cy, width, height, angle in radians].

    When one of them is not a number, the result is not a box, so that `checked_prompt` reports it.
    """
    if not all(isinstance(value, float) for value in values):
        return values[:4] if isinstance(values[4], float) else [*values[:3], values[4]]
    cx, cy, width, height, angle = values
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    across, down = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return [cx - across, cy - down, cx + across, cy + down]
