"""Turns records of a COCO file (annotations or detections) into prompts, one by one or column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stable_sam.errors import PromptError
from stable_sam.formats.coco.catalogue import AnyCatalogue, Image
from stable_sam.formats.coco.mask_box import mask_box_xywh
from stable_sam.formats.columns import convert as plain_columns
from stable_sam.formats.columns.check import Chunk, PlaceCounter, SourceColumns, different
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, checked_prompt, id_text
from stable_sam.records import Prompt

OWN_FIELDS = frozenset(
    {"id", "image_id", "category_id", "bbox", "points", "segmentation", "keypoints", "iscrowd", "score"}
)
"""Fields of a record that do not become attributes: a prompt has a field for them, or leaves them out on purpose."""
VISIBLE = 2
"""The visibility of a keypoint that can be seen; 1 is a keypoint that is hidden, 0 one that is not labelled."""
NO_IMAGE = Image(problem="expected an image_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoFile:
    """The COCO file that records come from, and how they are read."""

    name: str
    """Name of the file, for messages."""
    kind: Literal["annotation", "detection"]
    """What a record is: an annotation, which has an id of its own, or a detection, which has none."""
    catalogue: AnyCatalogue
    keypoints: bool = False
    """Whether visible keypoints become points on the object."""


def record_chunk(given: Sequence[Any], source: CocoFile, places: PlaceCounter, position: int) -> Chunk:
    """Return a chunk of consecutive records, of which the first has the number `position` in its list.

    `places` has counted the records before them, image by image, and counts these too.
    """
    records = [record if isinstance(record, dict) else {} for record in given]
    image_ids, of_image = different([id_text(record.get("image_id")) or "" for record in records])
    place = places.of_chunk(image_ids, of_image)
    # A detection may name its image itself.
    file_names = [_file_name(record) if source.kind == "detection" else None for record in records]
    known: dict[tuple[int, str | None], int] = {}
    which = np.array(
        [known.setdefault(key, len(known)) for key in zip(of_image.tolist(), file_names, strict=True)], np.int64
    )
    images = [
        source.catalogue.image(image_ids[number], name) if image_ids[number] else NO_IMAGE for number, name in known
    ]

    def read(rows: NDArray[np.int64]) -> list[Prompt]:
        prompts = []
        for row in rows.tolist():
            image_id, image = image_ids[of_image[row]], images[which[row]]
            place_id = f"{image_id}:{place[row]}" if image_id else f"record-{position + row}"
            prompts.append(_prompt(given[row], source, image_id, image, place_id))
        return prompts

    def columns() -> SourceColumns:
        return _columns(
            records, source, pa.array(image_ids, pa.string()).take(pa.array(of_image)), images, which, place
        )

    def where(row: int) -> str:
        # Not by its id, which another record may have too.
        return f"{source.name}: {source.kind}s[{position + row}]"

    return Chunk(length=len(given), read=read, columns=columns, where=where)


def _file_name(record: Mapping[str, Any]) -> str | None:
    given = record.get("file_name")
    return given if isinstance(given, str) and given else None


def _prompt(given: Any, source: CocoFile, image_id: str, image: Image, place_id: str) -> Prompt:
    record = given if isinstance(given, dict) else {}
    annotation_id = id_text(record.get("id")) if source.kind == "annotation" else None
    points, labels, points_problem = _split_points(record.get("points"))
    box, box_problem = _box(record, image)
    if source.keypoints:
        visible = _visible(record.get("keypoints"))
        points, labels = points + visible, labels + [1] * len(visible)
    if not isinstance(given, dict):
        problem: str | None = f"expected an object, got {given!r:.80}"
    elif not image_id:
        problem = f"expected an image_id, got {record.get('image_id')!r:.80}"
    else:
        problem = image.problem
    return checked_prompt(
        SourceAnnotation(
            prompt_id=annotation_id or place_id,
            where=f"{source.name}: {source.kind} {annotation_id or place_id}",
            image_id=image_id,
            image_uri=image.uri,
            size_hw=image.size_hw,
            problem="; ".join(filter(None, (problem, points_problem, box_problem))) or None,
            box_xywh=box,
            points_xy=points,
            point_labels=labels,
            annotation_id=annotation_id,
            category_id=record.get("category_id"),
            category=source.catalogue.category(record.get("category_id")),
            iscrowd=record.get("iscrowd"),
            score=record.get("score"),
            attributes=attributes_json(record, OWN_FIELDS),
        )
    )


def _box(record: Mapping[str, Any], image: Image) -> tuple[Any, str | None]:
    """Return the record's box, or the box around its mask when it has nothing else, and what is wrong with the mask."""
    if record.get("bbox") not in (None, []) or record.get("points"):
        return record.get("bbox"), None
    try:
        return mask_box_xywh(record.get("segmentation"), image.size_hw), None
    except PromptError as error:
        return None, str(error)


