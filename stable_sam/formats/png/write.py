"""Writes masks as PNG files of 16 bits: each pixel holds the number of its object, or 0 where there is none."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Target
from stable_sam.rle import decode_mask
from stable_sam.storage.files import write_stream
from stable_sam.storage.uris import join

MOST_OBJECTS = 65_535
"""Largest number of objects in one file, whose values are 16 bits with 0 for the background."""
_COLUMNS = ("image", "file", "value", "prompt_id", "category", "score", "area")


@contextmanager
def write_png(target: Target) -> Iterator[Add]:
    """Write `masks/<image>.png`; an object that overlaps an earlier one goes into `masks/<image>.2.png` and so on.

    `index.csv` says which value in which file is which prompt.
    """
    with write_stream(join(target.uri, "index.csv")) as file:
        file.write(_row(_COLUMNS))

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            layers: list[NDArray[np.uint16]] = []
            counts: list[int] = []
            places: list[dict[str, Any]] = []
            for item in image.objects:
                layer, value = _paint(layers, counts, item)
                name = f"{image.name}.png" if layer == 0 else f"{image.name}.{layer + 1}.png"
                places.append({"file": f"masks/{name}", "value": value})
                facts = (item.prompt_id, item.category.name, item.score, item.mask.area)
                file.write(_row((image.name, f"masks/{name}", value, *facts)))
            for path, pixels in zip(dict.fromkeys(place["file"] for place in places), layers, strict=True):
                target.write(path, cv2.imencode(".png", pixels)[1].tobytes())
            return places

        yield add


def _paint(layers: list[NDArray[np.uint16]], counts: list[int], item: ExportObject) -> tuple[int, int]:
    """Paint an object into the first layer where its pixels are free; return the layer's number and the value there."""
    left, top, width, height = map(int, item.mask.bbox_xywh)
    window = slice(top, top + height), slice(left, left + width)
    mask = decode_mask(item.mask.size_hw, item.mask.counts)[window]
    for number, layer in enumerate(layers):
        if counts[number] < MOST_OBJECTS and not layer[window][mask].any():
            break
    else:
        number, layer = len(layers), np.zeros(item.mask.size_hw, np.uint16)
        layers.append(layer)
        counts.append(0)
    counts[number] += 1
    layer[window][mask] = counts[number]
    return number, counts[number]


def _row(values: tuple[Any, ...]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue().encode()
