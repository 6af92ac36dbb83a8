"""COCO files: instances JSON and detection results JSON.

Instances: `bbox` is XYWH. As an extension, an annotation may carry `"points": [[x, y, label], ...]` (label 1 = on the
object, 0 = background) with or without `bbox`. `segmentation` and `keypoints` are no weak prompts and are ignored.

Detection results: a list of `{"image_id", "bbox", "score", "category_id"}`. They do not name their pictures: an index
does (any COCO JSON with `images`), or else COCO's own file names (image 42 is `000000000042.jpg`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stable_sam.data import plain_columns
from stable_sam.data.image_folder import ImageFolder
from stable_sam.data.json_stream import JsonStream
from stable_sam.data.prompt_columns import Chunk, Places, SourceColumns, different
from stable_sam.data.source_annotation import SourceAnnotation, attributes_json, checked_prompt, id_text, image_size
from stable_sam.errors import AnnotationError, ImageError
from stable_sam.records import Prompt

OWN_FIELDS = frozenset(
    {"id", "image_id", "category_id", "bbox", "points", "segmentation", "keypoints", "iscrowd", "score"}
)
"""Fields of an annotation that have a place of their own in a prompt, or none on purpose."""
MAX_CATEGORIES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a COCO file says of one image. `problem`: why it cannot be found."""

    uri: str = ""
    size_hw: tuple[int, int] | None = None
    problem: str | None = None


class Catalogue:
    """The `images` and `categories` of a COCO file; an image takes some 200 bytes."""

    def __init__(self, name: str, folder: ImageFolder) -> None:
        """Begins empty. `name` is the file's, for messages."""
        self._name, self._folder = name, folder
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

    def image(self, image_id: str) -> Image:
        """The image with this id; its `problem` is set when there is none."""
        number = self._numbers.get(image_id)
        if number is None:
            return Image(problem=f"image {image_id} is not among the images of {self._name}")
        if image_id in self._twice:
            return Image(problem=f"image id {image_id} {self._twice[image_id]}")
        height, width = self._sides[2 * number : 2 * number + 2]
        return _located(self._file_names[number], self._folder, (height, width) if height else None)

    def category(self, category_id: Any) -> str | None:
        """The name of a category, None when the file has none for this id."""
        category = id_text(category_id)
        return None if category is None else self._categories.get(category)


class CocoFileNames:
    """Stands in for a catalogue where there is none: COCO's own file names."""

    def __init__(self, folder: ImageFolder) -> None:
        """`folder` holds the pictures."""
        self._folder = folder

    def __len__(self) -> int:
        return 0

    def number(self, image_id: str) -> None:
        """Ids are not known before."""

    def image(self, image_id: str) -> Image:
        """Image 42 is 000000000042.jpg."""
        if not (image_id.isascii() and image_id.isdecimal()):
            return Image(problem=f"image {image_id!r:.200} has no COCO file name, expected a number or an image index")
        found = _located(f"{image_id:>012}.jpg", self._folder, None)
        if found.problem:
            return Image(problem=f"{found.problem} (without an image index, COCO's file names are assumed)")
        return found

    def category(self, category_id: Any) -> None:
        """Names are not known."""


AnyCatalogue = Catalogue | CocoFileNames


def read_instances(file: BinaryIO, *, name: str, folder: ImageFolder, rows: int) -> Iterator[Chunk]:
    """Chunks of at most `rows` of the document's `annotations`; prompt_id is the annotation's id.

    An annotation without an id is named by its image and its place among those of the image, as detections are.

    The file is read twice, unless its images and categories come before its annotations: where COCO's own order puts
    the categories, nothing is known of them when the annotations pass. The first time is now, and raises
    `AnnotationError` for what is no JSON.
    """
    catalogue = Catalogue(name, folder)
    offset, whole = _read_catalogue(JsonStream(file, name), name, catalogue, need_annotations=True)
    return _read(_annotations(file, name, offset, whole), name, "annotation", catalogue, rows)


def read_detections(file: BinaryIO, *, name: str, catalogue: AnyCatalogue, rows: int) -> Iterator[Chunk]:
    """Chunks of at most `rows` detections; prompt_id is `{image_id}:{place among the detections of its image}`."""
    return _read(_detections(file, name), name, "detection", catalogue, rows)


