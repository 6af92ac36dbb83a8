"""YOLO-seg as Ultralytics reads it: `data.yaml`, `images/`, and in `labels/` a line for each object."""

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
    """`class x1 y1 x2 y2 ...` in parts of width and height; holes and parts hang together by bridges without width."""

    def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
        lines = [f"{item.category.index} {_line(item.mask)}\n" for item in image.objects]
        target.write(f"labels/{image.stem}.txt", "".join(lines))
        # A line has no room for an id: the mask tells which prompt it was.
        return [{"class": item.category.index, "mask": item.mask.counts} for item in image.objects]

    yield add
    names = dict(enumerate(target.names))
    settings = {"path": ".", "train": "images", "val": "images", "names": names}
    target.write("data.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _line(mask: EncodedMask) -> str:
    height, width = mask.size_hw
    ring = one_ring(polygon_parts(decode_mask(mask.size_hw, mask.counts))) / (width, height)
    return " ".join(f"{value:.8f}" for value in ring.ravel())
