"""What all readers of annotation formats share: their files, their context, and the geometry of boxes and points."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from stable_sam.errors import AnnotationError, ImageError, NotFoundError
from stable_sam.formats.class_names import ClassNames, read_class_names
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.source_annotation import SourceAnnotation
from stable_sam.images.orientation import turned_hw
from stable_sam.images.size import stored_size_of
from stable_sam.storage import files as storage
from stable_sam.storage import uris
from stable_sam.storage.file_kinds import LFS_POINTER, beginning

MAX_INTEGER = 2**1000
ROWS_ONE_BY_ONE = 500
"""Annotations of a chunk for callers that take prompts one by one and may want only the first."""
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
"""The first bytes of archives and compressed files, because many exports are downloaded as such."""
PACKED_BYTES = max(map(len, (*PACKED, LFS_POINTER)))
MAX_SIZES = 100_000
"""Number of images whose size is kept, because files that are not sorted by image name each image many times."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Reads the sizes of images from their headers, each header once."""

    frame: Literal["upright", "stored"] = "upright"
    """`SourceConfig.frame`: whether sizes are those of the upright image or of the pixels as the file stores them."""
    _look_up: Any = field(default_factory=lambda: lru_cache(MAX_SIZES)(_size_or_problem))

    def of(self, image_uri: str) -> tuple[tuple[int, int] | None, str | None]:
        """Return (height, width) of the image in pixels of `frame` and None, or None and why it is not known.

        Raises `StorageError`.
        """
        stored_hw, turn, problem = self._look_up(image_uri)
        if stored_hw is None:
            return None, problem
        return (stored_hw if self.frame == "stored" else turned_hw(stored_hw, turn)), None

    def stored(self, image_uri: str) -> tuple[tuple[int, int] | None, int]:
        """Return (height, width) of the pixels as the file stores them, or None, and the EXIF orientation.

        Raises `StorageError`.
        """
        stored_hw, turn, _ = self._look_up(image_uri)
        return stored_hw, turn


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationFile:
    """One annotation file of a source."""

    uri: str
    name: str
    """Path below the source's folder; the file's own name when the source is that file alone."""

    @property
    def stem(self) -> str:
        """`name` without the ending of the file."""
        return PurePosixPath(self.name).with_suffix("").as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationSource:
    """One entry of `--annotations` with its files."""

    entry: str
    """The file, folder or pattern as the user gave it, without the name before `=`."""
    folder_uri: str
    """The folder that holds the files."""
    label: str | None
    """Name of the source; None when it is the only source and has no name."""
    alone: bool
    """Whether the entry is one file, not a folder or a pattern."""
    names: tuple[str, ...]
    """Sorted paths of the files below the folder. Only the paths are kept, because there may be millions of files."""

    @property
    def files(self) -> Iterator[AnnotationFile]:
        """The files of the source, in the order of their names."""
        return (AnnotationFile(uri=self._uri(name), name=name) for name in self.names)

    def _uri(self, name: str) -> str:
        return self.entry if self.alone else uris.join(self.folder_uri, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the readers of all formats are given beside the file to read."""

    folder: ImageFolder
    rows: int = ROWS_ONE_BY_ONE
    """Largest number of annotations in a chunk."""
    keypoints: bool = False
    """Whether visible keypoints become points of the prompt."""
    class_names_uri: str | None = None
    """The file of class names that the config names; None to look for one beside the annotations."""
    class_names: ClassNames = field(default_factory=ClassNames)
    """Class names of the file or folder that is read, for formats that keep them in a file of their own."""
    image_index_uri: str | None = None
    """For COCO detection results: a COCO JSON whose `images` say which file an image_id means."""
    sizes: Sizes = field(default_factory=Sizes)
    """Sizes of the images, for formats whose coordinates are fractions of the image."""

    def images_of(self, file: AnnotationFile) -> ImageLookup:
        """Return the lookup of the images that an annotation file names."""
        return ImageLookup(self.folder, file.uri, file.name)

    @property
    def few_rows(self) -> int:
        """Rows of a chunk in formats where reading a prompt means reading a file or the header of an image."""
        return min(self.rows, ROWS_ONE_BY_ONE)

    def with_class_names(self, folder_uri: str, candidates: Sequence[str]) -> Context:
        """Return this context with the class names for the annotations of a folder.

        `candidates` are the names that the format's file of class names may have; with none, nothing is read.
        Raises what `read_class_names` raises.
        """
        if not candidates:
            return self
        return replace(self, class_names=read_class_names(folder_uri, self.class_names_uri, candidates))


def open_annotations(uri: str) -> BinaryIO:
    """Open an annotation file; raises `AnnotationError` when it does not exist or is packed, and `StorageError`."""
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
    """Raise `AnnotationError` when a file's first bytes are those of a packed file or of a pointer of Git LFS."""
    for magic, kind in PACKED.items():
        if head.startswith(magic):
            raise AnnotationError(f"{uri}: expected annotations, got {kind}: unpack it and give its content")
    if head.startswith(LFS_POINTER):
        raise AnnotationError(f"{uri}: expected annotations, got {beginning(head)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFile:
    """The whole content of a file that holds the annotations of one image."""

    file: AnnotationFile
    content: bytes

    @property
    def uri(self) -> str:
        """URI of the file."""
        return self.file.uri

    @property
    def stem(self) -> str:
        """Path of the file below the annotation folder without its ending, with which its prompts' ids begin."""
        return self.file.stem

    def stream(self) -> io.BytesIO:
        """Return the content as an open file."""
        return io.BytesIO(self.content)


def unreadable(file: AnnotationFile, error: AnnotationError) -> SourceAnnotation:
    """Return the annotation that stands for a whole file that cannot be read, one of many; its problem says why."""
    problem = str(error).removeprefix(f"{file.uri}: ")
    return SourceAnnotation(prompt_id=file.stem, where=file.uri, image_id="", problem=problem)


def bounds(points: Sequence[Sequence[Any]]) -> list[Any] | None:
    """Return the box (XYXY) around points, None without points.

    When one of them is not a pair of numbers, the result is a list of all points. It is not a box, so that
    `checked_prompt` reports it.
    """
    if not points:
        return None
    if not all(isinstance(point, list | tuple) and len(point) == 2 and all(map(is_number, point)) for point in points):
        return [points]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def in_order(box: Any) -> Any:
    """Return the box (XYXY) with two opposite corners, which some tools write in the order they were drawn in.

    All readers of corners use it. A negative width or height is another matter, because nobody can tell on which side
    of the corner the object is: such a box stays as it is and fails. Anything else than 4 numbers is returned as it is.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return box
    x0, y0, x1, y1 = box
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def union(boxes: Sequence[Any]) -> Any:
    """Return the box (XYXY) around boxes, None without boxes.

    A box that is not 4 numbers is returned as it is, so that `checked_prompt` reports it.
    """
    strange = [box for box in boxes if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)))]
    if strange or len(boxes) < 2:
        return next(iter(strange or boxes), None)
    return [
        *(min(box[side] for box in boxes) for side in (0, 1)),
        *(max(box[side] for box in boxes) for side in (2, 3)),
    ]


def scaled(values: Iterable[Any], *factors: float) -> list[Any]:
    """Return each value multiplied by its factor, the factors in turn; a value that is not a number stays as it is."""
    given = list(values)
    return [
        value * factors[position % len(factors)] if is_number(value) else value for position, value in enumerate(given)
    ]


def is_number(value: Any) -> bool:
    """Whether `value` is a number that fits into a float; JSON may hold whole numbers that do not."""
    return type(value) is float or (type(value) is int and abs(value) < MAX_INTEGER)


def _size_or_problem(image_uri: str) -> tuple[tuple[int, int] | None, int, str | None]:
    try:
        return *stored_size_of(image_uri), None
    except ImageError as error:
        return None, 1, str(error)