def read_index(file: BinaryIO, *, name: str, folder: ImageFolder) -> Catalogue:
    """The catalogue of any COCO file that has images; raises `AnnotationError`."""
    stream, catalogue = JsonStream(file, name), Catalogue(name, folder)
    if stream.peek() == "{":
        _read_catalogue(stream, name, catalogue, need_annotations=False)
    if not len(catalogue):
        raise AnnotationError(f"{name}: expected a COCO JSON with a list of images as image index")
    return catalogue


def _read_catalogue(stream: JsonStream, name: str, catalogue: Catalogue, *, need_annotations: bool) -> tuple[int, bool]:
    """Fill the catalogue; returns where the annotations begin, and whether the whole document has been read."""
    offset, seen = -1, set()
    for key in stream.members():
        if key not in ("images", "categories", "annotations"):
            stream.skip()
            continue
        if key in seen:
            raise AnnotationError(f"{name}: expected one list under {key!r}, got another one")
        seen.add(key)
        if stream.peek() != "[":
            raise AnnotationError(f"{name}: expected a list under {key!r}, got {type(stream.value()).__name__}")
        if key == "images":
            for position, entry in enumerate(stream.elements()):
                catalogue.add_image(position, entry)
        elif key == "categories":
            for entry in stream.elements():
                catalogue.add_category(entry)
        else:
            offset = stream.offset
            if len(seen) == 3:
                return offset, False
            stream.skip()
    stream.end()
    missing = sorted({"images", "annotations"} - seen) if need_annotations else []
    if missing:
        raise AnnotationError(f"{name}: unknown format: a COCO file needs images and annotations, got no {missing[0]}")
    return offset, True


def _annotations(file: BinaryIO, name: str, offset: int, whole: bool) -> Iterator[Any]:
    """The elements of the list there; then the rest of the document is looked at, unless that was done before."""
    stream = JsonStream(file, name, offset)
    yield from stream.elements()
    if whole:
        return
    for key in stream.more_members():
        if key in ("images", "categories", "annotations"):
            raise AnnotationError(f"{name}: expected one list under {key!r}, got another one")
        stream.skip()
    stream.end()


def _detections(file: BinaryIO, name: str) -> Iterator[Any]:
    stream = JsonStream(file, name)
    yield from stream.elements()
    stream.end()


def _read(records: Iterator[Any], name: str, kind: str, catalogue: AnyCatalogue, rows: int) -> Iterator[Chunk]:
    places, position = Places(len(catalogue), catalogue.number), 0
    while chunk := list(islice(records, rows)):
        yield _chunk(chunk, name, kind, catalogue, places, position)
        position += len(chunk)


def _chunk(given: list[Any], name: str, kind: str, catalogue: AnyCatalogue, places: Places, position: int) -> Chunk:
    records = [record if isinstance(record, dict) else {} for record in given]
    image_ids, which = different([id_text(record.get("image_id")) or "" for record in records])
    images = [
        catalogue.image(image_id) if image_id else Image(problem="expected an image_id") for image_id in image_ids
    ]
    place = places.of_chunk(image_ids, which)

    def read(rows: NDArray[np.int64]) -> list[Prompt]:
        prompts = []
        for row in rows.tolist():
            image_id, image, record = image_ids[which[row]], images[which[row]], given[row]
            place_id = f"{image_id}:{place[row]}" if image_id else f"record-{position + row}"
            if isinstance(record, dict):
                prompts.append(_prompt(record, name, kind, image_id, image, place_id, catalogue))
            else:
                where, problem = (
                    f"{name}: {kind} at position {position + row}",
                    f"expected an object, got {record!r:.80}",
                )
                source = SourceAnnotation(prompt_id=place_id, where=where, image_id="", problem=problem)
                prompts.append(checked_prompt(source))
        return prompts

    def columns() -> SourceColumns:
        taken = pa.array(which)
        image_id = pa.array(image_ids, pa.string()).take(taken)
        usable = np.array([bool(i) and image.problem is None for i, image in zip(image_ids, images, strict=True)])
        return _columns(
            records,
            kind,
            catalogue,
            usable[which],
            image_id=image_id,
            image_uri=pa.array([image.uri for image in images], pa.string()).take(taken),
            size_hw=np.array([image.size_hw or (0, 0) for image in images], np.float64)[which],
            place_id=pc.binary_join_element_wise(image_id, pa.array(place).cast(pa.string()), ":"),
        )

    return Chunk(length=len(given), read=read, columns=columns)


