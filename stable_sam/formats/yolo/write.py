"""Writes YOLO-seg as Ultralytics reads it: `data.yaml`, `images/`, and a label file with a line for each object."""

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

    `stable_sam.formats.polygons.one_ring` describes the bridges. Where the export is split, `train.txt`, `val.txt` and
    `test.txt` list the images of each part.
    """
    listed: dict[str, list[str]] = {part: [] for part in target.split.names} if target.split else {}

    def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
        lines = [f"{item.category.index} {_line(item.mask)}\n" for item in image.objects]
        target.write(label_path(image.stem), "".join(lines))
        if target.split is not None:
            listed[target.split.part(image.name)].append(f"./images/{image.name}\n")
        return [{"class": item.category.index} for item in image.objects]

    yield add
    for part, names in listed.items():
        target.write(f"{part}.txt", "".join(names))
    places = {part: f"{part}.txt" for part in listed} or {"train": "images", "val": "images"}
    # Without the key `path`, Ultralytics takes these from the folder of data.yaml, wherever it is started.
    dataset = places | {"names": dict(enumerate(target.names))}
    target.write("data.yaml", yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True))


def label_path(stem: str) -> str:
    """Return where the labels of the image `images/<stem>` lie in the export.

    Ultralytics replaces the last `images` in the image's path by `labels`, and takes the ending `.txt`.
    """
    above, below = f"/images/{stem}".rsplit("/images/", 1)
    return f"{above}/labels/{below}.txt".removeprefix("/")


def _line(mask: EncodedMask) -> str:
    height, width = mask.size_hw
    ring = one_ring(polygon_parts(decode_mask(mask.size_hw, mask.counts))) / (width, height)
    return " ".join(f"{value:.8f}" for value in ring.ravel())
