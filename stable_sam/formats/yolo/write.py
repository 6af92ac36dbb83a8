"""Writes YOLO-seg as Ultralytics reads it: `data.yaml`, `images/`, and in `labels/` a line for each object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from stable_sam.formats.export_records import Add, ExportImage, Target
from stable_sam.formats.polygons import one_ring, polygon_parts
from stable_sam.rle import EncodedMask, decode_mask


@contextmanager
def write_yolo(target: Target) -> Iterator[Add]:
    """Write lines `class x1 y1 x2 y2 ...` in fractions of width and height, with holes and parts joined by bridges.

    `stable_sam.formats.polygons.one_ring` describes the bridges.
    """

    def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
        lines = [f"{item.category.index} {_line(item.mask)}\n" for item in image.objects]
        target.write(f"labels/{image.stem}.txt", "".join(lines))
        return [{"class": item.category.index} for item in image.objects]

    yield add
    names = dict(enumerate(target.names))
    dataset = {"path": ".", "train": "images", "val": "images", "names": names}
    target.write("data.yaml", yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True))


def _line(mask: EncodedMask) -> str:
    height, width = mask.size_hw
    ring = one_ring(polygon_parts(decode_mask(mask.size_hw, mask.counts))) / (width, height)
    return " ".join(f"{value:.8f}" for value in ring.ravel())
