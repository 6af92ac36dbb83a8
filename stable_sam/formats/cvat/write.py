"""Writes CVAT for images 1.1: `annotations.xml` with masks, whose labels have an attribute for the prompt_id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Target, printable
from stable_sam.formats.polygons import Part, polygon_parts
from stable_sam.rle import decode_mask
from stable_sam.storage.files import write_stream
from stable_sam.storage.uris import join

PROMPT_ATTRIBUTE = "prompt_id"


@contextmanager
def write_cvat(target: Target) -> Iterator[Add]:
    """Write masks as CVAT's run lengths, which its brush can edit, or as polygons those that have no hole.

    A task whose labels come from `labels.json` ("Raw" in CVAT) keeps the prompt_id of each shape.
    """
    target.write("labels.json", _labels_json(target.names))
    with write_stream(join(target.uri, "annotations.xml")) as file:
        xml = XMLGenerator(file, "utf-8", short_empty_elements=True)
        xml.startDocument()
        _start(xml, "annotations")
        _text(xml, "version", "1.1")
        _meta(xml, target.names)
        number = 0

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            nonlocal number
            height, width = image.size_hw
            place = {"id": str(number), "name": image.name, "width": str(width), "height": str(height)}
            _start(xml, "image", place)
            for group, item in enumerate(image.objects, 1):
                _shapes(xml, item, group, target.polygons)
            xml.endElement("image")
            number += 1
            return [{"id": printable(item.prompt_id)} for item in image.objects]

        yield add
        xml.endElement("annotations")
        xml.endDocument()


def _shapes(xml: XMLGenerator, item: ExportObject, group: int, polygons: bool) -> None:
    mask = decode_mask(item.mask.size_hw, item.mask.counts)
    common = {"label": item.category.name, "source": "auto", "occluded": "0", "z_order": "0"}
    parts = polygon_parts(mask) if polygons else []
    if parts and not any(part.holes for part in parts):
        for part in parts:
            together = {"group_id": str(group)} if len(parts) > 1 else {}
            _shape(xml, "polygon", common | {"points": _points(part)} | together, item.prompt_id)
    else:
        _shape(xml, "mask", common | _runs(mask, item.mask.bbox_xywh), item.prompt_id)


def _shape(xml: XMLGenerator, kind: str, attributes: Mapping[str, str], prompt_id: str) -> None:
    _start(xml, kind, attributes)
    _text(xml, "attribute", printable(prompt_id), {"name": PROMPT_ATTRIBUTE})
    xml.endElement(kind)


def _points(part: Part) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in part.outer.tolist())


def _runs(mask: NDArray[np.bool_], bbox_xywh: tuple[float, float, float, float]) -> dict[str, str]:
    """Return a mask (H, W) as CVAT's attributes: run lengths row by row inside the mask's box, background first."""
    left, top, width, height = map(int, bbox_xywh)
    inside = mask[top : top + height, left : left + width].ravel(order="C")
    starts = np.flatnonzero(np.diff(inside, prepend=False))
    runs = np.diff(starts, prepend=0, append=inside.size)
    return {
        "rle": ", ".join(map(str, runs.tolist())),
        "left": str(left),
        "top": str(top),
        "width": str(width),
        "height": str(height),
    }


def _meta(xml: XMLGenerator, names: list[str]) -> None:
    for name in ("meta", "task", "labels"):
        _start(xml, name)
    for name in names:
        _start(xml, "label")
        _text(xml, "name", name)
        _start(xml, "attributes")
        _start(xml, "attribute")
        for key, value in _ATTRIBUTE.items():
            _text(xml, key, str(value))
        xml.endElement("attribute")
        xml.endElement("attributes")
        xml.endElement("label")
    for name in ("labels", "task", "meta"):
        xml.endElement(name)


def _labels_json(names: list[str]) -> str:
    attribute = _ATTRIBUTE | {"mutable": False, "values": []}
    return json.dumps([{"name": name, "attributes": [attribute]} for name in names], indent=1) + "\n"


_ATTRIBUTE = {"name": PROMPT_ATTRIBUTE, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}


def _start(xml: XMLGenerator, name: str, attributes: Mapping[str, str] | None = None) -> None:
    xml.startElement(name, AttributesImpl(dict(attributes or {})))


def _text(xml: XMLGenerator, name: str, text: str, attributes: Mapping[str, str] | None = None) -> None:
    _start(xml, name, attributes)
    xml.characters(text)
    xml.endElement(name)