def _split_points(given: Any) -> tuple[list[Any], list[Any], str | None]:
    """Split `[[x, y, label], ...]` into points and labels; the third value is the problem with anything else."""
    if given is None:
        return [], [], None
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 3 for point in given):
        return [], [], f"expected points as [[x, y, label], ...], got {given!r:.80}"
    return [point[:2] for point in given], [point[2] for point in given], None


def _visible(keypoints: Any) -> list[Any]:
    """Return the visible points of `[x, y, visibility, ...]` as [x, y]; the others are hidden or not labelled."""
    if not isinstance(keypoints, list):
        return []
    triples = (keypoints[at : at + 3] for at in range(0, len(keypoints) - 2, 3))
    return [triple[:2] for triple in triples if triple[2] == VISIBLE]


def _columns(
    records: Sequence[Mapping[str, Any]],
    source: CocoFile,
    image_id: pa.Array,
    images: Sequence[Image],
    which: NDArray[np.int64],
    place: NDArray[np.int64],
) -> SourceColumns:
    """Return the records as columns.

    `image_id` holds the image id of each record, `which` the index in `images` of its image, `place` its place among
    those of its image.
    """
    plain = np.array([image.problem is None for image in images])[which]
    prompt_id = pc.binary_join_element_wise(image_id, pa.array(place).cast(pa.string()), ":")
    values: dict[str, pa.Array] = {}
    for field, convert in _CONVERSIONS.items():
        values[field], good = convert(plain_columns.column_of(records, field))
        plain &= good
    if source.kind == "annotation":
        values["annotation_id"], good = plain_columns.texts(plain_columns.column_of(records, "id"))
        plain &= good
        prompt_id = pc.coalesce(values["annotation_id"], prompt_id)
    box, has_box, good = plain_columns.boxes(plain_columns.column_of(records, "bbox"))
    with np.errstate(invalid="ignore", over="ignore"):
        box[:, 2:] += box[:, :2]
    plain &= good & has_box & plain_columns.absent(plain_columns.column_of(records, "points"))
    if source.keypoints:
        plain &= plain_columns.absent(plain_columns.column_of(records, "keypoints"))
    category_ids = [record.get("category_id") for record in records]
    names, which_name = different([None if i is None else id_text(i) or "" for i in category_ids])
    categories = pa.array([source.catalogue.category(name) for name in names], pa.string()).take(pa.array(which_name))
    attributes = [attributes_json(record, OWN_FIELDS) if record.keys() - OWN_FIELDS else None for record in records]
    return SourceColumns(
        plain=plain,
        box_xyxy=box,
        size_hw=np.array([image.size_hw or (0, 0) for image in images], np.float64)[which],
        prompt_id=prompt_id,
        image_id=image_id,
        image_uri=pa.array([image.uri for image in images], pa.string()).take(pa.array(which)),
        category=categories,
        attributes=pa.array(attributes, pa.string()),
        **values,
    )


_CONVERSIONS = {
    "category_id": plain_columns.integers,
    "iscrowd": plain_columns.flags,
    "score": plain_columns.numbers,
}
