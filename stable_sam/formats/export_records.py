"""Records of an export: an image with its masks, ready to be written in any format, and the target it goes to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from stable_sam.errors import ConfigError
from stable_sam.records import BoxXYXY
from stable_sam.rle import EncodedMask
from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join

SENT = "stable-sam-export.json"
"""Name of the file in every export that lists what was sent, image by image."""
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCategory:
    """A category with the number, name and index that it has in all files of an export."""

    number: int
    """The source's category id where no other category has it, else a number above all of these ids."""
    name: str
    """Name in which control characters are written as escapes (see `printable`)."""
    index: int
    """Position of the name among the different names, from 0, for formats whose classes are positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportObject:
    """The mask of one prompt, with everything that a format may write about it."""

    prompt_id: str
    number: int
    """Id for formats whose ids are whole numbers: the prompt_id where each of them is one, else counted from 1."""
    revision: int
    """Revision of the exported row."""
    category: ExportCategory
    iscrowd: bool
    mask: EncodedMask
    box_xyxy: BoxXYXY | None
    """The weak box, XYXY pixels of the upright image; None for a prompt of points."""
    score: float | None
    """`quality`, or `predicted_iou` where the run had no calibration; 1 for a reviewed mask."""
    details: Mapping[str, Any]
    """The row's status, route, verdict and model scores by column name, without those that are null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportImage:
    """One image with all of its masks that are exported."""

    image_uri: str
    number: int
    """Id for formats whose ids are whole numbers: the image_id where each of them is one, else counted from 1."""
    name: str
    """Path of the image below the run's image folder, and below `images/` in the export; `Naming.name` makes it."""
    size_hw: tuple[int, int]
    """Height and width of the upright image in pixels."""
    objects: tuple[ExportObject, ...]
    reference: str
    """Where tools find the image: below `image_prefix`, or as a copy in the export's folder, or at its URI."""

    @property
    def stem(self) -> str:
        """`name` without the ending of the file."""
        return without_ending(self.name)


@dataclass(frozen=True, slots=True)
class Split:
    """The parts into which the images of an export are divided for training."""

    shares: tuple[float, ...]
    """Share of the images in `train`, `val` and, if there are three, `test`; they add up to 1."""

    @classmethod
    def parse(cls, text: str) -> Split:
        """Read two or three shares with slashes between them, such as 0.8/0.2; raises `ConfigError`."""
        try:
            shares = tuple(float(share) for share in text.split("/"))
        except ValueError:
            shares = ()
        if len(shares) not in (2, 3) or not all(0 < share < 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"split: expected the shares of train, val and, if you want it, test, which add up to 1, such as "
                f"0.8/0.2, got {text!r:.60}"
            )
        return cls(shares)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return ("train", "val", "test")[: len(self.shares)]

    def part(self, name: str) -> str:
        """Return the part of the image `name` in an export: it stays the same whatever else is exported."""
        place = int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64
        ends = accumulate(self.shares[:-1])
        return next((part for part, end in zip(self.names, ends, strict=False) if place < end), self.names[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where tools look for the files of a COCO data set, as paths below its folder."""

    annotations: str = "instances.json"
    """The file of the annotations."""
    images: str = "images"
    """The folder of the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The folder that an export is written to, and the choices that hold for all of its files."""

    uri: str
    """Folder of the export."""
    categories: tuple[ExportCategory, ...]
    """The categories of all exported objects."""
    polygons: bool
    """Whether masks are written as polygons, in formats that can hold either."""
    header: Mapping[str, Any]
    """What the export was made from: format, table, run and filters."""
    copies: bool
    """Whether the images are copied into the export."""
    split: Split | None = None
    """How the images are divided for training; None when they are not."""
    layout: Layout = Layout()
    """Where the images are copied to and, in COCO, where the annotations are."""

    @property
    def names(self) -> list[str]:
        """The different names of the categories, in the order of their `index`."""
        return list(dict.fromkeys(c.name for c in sorted(self.categories, key=lambda c: c.index)))

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file at `path` below the export's folder; text is encoded as UTF-8."""
        write_bytes(join(self.uri, path), content if isinstance(content, bytes) else content.encode())


def without_ending(name: str) -> str:
    """Return the path `name` without the ending of its file."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def printable(text: str) -> str:
    """Return `text` with its control characters written as escapes, because XML and terminals cannot hold them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


Add = Callable[[ExportImage, bytes | None], list[dict[str, Any]]]
"""A function that writes the masks of one image. Its second argument is the content of the image's file where the
format embeds images, else None. It returns for each object the values that identify it in the written files; the list
of what was sent keeps them."""
OpenWriter = Callable[[Target], AbstractContextManager[Add]]
"""A function that opens the files of an export. They are complete when the block ends; when the block raises, a format
of a single file leaves none."""
