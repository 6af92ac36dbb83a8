"""What the readers of other tools' formats are given, and the geometry that they share."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError, ImageError, NotFoundError
from stable_sam.formats.class_names import ClassNames, read_class_names
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.source_annotation import SourceAnnotation
from stable_sam.images.size import image_size_of
from stable_sam.storage import files as storage

MAX_INTEGER = 2**1000
ROWS_ONE_BY_ONE = 500
"""Annotations that are held for those who take prompts one by one, and may want only the first."""
PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"(\xb5/\xfd": "a zstd file",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
}
"""How such files begin: exports are downloaded as archives."""
PACKED_BYTES = max(map(len, PACKED))
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
class AnnotationFile:
    """One annotation file of a source."""

    uri: str
    name: str
    """Path below the source's folder; of a file that was given itself, its name."""

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).with_suffix("").as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationSource:
    """One entry of `--annotations` with its files."""

    entry: str
    """As given."""
    folder_uri: str
    label: str | None
    """Name of the source; None where there is only one."""
    alone: bool
    """The entry is one file, not a folder or a pattern."""
    names: tuple[str, ...]
    """Of its files, below the folder, sorted: all that is held of millions of them."""

    @property
    def files(self) -> Iterator[AnnotationFile]:
        """Its files, in the order of their names."""
        return (AnnotationFile(uri=self._uri(name), name=name) for name in self.names)

    def _uri(self, name: str) -> str:
        return self.entry if self.alone else storage.join(self.folder_uri, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all readers need."""

    folder: ImageFolder
    rows: int = ROWS_ONE_BY_ONE
    """Annotations of a chunk, at most."""
    keypoints: bool = False
    """Visible keypoints are points of the prompt."""
    class_names_uri: str | None = None
    """Given by the user."""
    class_names: ClassNames = field(default_factory=ClassNames)
    """Those of the file or folder that is read, where its format has them in a file of their own."""
    image_index_uri: str | None = None
    """For COCO detection results: a COCO JSON whose `images` say which file an image_id is."""
    sizes: Sizes = field(default_factory=Sizes)

    def images_of(self, file: AnnotationFile) -> ImageLookup:
        """Finds the images that an annotation file names."""
        return ImageLookup(self.folder, file.uri, file.name)

    @property
    def few_rows(self) -> int:
        """The rows of a chunk in formats of which each prompt costs a file or an image's header."""
        return min(self.rows, ROWS_ONE_BY_ONE)

    def with_class_names(self, folder_uri: str, candidates: Sequence[str]) -> Context:
        """The context for annotations in this folder, with the names of their classes where the format has such files.

        Raises as `read_class_names`.
        """
        if not candidates:
            return self
        return replace(self, class_names=read_class_names(folder_uri, self.class_names_uri, candidates))


def open_annotations(uri: str) -> BinaryIO:
    """Open an annotation file; raises `AnnotationError` when there is none or it is packed, `StorageError`."""
    try:
        file = storage.open_stream(uri)
    except NotFoundError as error:
        raise AnnotationError(f"{uri}: no such annotation file") from error
    try:
        check_unpacked(file.read(PACKED_BYTES), uri)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def check_unpacked(head: bytes, uri: str) -> None:
    """Raise `AnnotationError` for a file that begins as archives and compressed files do."""
    for beginning, kind in PACKED.items():
        if head.startswith(beginning):
            raise AnnotationError(f"{uri}: expected annotations, got {kind}: unpack it, and give what is inside")


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


def in_order(box: Sequence[Any]) -> list[Any]:
    """XYXY of two opposite corners, which some tools write in the order in which they were drawn."""
    x0, y0, x1, y1 = box
    if not all(map(is_number, box)):
        return list(box)
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


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
