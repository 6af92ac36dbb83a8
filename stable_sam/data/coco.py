"""COCO files: instances JSON and detection results JSON.

Instances: `bbox` is XYWH. As an extension, an annotation may carry `"points": [[x, y, label], ...]` (label 1 = on the
object, 0 = background) with or without `bbox`. `segmentation` and `keypoints` are no weak prompts and are ignored.

Detection results: a list of `{"image_id", "bbox", "score", "category_id"}`. They do not name their pictures: an index
does (any COCO JSON with `images`), or else COCO's own file names (image 42 is `000000000042.jpg`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stable_sam.data.image_folder import ImageFolder
from stable_sam.data.source_annotation import SourceAnnotation, attributes_json, checked_prompt, id_text, image_size
from stable_sam.errors import AnnotationError, ImageError
from stable_sam.records import Prompt

OWN_FIELDS = frozenset(
    {"id", "image_id", "category_id", "bbox", "points", "segmentation", "keypoints", "iscrowd", "score"}
)
"""Fields of an annotation that have a place of their own in a prompt, or none on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a COCO file says of one image. `problem`: why it cannot be found."""

    uri: str = ""
    size_hw: tuple[int, int] | None = None
    problem: str | None = None


class Catalogue:
    """The `images` and `categories` of a COCO file."""

    def __init__(self, document: Mapping[str, Any], name: str, folder: ImageFolder) -> None:
        """Raises `AnnotationError` when `images` or `categories` is not a list. `name` is the file's, for messages."""
        self._name = name
        self._images: dict[str, Image] = {}
        file_names: dict[str, Any] = {}
        for position, entry in enumerate(_list(document, "images", name)):
            image_id = id_text(entry.get("id")) if isinstance(entry, dict) else None
            if image_id is None:
                raise AnnotationError(f"{name}: images[{position}]: expected an object with an id, got {entry!r:.80}")
            file_name = entry.get("file_name")
            if file_names.setdefault(image_id, file_name) != file_name:
                problem = f"image id {image_id} stands for two files: {file_names[image_id]!r} and {file_name!r}"
                self._images[image_id] = Image(problem=problem)
            elif image_id not in self._images:
                self._images[image_id] = _located(file_name, folder, image_size(entry))
        self._categories = {
            id_text(category.get("id")): str(category.get("name", category.get("id")))
            for category in _list(document, "categories", name)
            if isinstance(category, dict)
        }

    def image(self, image_id: str) -> Image:
        """The image with this id; its `problem` is set when there is none."""
        missing = Image(problem=f"image {image_id} is not among the images of {self._name}")
        return self._images.get(image_id, missing)

    def category(self, category_id: Any) -> str | None:
        """The name of a category, None when the file has none for this id."""
        category = id_text(category_id)
        return None if category is None else self._categories.get(category)


class CocoFileNames:
    """Stands in for a catalogue where there is none: COCO's own file names."""

    def __init__(self, folder: ImageFolder) -> None:
        """`folder` holds the pictures."""
        self._folder = folder

    def image(self, image_id: str) -> Image:
        """Image 42 is 000000000042.jpg."""
        if not image_id.isdecimal():
            return Image(problem=f"image {image_id!r} has no COCO file name, expected a number or an image index")
        found = _located(f"{int(image_id):012d}.jpg", self._folder, None)
        if found.problem:
            return Image(problem=f"{found.problem} (without an image index, COCO's file names are assumed)")
        return found

    def category(self, category_id: Any) -> None:
        """Names are not known."""


def read_instances(document: Mapping[str, Any], *, name: str, catalogue: Catalogue) -> Iterator[Prompt]:
    """One prompt for each of the document's `annotations`; prompt_id is the annotation's id.

    An annotation without an id is named by its image and its place among those of the image, as detections are.
    """
    return _read(_list(document, "annotations", name), name, "annotation", catalogue)


def read_detections(records: list[Any], *, name: str, catalogue: Catalogue | CocoFileNames) -> Iterator[Prompt]:
    """One prompt for each detection; prompt_id is `{image_id}:{place among the detections of its image}`, from 0."""
    return _read(records, name, "detection", catalogue)


def _read(records: list[Any], name: str, kind: str, catalogue: Catalogue | CocoFileNames) -> Iterator[Prompt]:
    places: Counter[str] = Counter()
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            where = f"{name}: {kind} at position {position}"
            problem = f"expected an object, got {record!r:.80}"
            yield checked_prompt(
                SourceAnnotation(prompt_id=f"record-{position}", where=where, image_id="", problem=problem)
            )
            continue
        image_id = id_text(record.get("image_id"))
        annotation_id = id_text(record.get("id")) if kind == "annotation" else None
        if image_id is None:
            image = Image(problem=f"expected an image_id, got {record.get('image_id')!r:.80}")
            place_id = f"record-{position}"
        else:
            image = catalogue.image(image_id)
            place_id = f"{image_id}:{places[image_id]}"
            places[image_id] += 1
        points, labels, points_problem = _split_points(record.get("points"))
        problems = [problem for problem in (image.problem, points_problem) if problem]
        yield checked_prompt(
            SourceAnnotation(
                prompt_id=annotation_id or place_id,
                where=f"{name}: {kind} {annotation_id or place_id}",
                image_id=image_id or "",
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


def _list(document: Mapping[str, Any], key: str, name: str) -> list[Any]:
    value = document.get(key, [])
    if not isinstance(value, list):
        raise AnnotationError(f"{name}: expected a list under {key!r}, got {type(value).__name__}")
    return value
