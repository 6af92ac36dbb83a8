"""What the readers of other tools' formats are given, and the geometry that they share."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from stable_sam.data.annotation_files import AnnotationFile
from stable_sam.data.image_folder import ImageFolder
from stable_sam.data.image_size import image_size_of
from stable_sam.data.source_annotation import SourceAnnotation
from stable_sam.errors import AnnotationError, ImageError

MAX_INTEGER = 2**1000
MAX_SIZES = 100_000
"""Images whose size is remembered: files that are not sorted by image name each of them many times."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of images by their headers, each read once."""

    _look_up: Any = field(default_factory=lambda: lru_cache(MAX_SIZES)(_size_or_problem))

    def of(self, image_uri: str) -> tuple[tuple[int, int] | None, str | None]:
        """(height, width) of the upright image, or why it is not known; raises `StorageError`."""
        size, problem = self._look_up(image_uri)
        return size, problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all readers need."""

    folder: ImageFolder
    keypoints: bool = False
    """Visible keypoints are points of the prompt."""
    class_names_uri: str | None = None
    """Given by the user."""
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFile:
    """The whole content of a file that holds the annotations of one image."""

    file: AnnotationFile
    content: bytes

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.file.uri

    @property
    def stem(self) -> str:
        """Its path below the annotation folder, without ending: the beginning of its prompts' ids."""
        return self.file.stem

    def stream(self) -> io.BytesIO:
        """The content as a file."""
        return io.BytesIO(self.content)


def unreadable(file: AnnotationFile, error: AnnotationError) -> SourceAnnotation:
    """Stands for a file, one of many, that cannot be read at all."""
    problem = str(error).removeprefix(f"{file.uri}: ")
    return SourceAnnotation(prompt_id=file.stem, where=file.uri, image_id="", problem=problem)


def bounds(points: Sequence[Sequence[Any]]) -> list[Any] | None:
    """XYXY around points; None without any. Points that are no pairs of numbers come back as they are, to be told."""
    if not points:
        return None
    if not all(isinstance(point, list | tuple) and len(point) == 2 and all(map(is_number, point)) for point in points):
        return [points]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def union(boxes: Sequence[Any]) -> Any:
    """XYXY around boxes, None without any; one that is no box of 4 numbers comes back as it is, to be told."""
    strange = [box for box in boxes if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)))]
    if strange or len(boxes) < 2:
        return next(iter(strange or boxes), None)
    return [
        *(min(box[side] for box in boxes) for side in (0, 1)),
        *(max(box[side] for box in boxes) for side in (2, 3)),
    ]


def scaled(values: Iterable[Any], *factors: float) -> list[Any]:
    """Each value by its factor, in turn; what is no number as it is."""
    given = list(values)
    return [
        value * factors[position % len(factors)] if is_number(value) else value for position, value in enumerate(given)
    ]


def is_number(value: Any) -> bool:
    """Whether `value` is a number that can be reckoned with: JSON has whole numbers that no float can hold."""
    return type(value) is float or (type(value) is int and abs(value) < MAX_INTEGER)


def _size_or_problem(image_uri: str) -> tuple[tuple[int, int] | None, str | None]:
    try:
        return image_size_of(image_uri), None
    except ImageError as error:
        return None, str(error)
