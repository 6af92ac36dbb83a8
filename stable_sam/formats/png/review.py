"""Reads reviewed PNG masks: the list of what was sent says which pixel value is which prompt."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.png.header import decoded_png, png_size
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, SentImage, encoded


def review_png(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image of which at least one file came back; a missing file is a problem for each of its prompts.

    Raises `AnnotationError` without the list of what was sent.
    """
    there = {_plain(name): name for name in files.named(".png")}
    for image in files.needed_sent().images.values():
        wanted = list(dict.fromkeys(str(entry["file"]) for entry in image.having("file", "value")))
        found = {path: there.get(_plain(path)) for path in wanted}
        if not any(found.values()):
            continue
        findings: list[Finding] = []
        for path, name in found.items():
            findings += _of_file(files, image, path, name)
        where = files.where(next(name for name in found.values() if name))
        yield ReviewedImage(where=where, findings=findings, sent=image.revisions, listed=image)


def _plain(path: str) -> str:
    """Return `path` without the export's folder of masks, because somebody may import that folder alone."""
    return path.removeprefix("masks/")


def _of_file(files: Files, image: SentImage, path: str, name: str | None) -> Iterator[Finding]:
    entries = {entry["value"]: entry["prompt_id"] for entry in image.objects if entry["file"] == path}
    where = files.where(name or path)
    try:
        if name is None:
            raise ValueError("expected this file beside the image's other masks, found none")
        pixels = _pixels(files.read(name), image.size_hw)
    except ValueError as error:
        yield from (Finding(where=where, prompt_id=prompt_id, problem=str(error)) for prompt_id in entries.values())
        return
    for value in np.unique(pixels).tolist():
        if value in entries:
            yield Finding(where=where, prompt_id=entries[value], mask=encoded(pixels == value))
        elif value:
            yield Finding(where=f"{where}: value {value}", prompt_id=None, mask=encoded(pixels == value))


def _pixels(data: bytes, size_hw: tuple[int, int]) -> NDArray[np.integer]:
    found = png_size(data)
    if found is not None and found != size_hw:
        raise ValueError(f"expected {size_hw[1]} x {size_hw[0]} pixels as sent, got {found[1]} x {found[0]}")
    pixels = decoded_png(data, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2:
        raise ValueError("expected a PNG of one channel, whose values are numbers of objects")
    return pixels
