"""What is exported: the masks of one image, ready to be written in any format, and where to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from stable_sam.records import BoxXYXY
from stable_sam.rle import EncodedMask
from stable_sam.storage.files import join, write_bytes

SENT = "stable-sam-export.json"
"""Beside the files of every export: what was sent, image by image."""
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCategory:
    """A category under one number in all files of an export."""

    number: int
    """The source's own id where it has one; from 1."""
    name: str
    """Without control characters."""
    index: int
    """Place among the names, from 0, for formats that count from there; equal names have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportObject:
    """One prompt's mask."""

    prompt_id: str
    number: int
    """Whole number for formats whose ids are numbers: the prompt_id where all of them are one, else counted from 1."""
    revision: int
    """Of the row that is exported."""
    category: ExportCategory
    iscrowd: bool
    mask: EncodedMask
    box_xyxy: BoxXYXY | None
    """The weak box."""
    score: float | None
    """`quality`, or `predicted_iou` where the run had no calibration; 1 for a mask that was reviewed."""
    details: Mapping[str, Any]
    """status, route, verdict and the model's scores, null ones left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportImage:
    """The masks of one image."""

    image_uri: str
    number: int
    """Whole number, as `ExportObject.number`."""
    name: str
    """Path below the export's folder of images: that below the image folder of its run."""
    size_hw: tuple[int, int]
    objects: tuple[ExportObject, ...]
    reference: str
    """Where tools find the picture: its copy, relative to the export's folder; else by `image_prefix` or its URI."""

    @property
    def stem(self) -> str:
        """`name` without its ending."""
        folder, slash, file = self.name.rpartition("/")
        return folder + slash + (file.rpartition(".")[0] or file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an export goes."""

    uri: str
    """Folder."""
    categories: tuple[ExportCategory, ...]
    """In the order of their numbers."""
    polygons: bool
    """Polygons where the format lets one choose."""
    header: Mapping[str, Any]
    """Which masks these are: table, version, filter."""
    copies: bool
    """Whether the pictures are copied into the export."""

    @property
    def names(self) -> list[str]:
        """Names of the categories, in the order of their `index`."""
        return list(dict.fromkeys(c.name for c in sorted(self.categories, key=lambda c: c.index)))

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file of the export."""
        write_bytes(join(self.uri, path), content if isinstance(content, bytes) else content.encode())


def printable(text: str) -> str:
    """`text` with its control characters spelled out: XML and terminals cannot hold them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


Add = Callable[[ExportImage, bytes | None], list[dict[str, Any]]]
"""Write the masks of one image, whose file's bytes are given where the format holds them. Returns for each object what
tells it in the format's files: it goes into the list of what was sent."""
OpenWriter = Callable[[Target], AbstractContextManager[Add]]
"""The files are complete when the block ends, and are not there when it raises (single files)."""