def _columns(
    records: Sequence[dict[str, Any]],
    kind: str,
    catalogue: AnyCatalogue,
    plain: NDArray[np.bool_],
    *,
    image_id: pa.Array,
    image_uri: pa.Array,
    size_hw: NDArray[np.float64],
    place_id: pa.Array,
) -> SourceColumns:
    values: dict[str, pa.Array] = {}
    converted = {"annotation_id": ("id", plain_columns.texts)} if kind == "annotation" else {}
    for field, (key, convert) in (converted | _CONVERSIONS).items():
        values[field], good = convert(plain_columns.column_of(records, key))
        plain = plain & good
    box, has_box, good = plain_columns.boxes(plain_columns.column_of(records, "bbox"))
    with np.errstate(invalid="ignore", over="ignore"):
        box[:, 2:] += box[:, :2]
    plain &= good & has_box & plain_columns.absent(plain_columns.column_of(records, "points"))
    ids = [record.get("category_id") for record in records]
    names, which = different([None if i is None else id_text(i) or "" for i in ids])
    categories = pa.array([catalogue.category(category) for category in names], pa.string()).take(pa.array(which))
    attributes = [attributes_json(record, OWN_FIELDS) if record.keys() - OWN_FIELDS else None for record in records]
    own_id = values.get("annotation_id")
    return SourceColumns(
        plain=plain,
        box_xyxy=box,
        size_hw=size_hw,
        prompt_id=place_id if own_id is None else pc.coalesce(own_id, place_id),
        image_id=image_id,
        image_uri=image_uri,
        category=categories,
        attributes=pa.array(attributes, pa.string()),
        **values,
    )


_CONVERSIONS = {
    "category_id": ("category_id", plain_columns.integers),
    "iscrowd": ("iscrowd", plain_columns.flags),
    "score": ("score", plain_columns.numbers),
}


def _prompt(
    record: dict[str, Any],
    name: str,
    kind: str,
    image_id: str,
    image: Image,
    place_id: str,
    catalogue: AnyCatalogue,
) -> Prompt:
    annotation_id = id_text(record.get("id")) if kind == "annotation" else None
    no_image = None if image_id else f"expected an image_id, got {record.get('image_id')!r:.80}"
    points, labels, points_problem = _split_points(record.get("points"))
    problems = [problem for problem in (no_image or image.problem, points_problem) if problem]
    return checked_prompt(
        SourceAnnotation(
            prompt_id=annotation_id or place_id,
            where=f"{name}: {kind} {annotation_id or place_id}",
            image_id=image_id,
            image_uri=image.uri,
            size_hw=image.size_hw,
            problem="; ".join(problems) or None,
            box_xywh=record.get("bbox"),
            points_xy=points,
            point_labels=labels,
            annotation_id=annotation_id,
            category_id=record.get("category_id"),
            category=catalogue.category(record.get("category_id")),
            iscrowd=record.get("iscrowd"),
            score=record.get("score"),
            attributes=attributes_json(record, OWN_FIELDS),
        )
    )


def _split_points(given: Any) -> tuple[list[Any], list[Any], str | None]:
    """`[[x, y, label], ...]` as points, labels and, when it is something else, the problem."""
    if given is None:
        return [], [], None
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 3 for point in given):
        return [], [], f"expected points as [[x, y, label], ...], got {given!r:.80}"
    return [point[:2] for point in given], [point[2] for point in given], None


def _located(file_name: Any, folder: ImageFolder, size_hw: tuple[int, int] | None) -> Image:
    try:
        return Image(uri=folder.find(file_name), size_hw=size_hw)
    except ImageError as error:
        return Image(problem=str(error), size_hw=size_hw)
