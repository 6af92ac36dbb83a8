"""Finds the image and the category that an id in a COCO file means."""

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
    """What a COCO file says about one image."""

    uri: str = ""
    """URI of the image; empty when it cannot be found."""
    size_hw: tuple[int, int] | None = None
    """Height and width in pixels; None when the file does not state them."""
    problem: str | None = None
    """Why the image cannot be found; None when it can."""


class Catalogue:
    """The `images` and `categories` of a COCO file; an image takes about 200 bytes of memory."""

    def __init__(self, name: str, images: ImageLookup) -> None:
        """Create an empty catalogue. `name` is the COCO file's name for messages, `images` finds its images."""
        self._name, self._images = name, images
        self._numbers: dict[str, int] = {}
        self._file_names: list[Any] = []
        self._sides = array("i")
        self._twice: dict[str, str] = {}
        self._categories: dict[str | None, str | None] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add_image(self, position: int, entry: Any) -> None:
        """Add element number `position` of `images`; raises `AnnotationError` unless it is an object with an id."""
        image_id = id_text(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None:
            raise AnnotationError(f"{self._name}: images[{position}]: expected an object with an id, got {entry!r:.80}")
        file_name = entry.get("file_name")
        if file_name is None:
            file_name = entry.get("coco_url")  # LVIS states this URL instead
        number = self._numbers.setdefault(image_id, len(self._numbers))
        if number == len(self._file_names):
            self._file_names.append(file_name)
            self._sides.extend(image_size(entry) or (0, 0))
        elif self._file_names[number] != file_name:
            self._twice.setdefault(
                image_id, f"stands for two files: {self._file_names[number]!r:.200} and {file_name!r:.200}"
            )

    def add_category(self, category: Any) -> None:
        """Add an element of `categories`; one that is no object is ignored, and so are those above `MAX_CATEGORIES`."""
        if isinstance(category, dict) and len(self._categories) < MAX_CATEGORIES:
            name = str(category.get("name", category.get("id")))
            self._categories[id_text(category.get("id"))] = id_text(name) or name

    def number(self, image_id: str) -> int | None:
        """Return the image's number, from 0 and below the length of the catalogue; None for an unknown id."""
        return self._numbers.get(image_id)

    def image(self, image_id: str, file_name: Any = None) -> Image:
        """Return the image with this id, which has a `problem` when it cannot be found.

        `file_name` is the name of an image that the catalogue does not list.
        """
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
        """Return the name of a category, None for an unknown id."""
        category = id_text(category_id)
        return None if category is None else self._categories.get(category)


class CocoFileNames:
    """Takes the place of a `Catalogue` without an image index.

    It finds images by the names that detections give, or else by COCO's own file names.
    """

    def __init__(self, images: ImageLookup) -> None:
        """`images` finds the images."""
        self._images = images

    def __len__(self) -> int:
        return 0

    def number(self, image_id: str) -> None:
        """Return None, because no id is known in advance."""

    def image(self, image_id: str, file_name: Any = None) -> Image:
        """Return the image called `file_name`, or without one the image that is named by its id.

        Image 42 is `000000000042.jpg`, as COCO's own files are called, or `42.*`; image `cat` is `cat.*`.
        """
        if file_name is not None:
            found = self._images.find(file_name)
            return Image(uri=found.uri, problem=found.problem)
        if image_id.isascii() and image_id.isdecimal():
            found = self._images.find(f"{image_id:>012}.jpg", last=[image_id])
        else:
            missing = f"expected a number as image_id, a file_name or an image index, got image_id {image_id!r:.200}"
            found = self._images.find(image_id, missing=missing)
        if found.problem:
            return Image(problem=f"{found.problem} (without an image index, COCO's file names are assumed)")
        return Image(uri=found.uri)

    def category(self, category_id: Any) -> None:
        """Return None, because category names are not known."""


AnyCatalogue = Catalogue | CocoFileNames
