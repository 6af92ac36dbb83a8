"""Which image and which category the ids of a COCO file mean."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from stable_sam.errors import AnnotationError
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.source_annotation import id_text, image_size

MAX_CATEGORIES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a COCO file says of one image. `problem`: why it cannot be found."""

    uri: str = ""
    size_hw: tuple[int, int] | None = None
    problem: str | None = None


class Catalogue:
    """The `images` and `categories` of a COCO file; an image takes some 200 bytes."""

    def __init__(self, name: str, images: ImageLookup) -> None:
        """Begins empty. `name` is the file's, for messages."""
        self._name, self._images = name, images
        self._numbers: dict[str, int] = {}
        self._file_names: list[Any] = []
        self._sides = array("i")
        self._twice: dict[str, str] = {}
        self._categories: dict[str | None, str | None] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add_image(self, position: int, entry: Any) -> None:
        """Take in an element of `images`; raises `AnnotationError` when it is no object with an id."""
        image_id = id_text(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None:
            raise AnnotationError(f"{self._name}: images[{position}]: expected an object with an id, got {entry!r:.80}")
        file_name = entry.get("file_name")
        if file_name is None:
            file_name = entry.get("coco_url")  # LVIS names no files
        number = self._numbers.setdefault(image_id, len(self._numbers))
        if number == len(self._file_names):
            self._file_names.append(file_name)
            self._sides.extend(image_size(entry) or (0, 0))
        elif self._file_names[number] != file_name:
            self._twice.setdefault(
                image_id, f"stands for two files: {self._file_names[number]!r:.200} and {file_name!r:.200}"
            )

    def add_category(self, category: Any) -> None:
        """Take in an element of `categories`."""
        if isinstance(category, dict) and len(self._categories) < MAX_CATEGORIES:
            name = str(category.get("name", category.get("id")))
            self._categories[id_text(category.get("id"))] = id_text(name) or name

    def number(self, image_id: str) -> int | None:
        """The number of an image below `len`, None when there is none."""
        return self._numbers.get(image_id)

    def image(self, image_id: str, file_name: Any = None) -> Image:
        """The image with this id, or one not listed that is called `file_name`; its `problem` is set when there is
        none."""
        number = self._numbers.get(image_id)
        if number is None and file_name is not None:
            found = self._images.find(file_name)
            return Image(uri=found.uri, problem=found.problem)
        if number is None:
            return Image(problem=f"image {image_id} is not among the images of {self._name}")
        if image_id in self._twice:
            return Image(problem=f"image id {image_id} {self._twice[image_id]}")
        height, width = self._sides[2 * number : 2 * number + 2]
        found = self._images.find(self._file_names[number])
        return Image(uri=found.uri, problem=found.problem, size_hw=(height, width) if height else None)

    def category(self, category_id: Any) -> str | None:
        """The name of a category, None when the file has none for this id."""
        category = id_text(category_id)
        return None if category is None else self._categories.get(category)


class CocoFileNames:
    """Stands in for a catalogue where there is none: detections name their images, or have COCO's own file names."""

    def __init__(self, images: ImageLookup) -> None:
        """`images` finds the pictures."""
        self._images = images

    def __len__(self) -> int:
        return 0

    def number(self, image_id: str) -> None:
        """Ids are not known before."""

    def image(self, image_id: str, file_name: Any = None) -> Image:
        """The image called `file_name`; without one, image 42 is 000000000042.jpg or 42.*, and image `cat` is cat.*"""
        if file_name is not None:
            found = self._images.find(file_name)
            return Image(uri=found.uri, problem=found.problem)
        if image_id.isascii() and image_id.isdecimal():
            found = self._images.find(f"{image_id:>012}.jpg", last=[image_id])
        else:
            missing = f"image {image_id!r:.200} has no COCO file name, expected a number, a file_name or an image index"
            found = self._images.find(image_id, missing=missing)
        if found.problem:
            return Image(problem=f"{found.problem} (without an image index, COCO's file names are assumed)")
        return Image(uri=found.uri)

    def category(self, category_id: Any) -> None:
        """Names are not known."""


AnyCatalogue = Catalogue | CocoFileNames
