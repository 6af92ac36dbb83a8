"""Turns rows of a table, from Parquet or JSON Lines alike, into prompts, one by one or column by column."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stable_sam.errors import ImageError, without_credentials
from stable_sam.formats.columns import convert as plain_columns
from stable_sam.formats.columns.check import Chunk, PlaceCounter, SourceColumns, different
from stable_sam.formats.image_lookup import ImageLookup, relative_name
from stable_sam.formats.reading import in_order
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, checked_prompt, id_text
from stable_sam.records import Prompt

PROMPT_COLUMNS = ("box_xyxy", "bbox_xywh", "points_xy")
OWN_COLUMNS = frozenset(
    {"prompt_id", "image", *PROMPT_COLUMNS, "point_labels", "annotation_id"}
    | {"category_id", "category", "iscrowd", "score", "attributes"}
)

Row = dict[str, Any]
Rows = NDArray[np.int64]
"""Numbers (n,) of rows in a chunk, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChunk:
    """Consecutive rows of a table."""

    length: int
    """Number of rows."""
    images: tuple[list[Any], Rows]
    """The different values of the column image, and for each row the index of its own."""
    column: Callable[[str], pa.Array | None]
    """Returns the column of this name, None when the table has none."""
    attributes: Callable[[], pa.Array | None]
    """Returns the attributes of each row as JSON text; None when no row can have any."""
    records: Callable[[Rows], list[tuple[str, Row]]]
    """Returns the rows with these numbers as records, each after its file and place, for messages."""


def prompt_chunk(chunk: TableChunk, images: ImageLookup, places: PlaceCounter, position: int) -> Chunk:
    """Return the rows as a chunk of prompts; its first row has the number `position` in the table.

    `places` has counted the rows before them, image by image, and counts these too.
    """
    given, which = chunk.images
    found = [_image(name, images) for name in given]
    image_ids, of_image = different([image_id for image_id, _, _ in found])
    place = places.of_chunk(image_ids, of_image[which])

    def read(rows: Rows) -> list[Prompt]:
        prompts = []
        for row, (where, record) in zip(rows, chunk.records(rows), strict=True):
            image_id, image_uri, problem = found[which[row]]
            own_id = id_text(record.get("prompt_id"))
            problems = [problem] if problem else []
            if own_id is None and record.get("prompt_id") is not None:
                problems.append(f"expected text or a whole number as prompt_id, got {record['prompt_id']!r:.80}")
            place_id = f"{image_id}:{place[row]}" if image_id else f"row-{position + row}"
            prompts.append(_prompt(where, record, own_id or place_id, image_id, image_uri, problems))
        return prompts

    def columns() -> SourceColumns:
        uris = pa.array([uri for _, uri, _ in found], pa.string())
        ids = pa.array([image_id for image_id, _, _ in found], pa.string())
        taken = pa.array(which)
        return _columns(chunk, ids.take(taken), uris.take(taken), np.array([not p for _, _, p in found])[which], place)

    def where(row: int) -> str:
        [(place, _)] = chunk.records(np.array([row]))
        return place

    return Chunk(length=chunk.length, read=read, columns=columns, where=where)


def attributes_of(row: Mapping[str, Any]) -> str | None:
    """Return a row's attributes and its further columns as one JSON object in text, None when there are none.

    When the column `attributes` is not a JSON object, its value becomes an attribute of the name `attributes`.
    """
    given = row.get("attributes")
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    others = {column: value for column, value in row.items() if column not in OWN_COLUMNS}
    return attributes_json(others | (given if isinstance(given, dict) else {"attributes": given}), known=())


def _columns(chunk: TableChunk, image_id: pa.Array, image_uri: pa.Array, plain: Any, place: Rows) -> SourceColumns:
    values: dict[str, pa.Array] = {}

    def column(name: str) -> pa.Array:
        found = chunk.column(name)
        return pa.nulls(chunk.length) if found is None else found

    for name, convert in _CONVERSIONS.items():
        values[name], good = convert(column(name))
        plain = plain & good
    by_corners, has_corners, good_corners = plain_columns.boxes(column("box_xyxy"))
    by_size, has_size, good_size = plain_columns.boxes(column("bbox_xywh"))
    with np.errstate(invalid="ignore", over="ignore"):
        by_size[:, 2:] += by_size[:, :2]
    plain &= good_corners & good_size & (has_corners ^ has_size)
    plain &= plain_columns.absent(column("points_xy")) & plain_columns.absent(column("point_labels"))
    place_id = pc.binary_join_element_wise(image_id, pa.array(place).cast(pa.string()), ":")
    return SourceColumns(
        plain=plain,
        box_xyxy=np.where(has_corners[:, None], by_corners, by_size),
        image_id=image_id,
        image_uri=image_uri,
        attributes=chunk.attributes(),
        **values | {"prompt_id": pc.coalesce(values["prompt_id"], place_id)},
    )


_CONVERSIONS = {
    "prompt_id": plain_columns.texts,
    "annotation_id": plain_columns.texts,
    "category_id": plain_columns.integers,
    "category": plain_columns.categories,
    "iscrowd": plain_columns.flags,
    "score": plain_columns.numbers,
}


def _prompt(
    where: str, row: Mapping[str, Any], prompt_id: str, image_id: str, image_uri: str, problems: list[str]
) -> Prompt:
    return checked_prompt(
        SourceAnnotation(
            prompt_id=prompt_id,
            where=f"{where} (prompt {prompt_id})",
            image_id=image_id,
            image_uri=image_uri,
            problem="; ".join(problems) or None,
            box_xyxy=in_order(row.get("box_xyxy")),
            box_xywh=row.get("bbox_xywh"),
            points_xy=row.get("points_xy"),
            point_labels=row.get("point_labels"),
            annotation_id=id_text(row.get("annotation_id")),
            category_id=row.get("category_id"),
            category=row.get("category"),
            iscrowd=row.get("iscrowd"),
            score=row.get("score"),
            attributes=attributes_of(row),
        )
    )


def _image(given: Any, images: ImageLookup) -> tuple[str, str, str | None]:
    """Return the image_id and image_uri of a row, and what is wrong with the image.

    The image_id is the name that the row gives, because it is part of the id of a prompt that has none of its own.
    """
    found = images.find(given)
    name = without_credentials(id_text(given) or "")
    if found.problem is None and "://" not in name:
        with suppress(ImageError):
            name = relative_name(given)
    return name, found.uri, found.problem
